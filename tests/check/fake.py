"""A fake upstream server, for faults that a real server can't produce on demand.

It replays recorded responses of real servers (`recordings/`) and requires a key like vLLM and FastChat do. A test
replaces single routes with a fault. The live tests use real servers.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).parent / "recordings"
KEY = "token-abc-123"


@dataclass(frozen=True)
class Answer:
    """A response. `pieces` are sent as chunks, `pause` seconds before each; `cut` drops the connection after them."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    pieces: tuple[bytes, ...] | None = None
    pause: float = 0.0
    cut: bool = False
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Request:
    """A request as received."""

    method: str
    path: str
    authorization: str | None
    body: bytes

    @property
    def route(self) -> str:
        return f"{self.method} {self.path}"

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


Route = Answer | Callable[[Request], Answer]


def recorded(engine: str, name: str) -> Answer:
    """A recorded response; a stream has one piece for each event."""
    head, _, body = (RECORDINGS / engine / f"{name}.txt").read_bytes().replace(b"\r\n", b"\n").partition(b"\n\n")
    status, *lines = head.decode().split("\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    kind = headers.get("content-type", "")
    pieces = None
    if "event-stream" in kind:
        pieces = tuple(event + b"\n\n" for event in body.strip().split(b"\n\n"))
    elif "content-length" in headers:
        body = body[: int(headers["content-length"])]
    return Answer(int(status.split()[1]), body, kind, pieces)


def json_answer(data: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(data).encode())


def events(*data: Any, done: bool = True, **how: Any) -> Answer:
    """A stream of events: strings as they are, everything else as JSON."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in data] + (["[DONE]"] if done else [])
    return Answer(200, b"", "text/event-stream", tuple(f"data: {text}\n\n".encode() for text in texts), **how)


def chunk(
    content: str | None = None, *, role: str | None = None, finish: str | None = None, **more: Any
) -> dict[str, Any]:
    """One chunk of a stream as documented."""
    delta = {name: value for name, value in (("role", role), ("content", content)) if value is not None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1795385683,
        "model": "tiny",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **more,
    }


USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
USAGE_CHUNK = chunk() | {"choices": [], "usage": USAGE}
GOOD_STREAM = (chunk("", role="assistant"), chunk("Par"), chunk("is", finish="stop"), USAGE_CHUNK)


def with_usage_so_far(chunks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chunks of a stream as vLLM sends them with `--enable-force-include-usage`; the last one has the usage."""
    *first, last = chunks
    prompt = last["usage"]["prompt_tokens"]
    return [
        *(one | {"usage": {"prompt_tokens": prompt, "completion_tokens": sent, "total_tokens": prompt + sent}}
          for sent, one in enumerate(first)),
        last,
    ]  # fmt: skip


def completion(**changes: Any) -> dict[str, Any]:
    """The recorded completion of vLLM with top-level `changes`."""
    data: dict[str, Any] = json.loads(recorded("vllm-0.32.0", "chat_ok").body)
    return data | changes


def model_list(*names: str, owner: str = "vllm") -> dict[str, Any]:
    cards = [{"id": name, "object": "model", "created": 1795385672, "owned_by": owner} for name in names]
    return {"object": "list", "data": cards}


def vllm_routes() -> dict[str, Route]:
    def take(name: str) -> Answer:
        return recorded("vllm-0.32.0", name)

    return {
        "GET /v1/models": take("get_v1_models_key"),
        "POST /v1/chat/completions": lambda request: _chat(request, take("chat_ok"), take("chat_stream"),
                                                           take("chat_wrongmodel")),
        "GET /health": take("get_health_nokey"),
        "GET /version": take("get_version_nokey"),
        "POST /invocations": take("invocations_nokey"),
        "POST /tokenize": take("tokenize_nokey"),
    }  # fmt: skip


def fastchat_routes() -> dict[str, Route]:
    def take(name: str) -> Answer:
        return recorded("fastchat-0.2.36", name)

    return {
        "GET /v1/models": take("models"),
        "POST /v1/chat/completions": lambda request: _chat(request, take("chat"), take("stream"), take("wrong-model")),
        "POST /api/v1/chat/completions": take("api-v1-chat"),
        "POST /api/v1/token_check": take("api-v1-token-check"),
    }


def _chat(request: Request, whole: Answer, streamed: Answer, unknown: Answer) -> Answer:
    data = request.json()
    if data.get("model") != "tiny":
        return unknown
    return streamed if data.get("stream") else whole


@dataclass
class Fake:
    """A running fake. `routes` maps `GET /path` to an answer; `seen` holds every request in order."""

    routes: dict[str, Route]
    key: str | None
    refusal: Answer
    port: int = 0
    scheme: str = "http"
    seen: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"

    def stream(self, *answers: Answer) -> None:
        """Replaces the streamed completion with these in turn and repeats the last; the whole one is unchanged."""
        self._replace(*answers, streamed=True)

    def chat(self, answer: Answer) -> None:
        """Replaces the whole completion; the streamed one is unchanged."""
        self._replace(answer, streamed=False)

    def _replace(self, *answers: Answer, streamed: bool) -> None:
        before, left = self.routes["POST /v1/chat/completions"], list(answers)

        def route(request: Request) -> Answer:
            if bool(request.json().get("stream")) is streamed:
                return left.pop(0) if len(left) > 1 else left[0]
            return before(request) if callable(before) else before

        self.routes["POST /v1/chat/completions"] = route

    def answer(self, request: Request) -> Answer:
        self.seen.append(request)
        guarded = request.path.startswith("/v1")
        if guarded and self.key is not None and request.authorization != f"Bearer {self.key}":
            return self.refusal
        route = self.routes.get(request.route, Answer(404, b'{"detail":"Not Found"}'))
        return route(request) if callable(route) else route


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        answer = self.server.fake.answer(Request(self.command, self.path, self.headers.get("Authorization"), body))
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.content_type:
            self.send_header("Content-Type", answer.content_type)
        if answer.pieces is None:
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            time.sleep(answer.pause)
            self.wfile.write(answer.body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in answer.pieces:
            time.sleep(answer.pause)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if answer.cut:
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    do_POST = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Keeps stderr quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # the fake itself must not refuse a thousand concurrent checks
    request_queue_size = 512
    fake: Fake

    def handle_error(self, *_: object) -> None:
        """Some tests are about clients that give up and handshakes that fail."""


@contextlib.contextmanager
def serve(engine: str = "vllm", key: str | None = KEY, certificate: Path | None = None) -> Iterator[Fake]:
    """A fake of `engine` on a free port of the loopback interface; over TLS if a certificate is given."""
    if engine == "vllm":
        fake = Fake(vllm_routes(), key, recorded("vllm-0.32.0", "chat_nokey"))
    else:
        fake = Fake(fastchat_routes(), key, recorded("fastchat-0.2.36", "models-nokey"))
    server = _Server(("127.0.0.1", 0), _Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        fake.scheme = "https"
    server.fake = fake
    fake.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def raw_server(behave: Callable[[socket.socket], None], port: int = 0) -> Iterator[int]:
    """A port (a free one unless given) that passes each connection to `behave` and then closes it."""
    listener = socket.create_server(("127.0.0.1", port))
    stop = threading.Event()

    def run() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if stop.is_set():
                    return
                with contextlib.suppress(OSError):
                    behave(connection)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        with contextlib.suppress(OSError), socket.create_connection(listener.getsockname(), 5):
            pass
        thread.join()
        listener.close()


def reset(connection: socket.socket) -> None:
    """Reads the request and answers with RST, like Docker's proxy for a container that is not listening."""
    connection.recv(65536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def slow(answer: Answer, pause: float) -> Answer:
    return replace(answer, pause=pause)
