"""Why a request got no HTTP response: one kind, one message and one hint for each cause.

The HTTP client reports most of them as the same ConnectError, so the causes below it (`__cause__`) are read.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress

from stackgen.check.target import Target

__all__ = ["Fault", "classify", "speaks_http", "speaks_tls"]

# the port has just accepted a connection, so it answers fast or not at all
PROBE_SECONDS = 3.0
# who greets does it as soon as the connection stands
GREETING_SECONDS = 0.3


class Fault(Exception):
    """No response, or one that can't be read. `kind` is one word for tests and machines."""

    def __init__(self, kind: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint


def classify(error: BaseException, target: Target, timeout: float) -> Fault:
    """The fault behind an exception of httpx2 (or of openai, which wraps those)."""
    import httpx2

    causes = tuple(_causes(error))
    where = f"{target.host}:{target.port}"

    def caused(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    # the order matters: an inner cause (name, certificate) is also an outer ConnectError
    if caused(httpx2.ProxyError):
        return Fault("proxy", f"the proxy for {where} refuses", "set NO_PROXY for this host, or mend HTTPS_PROXY")
    if caused(socket.gaierror):
        return Fault(
            "dns",
            f"the name {target.host!r} can't be resolved",
            "check the spelling; services of a stack are known by name only inside it: from this machine use 127.0.0.1",
        )
    if caused(ConnectionRefusedError):
        return Fault(
            "refused",
            f"nothing listens on {where}",
            "look at `docker compose ps`: is the service up, and is this its published port? A model that is still"
            " loading refuses as well: --wait SECONDS",
        )
    # a subclass of SSLError, so it comes first
    if caused(ssl.SSLCertVerificationError):
        reason = next(c.verify_message for c in causes if isinstance(c, ssl.SSLCertVerificationError))
        hint = "name the CA's file in SSL_CERT_FILE, and use the host name that the certificate holds"
        return Fault("certificate", f"the TLS certificate of {where} is not trusted: {reason}", hint)
    if caused(ssl.SSLError):
        return _not_tls(target)
    # the bare one comes from a socket of `network`; the client's own hold one too
    if caused(httpx2.ConnectTimeout) or isinstance(error, TimeoutError):
        return Fault("connect-timeout", f"{where} accepts no connection in time",
                     "a firewall drops the packets, or the host is down or the wrong one")  # fmt: skip
    if caused(httpx2.SSEError):
        return Fault("event", f"{where} sent an event of more than 1 MiB, which clients don't take",
                     "an event holds a token or a few: is this the stream of a completion?")  # fmt: skip
    if caused(httpx2.TimeoutException):
        # a server of another protocol greets, and waits for more than one line
        if target.base_url.startswith("http:") and (greeting := says(target.host, target.port)):
            return _no_http(where, greeting)
        return Fault(
            "timeout",
            f"{where} took the request and was silent for {timeout:g} s",
            "the engine may hang or be overloaded: look at `docker compose logs`, or allow more by --timeout",
        )
    if any(isinstance(cause, OSError) and cause.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH) for cause in causes):
        return Fault("unreachable", f"there is no route to {where}", "check the address and this machine's network")
    said = " ".join(str(cause) for cause in causes if isinstance(cause, httpx2.RemoteProtocolError))
    # h11 and httpcore have one class for all three; "disconnected without sending a response" is the drop
    if "incomplete" in said or "complete message body" in said:
        return Fault("cut", f"{where} broke off in the middle of its answer",
                     "the server died, or a proxy gave up on it: look at `docker compose logs`")  # fmt: skip
    if said and "without sending" not in said and not speaks_tls(target.host, target.port):
        return _no_http(where, says(target.host, target.port))
    if caused(ConnectionResetError, BrokenPipeError, httpx2.RemoteProtocolError, httpx2.NetworkError):
        return _dropped(target, where)
    if caused(httpx2.DecodingError):
        return Fault("encoding", f"the body from {where} is not encoded as its header says", "look at what proxies do")
    return Fault("other", f"no response from {where}: {type(causes[-1]).__name__}", "look at `docker compose logs`")


def speaks_tls(host: str, port: int) -> bool:
    """Whether `host:port` completes a TLS handshake, whatever its certificate; nothing else is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # nothing is sent and nothing believed: only whether the port answers a handshake counts
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        suppress(OSError),
        socket.create_connection((host, port), PROBE_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host),
    ):
        return True
    return False


def speaks_http(host: str, port: int) -> bool:
    """Whether `host:port` answers a plain HTTP request; no key is sent."""
    with suppress(OSError), socket.create_connection((host, port), PROBE_SECONDS) as plain:
        plain.settimeout(PROBE_SECONDS)
        plain.sendall(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii", "ignore"))
        # any answer will do, also 400 or 404
        return plain.recv(5) == b"HTTP/"
    return False


def says(host: str, port: int) -> str:
    """The first line that `host:port` sends on its own account, as servers of mail, SSH and databases do; "" if none.

    HTTP servers wait for the client. Nothing is sent.
    """
    with suppress(OSError), socket.create_connection((host, port), PROBE_SECONDS) as plain:
        plain.settimeout(GREETING_SECONDS)
        lines = plain.recv(200).decode("ascii", "replace").splitlines()
        return "".join(one for one in lines[0] if one.isprintable())[:80] if lines else ""
    return ""


def _no_http(where: str, greeting: str) -> Fault:
    said = f": {greeting!r}" if greeting else ""
    return Fault("protocol", f"{where} answers with something that is no HTTP{said}", "is this the right port?")


def _not_tls(target: Target) -> Fault:
    where = f"{target.host}:{target.port}"
    if speaks_http(target.host, target.port):
        url = target.base_url.replace("https:", "http:", 1)
        return Fault("plain", f"{where} speaks plain HTTP, and the URL says https", f"use {url}")
    return Fault("tls", f"the TLS handshake with {where} failed", "is this the right port? look at the TLS proxy's log")


def _dropped(target: Target, where: str) -> Fault:
    """The connection was accepted and dropped: by Docker's proxy, by a TLS port, or by a dying server."""
    if target.base_url.startswith("http:") and speaks_tls(target.host, target.port):
        url = target.base_url.replace("http:", "https:", 1)
        return Fault("tls-port", f"{where} speaks TLS, and the URL says http", f"use {url}")
    if target.base_url.startswith("http:") and (greeting := says(target.host, target.port)):
        return _no_http(where, greeting)
    return Fault(
        "reset",
        f"{where} accepted the connection and dropped it",
        "Docker's port proxy does this while the program in the container doesn't listen yet (--wait SECONDS), and a"
        " server that dies does too: look at `docker compose ps` and `docker compose logs`",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    # exception chains may be circular
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
