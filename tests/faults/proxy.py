"""A proxy in front of a real or recorded engine that injects one fault into one kind of request.

A fault is a script: a function that receives a `FaultContext` (the request, and on demand the response of the upstream)
and yields steps. Bytes are sent as they are, numbers are seconds of silence, `RESET` drops the connection with an RST.
When the script ends, the connection is closed. All other requests are relayed byte for byte.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["RESET", "FaultContext", "Proxy", "Request", "Response", "Script", "Upstream", "serve"]

MAX_SECONDS = 60.0  # the longest silence, so that no thread outlives its test by much


class _Reset:
    def __repr__(self) -> str:
        return "RESET"


RESET = _Reset()
Step = bytes | float | _Reset


@dataclass(frozen=True)
class Request:
    """A request as received; `raw` is all of it. Faults of connections get an empty one."""

    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    raw: bytes = b""

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError:
            return {}

    @property
    def kind(self) -> str:
        """`chat`, `stream`, `models`, or else the path."""
        if self.path.endswith("/v1/chat/completions"):
            return "stream" if self.json().get("stream") else "chat"
        return "models" if self.path.endswith("/v1/models") else self.path


@dataclass(frozen=True)
class Response:
    """A whole response, without its transfer encoding."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @classmethod
    def of(cls, body: bytes, kind: str = "application/json", status: int = 200, *headers: tuple[str, str]) -> Response:
        return cls(status, (("Content-Type", kind), *headers), body)

    def json(self) -> Any:
        return json.loads(self.body)

    def with_json(self, data: Any) -> Response:
        return replace(self, body=json.dumps(data).encode())

    @property
    def events(self) -> list[bytes]:
        """The events of a stream, each with its blank line."""
        return [event + b"\n\n" for event in self.body.replace(b"\r\n", b"\n").strip().split(b"\n\n")]

    def head(self, *more: tuple[str, str], version: str = "1.1") -> bytes:
        """Status line and headers; the caller adds the headers that give the length of the body."""
        kept = [(name, value) for name, value in self.headers if name.lower() not in ("content-length", "connection")]
        lines = [f"HTTP/{version} {self.status} {http.client.responses.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in (*kept, *more)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def whole(self) -> bytes:
        """The whole response, with a Content-Length."""
        return self.head(("Content-Length", str(len(self.body)))) + self.body

    def chunked_head(self) -> bytes:
        return self.head(("Transfer-Encoding", "chunked"))


def chunked(*parts: bytes, last: bool = True) -> bytes:
    """`parts` as HTTP/1.1 chunks; without `last`, the final chunk is missing."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part) + (b"0\r\n\r\n" if last else b"")


class Upstream:
    """The engine behind proxies, a port of 127.0.0.1. It gets the same request only once, so that it stays fast."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, ...], Future[Response]] = {}

    def ask(self, request: Request) -> Response:
        """The engine's response to `request`."""
        same = (request.method, request.path, request.headers.get("authorization", ""), request.body.decode("latin-1"))
        with self._lock:
            is_first = same not in self._answers
            answer = self._answers.setdefault(same, Future())
        if is_first:
            try:
                answer.set_result(self._send(request))
            except BaseException as error:
                answer.set_exception(error)
        return answer.result()

    def _send(self, request: Request) -> Response:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=MAX_SECONDS)
        try:
            kept = {name: value for name, value in request.headers.items() if name not in ("host", "connection")}
            connection.request(request.method, request.path, request.body or None, kept)
            answer = connection.getresponse()
            headers = tuple((n, v) for n, v in answer.getheaders() if n.lower() != "transfer-encoding")
            return Response(answer.status, headers, answer.read())
        finally:
            connection.close()


@dataclass
class FaultContext:
    """One request that gets the fault."""

    request: Request
    proxy: Proxy

    @property
    def timeout(self) -> float:
        return self.proxy.timeout

    def upstream(self) -> Response:
        """The response of the engine itself."""
        return self.proxy.upstream.ask(self.request)


Script = Callable[[FaultContext], Iterable[Step]]


@dataclass
class Proxy:
    """A running proxy.

    `to` is the kind of request that gets the fault, `answers` (every completion that is not streamed), `all`, or
    `connection` for a fault before anything is read. `timeout` is that of the check, for faults that stay within it.
    `waiting` is for faults that involve two requests.
    """

    upstream: Upstream
    to: str
    script: Script
    key: str | None
    timeout: float = 1.0
    port: int = 0
    tls: ssl.SSLContext | None = None
    seen: list[Request] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: list[Any] = field(default_factory=list)

    def applies_to(self, request: Request) -> bool:
        """Whether this request gets the fault; the engine itself refuses requests without the right key."""
        if self.to == "all":
            return True
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return False
        # `load` uses the path on which it can identify answers
        return request.kind in (("chat", "/v1/completions") if self.to == "answers" else (self.to,))

    def handle(self, client: socket.socket) -> None:
        if self.tls:
            client.settimeout(MAX_SECONDS)
            client = self.tls.wrap_socket(client, server_side=True)
        with client:
            client.settimeout(MAX_SECONDS)
            # faults of connections happen before anything is read
            request = Request() if self.to == "connection" else read_request(client)
            if request is None:
                return
            self.seen.append(request)
            if self.to == "connection" or self.applies_to(request):
                self.play(client, self.script(FaultContext(request, self)))
            else:
                self.relay(client, request)

    def play(self, client: socket.socket, steps: Iterable[Step]) -> None:
        for step in steps:
            if isinstance(step, _Reset):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if isinstance(step, bytes):
                client.sendall(step)
            elif self.is_gone_after(client, step):
                return

    def is_gone_after(self, client: socket.socket, seconds: float) -> bool:
        """Stays silent for `seconds`; true if the client disconnected or the test ended meanwhile."""
        left = min(seconds, MAX_SECONDS)
        while left > 0 and not self.stopped.wait(min(left, 0.05)):
            left -= 0.05
            if not self.tls and select.select([client], [], [], 0)[0] and not client.recv(1, socket.MSG_PEEK):
                return True
        return self.stopped.is_set()

    def relay(self, client: socket.socket, request: Request) -> None:
        head, _, body = request.raw.partition(b"\r\n\r\n")
        # with Connection: close, the end of the response needs no parsing
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        with socket.create_connection(("127.0.0.1", self.upstream.port), MAX_SECONDS) as engine:
            engine.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
            while part := engine.recv(65536):
                client.sendall(part)


def read_request(client: socket.socket) -> Request | None:
    """Reads one request; None if the client sends none (a port probe, a TLS handshake)."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        part = client.recv(65536)
        raw += part
        # a TLS handshake is no request, and HTTP servers close the connection at once
        if not part or raw[:1] == b"\x16" or len(raw) > 1_000_000:
            return None
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    if first.count(" ") != 2:
        return None
    method, path, _ = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        part = client.recv(65536)
        if not part:
            return None
        body += part
    return Request(method, path, headers, body, head + b"\r\n\r\n" + body)


@contextlib.contextmanager
def serve(
    upstream: Upstream,
    to: str,
    script: Script,
    key: str | None,
    *,
    timeout: float = 1.0,
    host: str = "127.0.0.1",
    certificate: Path | None = None,
) -> Iterator[Proxy]:
    """A proxy on a free port of `host` in front of `upstream`; over TLS with a certificate."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=64)
    proxy = Proxy(upstream, to, script, key, timeout, listener.getsockname()[1])
    if certificate:
        proxy.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        proxy.tls.load_cert_chain(certificate)
    threads: list[threading.Thread] = []

    def one(client: socket.socket) -> None:
        # clients that give up are the point of most faults
        with client, contextlib.suppress(OSError, http.client.HTTPException):
            proxy.handle(client)

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            if proxy.stopped.is_set():
                client.close()
                return
            threads.append(threading.Thread(target=one, args=(client,), daemon=True))
            threads[-1].start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stopped.set()
        with contextlib.suppress(OSError), socket.create_connection((host, proxy.port), 5):
            pass
        thread.join()
        listener.close()
        for handler in threads:
            handler.join(5)
