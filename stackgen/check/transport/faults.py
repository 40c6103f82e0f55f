"""Why a request got no HTTP response: one kind, one message and one hint for each cause.

The HTTP client reports most causes as the same ConnectError, so `classify` reads the inner exceptions (`__cause__`).
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from stackgen.check.target import Target
from stackgen.lazy import LazyModule

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = LazyModule("httpx2")

__all__ = ["Fault", "classify", "is_http_port", "is_tls_port"]

# the port has just accepted a connection, so it answers fast or not at all
PROBE_SECONDS = 3.0
# servers that send a banner send it as soon as the connection is open
BANNER_SECONDS = 0.3


class Fault(Exception):
    """There was no response, or it can't be read. `kind` is one word for tests and programs."""

    def __init__(self, kind: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint


def classify(error: BaseException, target: Target, timeout: float) -> Fault:
    """Returns the fault behind an exception of httpx2 or openai. The message contains `timeout` (s).

    May connect to the target once more, without a key, to see which protocol the port speaks.
    """
    causes = tuple(_causes(error))
    where = f"{target.host}:{target.port}"

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    # the order matters: an inner cause (name, certificate) is also an outer ConnectError
    if caused_by(httpx2.ProxyError):
        hint = "set NO_PROXY for this host, or fix HTTPS_PROXY"
        return Fault("proxy", f"the proxy refuses the connection to {where}", hint=hint)
    if caused_by(socket.gaierror):
        return Fault(
            "dns",
            f"the name {target.host!r} can't be resolved",
            hint="check the spelling of the host name. Service names resolve only inside their stack:"
            " from this machine, use 127.0.0.1",
        )
    if caused_by(ConnectionRefusedError):
        return Fault(
            "refused",
            f"nothing listens on {where}",
            hint="check with `docker compose ps` that the service is up and publishes this port. A server"
            " that is still loading its model refuses connections: wait with `--wait SECONDS`",
        )
    # SSLCertVerificationError is a subclass of SSLError, so it is tested first
    if caused_by(ssl.SSLCertVerificationError):
        reason = next(c.verify_message for c in causes if isinstance(c, ssl.SSLCertVerificationError))
        hint = (
            "set SSL_CERT_FILE to the CA's certificate file, and use the host name that is in the server's certificate"
        )
        return Fault("certificate", f"the TLS certificate of {where} is not trusted: {reason}", hint=hint)
    if caused_by(ssl.SSLError):
        return _tls_failed(target)
    # a bare TimeoutError comes from a socket of the `network` checks; the client's own errors contain one too
    if caused_by(httpx2.ConnectTimeout) or isinstance(error, TimeoutError):
        return Fault(
            "connect-timeout",
            f"{where} does not accept the connection in time",
            hint="a firewall may drop the packets, the host may be down, or the URL may have the wrong host",
        )
    if caused_by(httpx2.SSEError):
        return Fault(
            "event",
            f"{where} sent an event larger than 1 MiB, which clients reject",
            hint="an event normally contains one or a few tokens: check that this URL streams completions",
        )
    if caused_by(httpx2.TimeoutException):
        # servers of some other protocols send a banner, then wait for more input than one line
        if target.base_url.startswith("http:") and (banner := read_banner(target.host, target.port)):
            return _not_http(where, banner)
        return Fault(
            "timeout",
            f"{where} accepted the request, but sent nothing for {timeout:g} s",
            hint="the engine may hang or be overloaded: see `docker compose logs`, or raise --timeout",
        )
    if any(isinstance(cause, OSError) and cause.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH) for cause in causes):
        return Fault(
            "unreachable", f"there is no route to {where}", hint="check the address and the network of this machine"
        )
    details = " ".join(str(cause) for cause in causes if isinstance(cause, httpx2.RemoteProtocolError))
    # h11 and httpcore raise one class for all three causes; "without sending" means a dropped connection
    if "incomplete" in details or "complete message body" in details:
        return Fault(
            "cut",
            f"{where} closed the connection in the middle of its response",
            hint="the server died, or a proxy ended the connection: see `docker compose logs`",
        )
    if details and "without sending" not in details and not is_tls_port(target.host, target.port):
        return _not_http(where, read_banner(target.host, target.port))
    if caused_by(ConnectionResetError, BrokenPipeError, httpx2.RemoteProtocolError, httpx2.NetworkError):
        return _connection_dropped(target, where)
    if caused_by(httpx2.DecodingError):
        return Fault(
            "encoding",
            f"the response body from {where} does not match its header `Content-Encoding`",
            hint="check the proxies between this machine and the server",
        )
    return Fault("other", f"no response from {where}: {type(causes[-1]).__name__}", hint="see `docker compose logs`")


def is_tls_port(host: str, port: int) -> bool:
    """Whether `host:port` completes a TLS handshake, whatever its certificate; nothing else is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # only whether the port answers a handshake counts, so no certificate is verified
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        suppress(OSError),
        socket.create_connection((host, port), PROBE_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host),
    ):
        return True
    return False


def is_http_port(host: str, port: int) -> bool:
    """Whether `host:port` answers a plain HTTP request; no key is sent."""
    with suppress(OSError), socket.create_connection((host, port), PROBE_SECONDS) as plain:
        plain.settimeout(PROBE_SECONDS)
        plain.sendall(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii", "ignore"))
        # any status shows HTTP, also 400 or 404
        return plain.recv(5) == b"HTTP/"
    return False


def read_banner(host: str, port: int) -> str:
    """The first line that `host:port` sends unasked, as mail, SSH and database servers do; "" if there is none.

    HTTP servers wait for the client. Nothing is sent.
    """
    with suppress(OSError), socket.create_connection((host, port), PROBE_SECONDS) as plain:
        plain.settimeout(BANNER_SECONDS)
        lines = plain.recv(200).decode("ascii", "replace").splitlines()
        return "".join(one for one in lines[0] if one.isprintable())[:80] if lines else ""
    return ""


def _not_http(where: str, banner: str) -> Fault:
    sent = f": it sent {banner!r}" if banner else ""
    return Fault("protocol", f"{where} does not speak HTTP{sent}", hint="check the port")


def _tls_failed(target: Target) -> Fault:
    where = f"{target.host}:{target.port}"
    # https on a plain HTTP port is the usual reason, and the hint shows the correct URL
    if is_http_port(target.host, target.port):
        url = target.base_url.replace("https:", "http:", 1)
        return Fault("plain", f"{where} speaks plain HTTP, but the URL says https", hint=f"use {url}")
    return Fault("tls", f"the TLS handshake with {where} failed", hint="check the port and the log of the TLS proxy")


def _connection_dropped(target: Target, where: str) -> Fault:
    """The connection was accepted and dropped: by Docker's proxy, by a TLS port, or by a dying server."""
    if target.base_url.startswith("http:") and is_tls_port(target.host, target.port):
        url = target.base_url.replace("http:", "https:", 1)
        return Fault("tls-port", f"{where} speaks TLS, but the URL says http", hint=f"use {url}")
    if target.base_url.startswith("http:") and (banner := read_banner(target.host, target.port)):
        return _not_http(where, banner)
    return Fault(
        "reset",
        f"{where} accepted the connection and dropped it",
        hint="Docker's port proxy drops connections while the program in the container is not listening yet: wait with"
        " `--wait SECONDS`. Another possible cause is a dying server: see `docker compose ps` and"
        " `docker compose logs`",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    # exception chains may be circular
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
