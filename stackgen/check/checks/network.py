"""The layers below the API: the host's name, the TCP connection, TLS, and something that answers HTTP.

Each is a check of its own, so that a report says which of them broke. Where a proxy of the environment stands in
between, the first three are the proxy's business and are skipped.
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

from stackgen.check.checks.verdict import Context, Verdict, failed, passed, skipped, warned
from stackgen.check.target import Target
from stackgen.check.transport.faults import Fault, classify, speaks_tls
from stackgen.check.transport.session import CONNECT_SECONDS, tls_context

__all__ = ["connect", "http", "resolve", "tls"]

# certificates are renewed about a month before their end, so this late something has gone wrong
EXPIRY_DAYS = 14


def resolve(context: Context, _model: str) -> Verdict:
    """The host name stands for at least one address."""
    target = context.session.target
    if proxy := _proxy(target):
        return skipped(f"{proxy} resolves it: the environment names it as the proxy")
    try:
        found = _lookup(target.host, target.port, _limit(context))
    except OSError as error:
        raise classify(error, target, context.options.timeout) from None
    context.addresses = tuple(found)
    names = list(dict.fromkeys(address[4][0] for address in found))
    if names == [target.host]:
        return passed(f"{target.host} is an address")
    return passed(f"{target.host} is {', '.join(map(str, names[:4]))}")


def connect(context: Context, _model: str) -> Verdict:
    """The port accepts a TCP connection at one of the addresses."""
    target, notes = context.session.target, list[str]()
    if proxy := _proxy(target):
        return skipped(f"{proxy} connects: the environment names it as the proxy")
    error: OSError | None = None
    for family, kind, protocol, _, address in context.addresses:
        try:
            _open(family, kind, protocol, address, _limit(context)).close()
        except OSError as caught:
            error = error or caught
            notes.append(f"{address[0]} does not accept: {caught.strerror or 'no answer in time'}")
            continue
        # a client that tries only the first address, as many do, fails where this one gets through
        return passed(f"{address[0]} port {target.port} accepts connections", notes=tuple(notes))
    raise classify(error or OSError("no address"), target, context.options.timeout) from None


def tls(context: Context, _model: str) -> Verdict:
    """The certificate is trusted, fits the host and lasts; a key does not cross the internet in the clear."""
    target = context.session.target
    if target.base_url.startswith("http:"):
        return _plain(context)
    if proxy := _proxy(target):
        return skipped(f"{proxy} is in between: the requests show whether TLS holds")
    try:
        certificate, version = _handshake(context)
    except TimeoutError:
        where = f"{target.host}:{target.port}"
        raise Fault("tls-timeout", f"{where} was silent in the TLS handshake for {_limit(context):g} s",
                    "is this the right port? look at the TLS proxy's log") from None  # fmt: skip
    except OSError as error:
        raise classify(error, target, context.options.timeout) from None
    end = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (end - time.time()) / 86400
    figures = {"certificate_days": round(days, 1)}
    if days < EXPIRY_DAYS:
        return warned(f"the certificate ends in {days:.0f} days", "renew it: clients refuse it from that day on",
                      f"notAfter {certificate['notAfter']}", figures=figures)  # fmt: skip
    return passed(f"{version}, the certificate is good for {days:.0f} days", figures=figures)


def http(context: Context, _model: str) -> Verdict:
    """Something answers HTTP at the base URL; without a key, so that a wrong port never sees it."""
    target = context.session.target
    reply = context.session.get(f"{target.base_url}/models", None)
    if 300 <= reply.status < 400:
        place = context.session.redact.excerpt(reply.location)
        return failed("the server redirects", f"use the URL that it names: {place}", context.excerpt(reply))
    # nginx tells it by a 400 page, others by dropping the connection, which is a Fault
    if reply.status == 400 and target.base_url.startswith("http:") and speaks_tls(target.host, target.port):
        url = target.base_url.replace("http:", "https:", 1)
        return failed("the port speaks TLS, and the URL says http", f"use {url}", context.excerpt(reply))
    return passed(f"{target.host}:{target.port} answers HTTP")


def _plain(context: Context) -> Verdict:
    target = context.session.target
    addresses = [ipaddress.ip_address(str(found[4][0]).partition("%")[0]) for found in context.addresses]
    public = [str(address) for address in addresses if address.is_global]
    if public and target.api_key:
        return warned(f"the key crosses the network to {public[0]} in the clear", "use https: a TLS proxy in front",
                      "plain HTTP")  # fmt: skip
    return skipped("plain HTTP, as the URL says")


def _handshake(context: Context) -> tuple[dict[str, Any], str]:
    target, found = context.session.target, context.addresses[0]
    # of a name with several addresses the one that `connect` found open would do as well; clients take the first
    for family, kind, protocol, _, address in context.addresses:
        try:
            plain = _open(family, kind, protocol, address, _limit(context))
            break
        except OSError:
            continue
    else:
        plain = _open(found[0], found[1], found[2], found[4], _limit(context))
    with plain, tls_context(target.ca_file).wrap_socket(plain, server_hostname=target.host) as wrapped:
        # empty only where nothing is verified, which is never
        return dict(wrapped.getpeercert() or {"notAfter": "Jan  1 00:00:00 1970 GMT"}), wrapped.version() or "TLS"


def _open(family: int, kind: int, protocol: int, address: Any, timeout: float) -> socket.socket:
    opened = socket.socket(family, kind, protocol)
    try:
        opened.settimeout(timeout)
        opened.connect(address)
    except BaseException:
        opened.close()
        raise
    return opened


def _lookup(host: str, port: int, timeout: float) -> list[Any]:
    """`getaddrinfo`, which has no time-out of its own; raises OSError."""
    found: list[Any] = []
    errors: list[OSError] = []

    def ask() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        # a label that is too long is no OSError
        except UnicodeError:
            errors.append(socket.gaierror(socket.EAI_NONAME, "not a host name"))
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="stackgen-resolve")
    thread.start()
    thread.join(timeout)
    if errors:
        raise errors[0]
    if not found:
        raise socket.gaierror(socket.EAI_AGAIN, "no answer from the name server in time")
    return found


def _limit(context: Context) -> float:
    return min(context.options.timeout, CONNECT_SECONDS)


def _proxy(target: Target) -> str:
    """Host of the proxy that the HTTP client will use for the target; empty where it connects itself."""
    if target.loopback or proxy_bypass(target.host):
        return ""
    proxies = getproxies()
    proxy = proxies.get(urlsplit(target.base_url).scheme) or proxies.get("all") or ""
    return urlsplit(proxy if "//" in proxy else f"//{proxy}").hostname or ""
