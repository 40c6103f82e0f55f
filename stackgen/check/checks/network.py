"""The layers below the API: name resolution, the TCP connection, TLS, and an HTTP response.

Each layer is a check of its own, so that a report names the one that is broken. If the environment sets a proxy for the
target, the proxy does the first three, and they are skipped.
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
from stackgen.check.transport.session import CONNECT_SECONDS, tls_context

__all__ = ["connect", "http", "resolve", "tls"]

# certificates are renewed about a month before they expire, so two weeks before it the renewal has failed
EXPIRY_DAYS = 14


def resolve(context: Context, _model: str) -> Verdict:
    """The host name resolves to at least one address."""
    target = context.session.target
    if proxy := _proxy_host(target):
        return skip(f"the proxy {proxy} resolves the name (set in the environment)")
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
        return skip(f"the proxy {proxy} connects (set in the environment)")
    error: OSError | None = None
    for family, kind, protocol, _, address in context.addresses:
        try:
            _open_socket(family, kind, protocol, address, _connect_timeout(context)).close()
        except OSError as caught:
            error = error or caught
            notes.append(f"{address[0]} does not accept connections: {caught.strerror or 'no answer in time'}")
            continue
        # the notes of failed addresses stay: many clients try only the first address
        return succeed(f"{address[0]} port {target.port} accepts connections", notes=tuple(notes))
    raise classify(error or OSError("no address"), target, context.options.timeout) from None


def tls(context: Context, _model: str) -> Verdict:
    """The certificate is trusted, matches the host and lasts; no key crosses the internet unencrypted."""
    target = context.session.target
    if target.base_url.startswith("http:"):
        return _check_plain_http(context)
    if proxy := _proxy_host(target):
        return skip(f"the proxy {proxy} is in between: only the requests show whether TLS works")
    try:
        certificate, version = _handshake(context)
    except TimeoutError:
        where = f"{target.host}:{target.port}"
        raise Fault(
            "tls-timeout",
            f"{where} was silent for {_connect_timeout(context):g} s during the TLS handshake",
            hint="check the port, and the log of the TLS proxy",
        ) from None
    except OSError as error:
        raise classify(error, target, context.options.timeout) from None
    expiry = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (expiry - time.time()) / 86400
    figures = {"certificate_days": round(days, 1)}
    if days < EXPIRY_DAYS:
        return warn(
            f"the certificate expires in {days:.0f} days",
            hint="renew it: clients reject it from that day on",
            evidence=f"notAfter {certificate['notAfter']}",
            figures=figures,
        )
    return succeed(f"{version}, the certificate is valid for {days:.0f} days", figures=figures)


def http(context: Context, _model: str) -> Verdict:
    """The base URL answers HTTP. Sent without a key, so that a wrong port never sees it."""
    target = context.session.target
    reply = context.session.get(f"{target.base_url}/models", None)
    if 300 <= reply.status < 400:
        location = context.session.redact.excerpt(reply.location)
        hint = f"use the URL it redirects to: {location}"
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
    # plain HTTP in a private network is a choice; on the internet, anyone in between can read the key
    if public and target.api_key:
        return warn(
            f"the API key travels unencrypted to the public address {public[0]}",
            hint="use https: put a TLS proxy in front",
            evidence="plain HTTP",
        )
    return skip("plain HTTP, as the URL says")


def _handshake(context: Context) -> tuple[dict[str, Any], str]:
    target, first = context.session.target, context.addresses[0]
    # like a client: the first address that accepts the connection
    for family, kind, protocol, _, address in context.addresses:
        try:
            plain = _open_socket(family, kind, protocol, address, _connect_timeout(context))
            break
        except OSError:
            continue
    else:
        plain = _open_socket(first[0], first[1], first[2], first[4], _connect_timeout(context))
    with plain, tls_context(target.ca_file).wrap_socket(plain, server_hostname=target.host) as wrapped:
        # getpeercert is empty only without verification, which never happens here
        return dict(wrapped.getpeercert() or {"notAfter": "Jan  1 00:00:00 1970 GMT"}), wrapped.version() or "TLS"


def _open_socket(family: int, kind: int, protocol: int, address: Any, timeout: float) -> socket.socket:
    opened = socket.socket(family, kind, protocol)
    try:
        opened.settimeout(timeout)
        opened.connect(address)
    # also after Ctrl-C, because nothing else would close the socket
    except BaseException:
        opened.close()
        raise
    return opened


def _resolve_host(host: str, port: int, timeout: float) -> list[Any]:
    """`getaddrinfo` with a timeout (s), in a thread, because it has none of its own. Raises OSError."""
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
    return min(context.options.timeout, CONNECT_SECONDS)


def _proxy_host(target: Target) -> str:
    """The host of the proxy that the HTTP client will use for the target; empty if it connects directly."""
    if target.loopback or proxy_bypass(target.host):
        return ""
    proxies = getproxies()
    proxy = proxies.get(urlsplit(target.base_url).scheme) or proxies.get("all") or ""
    # HTTP_PROXY may lack a scheme, and without the slashes urlsplit finds no host
    return urlsplit(proxy if "//" in proxy else f"//{proxy}").hostname or ""
