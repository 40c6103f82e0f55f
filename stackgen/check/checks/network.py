"""The layers below the API: name resolution, the TCP connection, TLS, and an HTTP response.

Each layer has its own check, so that a report shows which layer is broken. If the environment sets a proxy for the
target, the proxy handles the first three layers, and their checks are skipped.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from stackgen.check.checks.verdict import Context, Verdict, fail, skip, succeed, warn
from stackgen.check.target import Target
from stackgen.check.transport.faults import Fault, classify, is_tls_port
from stackgen.check.transport.http_client import CONNECT_SECONDS, tls_context

__all__ = ["connect", "http", "resolve", "tls"]

# certificates are renewed about a month before they expire, so two weeks before it the renewal has failed
EXPIRY_DAYS = 14


def resolve(context: Context, _model: str) -> Verdict:
    """The host name resolves to at least one address."""
    target = context.session.target
    if proxy := _proxy_host(target):
        return skip(f"the proxy {proxy}, which is set in the environment, resolves the host name")
    try:
        addresses = _resolve_host(target.host, target.port, _connect_timeout(context))
    except OSError as error:
        raise classify(error, target, context.options.timeout) from None
    context.addresses = tuple(addresses)
    names = list(dict.fromkeys(address[4][0] for address in addresses))
    if names == [target.host]:
        return succeed(f"{target.host} is an IP address")
    return succeed(f"{target.host} resolves to {', '.join(map(str, names[:4]))}")


def connect(context: Context, _model: str) -> Verdict:
    """The port accepts a TCP connection at one of the addresses."""
    target, notes = context.session.target, list[str]()
    if proxy := _proxy_host(target):
        return skip(f"the proxy {proxy}, which is set in the environment, opens the connection")
    error: OSError | None = None
    for family, kind, protocol, _, address in context.addresses:
        try:
            _open_socket(family, kind, protocol, address, _connect_timeout(context)).close()
        except OSError as caught:
            error = error or caught
            notes.append(f"{address[0]} does not accept connections: {caught.strerror or 'no answer in time'}")
            continue
        # the notes about failed addresses stay in the report: many clients try only the first address
        return succeed(f"{address[0]} port {target.port} accepts connections", notes=tuple(notes))
    raise classify(error or OSError("no address"), target, context.options.timeout) from None


def tls(context: Context, _model: str) -> Verdict:
    """The certificate is trusted, matches the host and does not expire soon; the internet sees no unencrypted key."""
    target = context.session.target
    if target.base_url.startswith("http:"):
        return _check_plain_http(context)
    if proxy := _proxy_host(target):
        return skip(f"the proxy {proxy} opens the connection, so this check can't test TLS; the other checks test it")
    timeout = _connect_timeout(context)
    try:
        certificate, version = _handshake(context)
    except TimeoutError:
        where = f"{target.host}:{target.port}"
        raise Fault(
            "tls-timeout",
            f"{where} sent nothing for {timeout:g} s during the TLS handshake",
            hint="check the port and the log of the TLS proxy",
        ) from None
    except OSError as error:
        raise classify(error, target, context.options.timeout) from None
    expiry = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (expiry - time.time()) / 86400
    figures = {"certificate_days": round(days, 1)}
    if days < EXPIRY_DAYS:
        return warn(
            f"the certificate expires in {days:.0f} days",
            hint="renew the certificate: clients reject an expired certificate",
            evidence=f"notAfter {certificate['notAfter']}",
            figures=figures,
        )
    name = f" for {target.server_name}" if target.server_name else ""
    return succeed(
        f"the server speaks {version}, and its certificate{name} is valid for {days:.0f} days", figures=figures
    )


def http(context: Context, _model: str) -> Verdict:
    """The base URL answers HTTP. The request has no key, so that a program on a wrong port never sees the key."""
    target = context.session.target
    reply = context.session.get(f"{target.base_url}/models", None)
    if 300 <= reply.status < 400:
        location = context.session.redact.excerpt(reply.location)
        hint = f"use the URL that the server redirects to: {location}"
        return fail("the server redirects", hint=hint, evidence=context.excerpt(reply))
    # nginx answers plain HTTP on a TLS port with a 400 page; others drop the connection, which is a Fault
    if reply.status == 400 and target.base_url.startswith("http:") and is_tls_port(target.host, target.port):
        url = target.base_url.replace("http:", "https:", 1)
        return fail("the port speaks TLS, but the URL says http", hint=f"use {url}", evidence=context.excerpt(reply))
    return succeed(f"{target.host}:{target.port} answers HTTP")


def _check_plain_http(context: Context) -> Verdict:
    target = context.session.target
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in context.addresses]
    public = [str(address) for address in addresses if address.is_global]
    # plain HTTP is a choice in a private network; on the internet, anyone on the way can read the key
    if public and target.api_key:
        return warn(
            f"the API key is sent unencrypted to the public address {public[0]}",
            hint="use https: put a TLS proxy in front of the server",
            evidence="the URL uses plain HTTP",
        )
    return skip("the URL uses plain HTTP, so there is no TLS to check")


def _handshake(context: Context) -> tuple[dict[str, Any], str]:
    target, first = context.session.target, context.addresses[0]
    # as clients do, use the first address that accepts the connection
    for family, kind, protocol, _, address in context.addresses:
        try:
            plain = _open_socket(family, kind, protocol, address, _connect_timeout(context))
            break
        except OSError:
            continue
    else:
        plain = _open_socket(first[0], first[1], first[2], first[4], _connect_timeout(context))
    name = target.server_name or target.host
    with plain, tls_context(target.ca_file).wrap_socket(plain, server_hostname=name) as wrapped:
        # getpeercert is empty only without verification, which never happens here
        return dict(wrapped.getpeercert() or {"notAfter": "Jan  1 00:00:00 1970 GMT"}), wrapped.version() or "TLS"


def _open_socket(family: int, kind: int, protocol: int, address: Any, timeout: float) -> socket.socket:
    opened = socket.socket(family, kind, protocol)
    try:
        opened.settimeout(timeout)
        opened.connect(address)
    # also close the socket after Ctrl-C, because nothing else would close it
    except BaseException:
        opened.close()
        raise
    return opened


def _resolve_host(host: str, port: int, timeout: float) -> list[Any]:
    """Runs `getaddrinfo` in a thread with a timeout (s), because `getaddrinfo` has no timeout. Raises OSError."""
    addresses: list[Any] = []
    errors: list[OSError] = []

    def look_up() -> None:
        try:
            addresses.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        # a label that is too long raises this instead of an OSError
        except UnicodeError:
            errors.append(socket.gaierror(socket.EAI_NONAME, "not a host name"))
        except OSError as error:
            errors.append(error)

    # a daemon thread: a resolver that hangs must not keep the program from exiting
    thread = threading.Thread(target=look_up, daemon=True, name="stackgen-resolve")
    thread.start()
    thread.join(timeout)
    if errors:
        raise errors[0]
    if not addresses:
        raise socket.gaierror(socket.EAI_AGAIN, "no answer from the name server in time")
    return addresses


def _connect_timeout(context: Context) -> float:
    # a slow model may need a long timeout, but a TCP connection never does
    return min(context.session.timeout, CONNECT_SECONDS)


def _proxy_host(target: Target) -> str:
    """The host of the proxy that the HTTP client will use for the target; empty if it connects directly."""
    if target.loopback or proxy_bypass(target.host):
        return ""
    proxies = getproxies()
    proxy = proxies.get(urlsplit(target.base_url).scheme) or proxies.get("all") or ""
    # HTTP_PROXY may have no scheme, and urlsplit finds no host without the slashes
    return urlsplit(proxy if "//" in proxy else f"//{proxy}").hostname or ""
