"""The fault gallery: each row is a fault, the requests that get it, and what the check must report."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from stackgen.plan import Dialect
from tests.faults.proxy import RESET, FaultContext, Response, Script, Step, chunked

__all__ = ["ROWS", "UNCHANGED", "Row"]

MIB = 1024 * 1024
FULL_EVENT = b"data: " + b"y" * (10 * MIB) + b"\n\n"


@dataclass(frozen=True)
class Row:
    """One fault.

    - `to`: which requests get it, see `Proxy`. `script`: what they get.
    - `fails`: the only check that must fail (`a|b`: one of both); empty if the endpoint is healthy.
    - `warns`: a check that must warn. `says`: a regular expression for the message of either, or for a note.
    - `also`: checks that may fail too, because they find the same fault.
    - `waits`: how many timeouts the check may take.
    - `stretch`: a factor of the row's timeout, if none of its pauses may count as a silence: a busy machine pauses a
      program for a second.
    - `needs`: what the target must be, see `gallery._start_row`. `real`: whether the row is also run in front of real
      engines, if its fault is in their answers: not if it takes ten of their timeouts.
    - `heavy`: memory is measured. `pending`: the reason for a known bug of the check; the row is expected to fail.
    """

    name: str
    to: str
    script: Script
    fails: str = ""
    says: str = ""
    warns: str = ""
    also: tuple[str, ...] = ()
    waits: float = 0.0
    stretch: int = 1
    needs: str = ""
    real: bool = True
    heavy: bool = False
    profile: str = "default"
    select: tuple[str, ...] = field(default=())
    pending: str = ""

    @property
    def is_slow(self) -> bool:
        """Whether the row mostly waits."""
        return self.waits > 0 and not self.heavy

    @property
    def alone(self) -> bool:
        """Whether nothing else may run in this process: memory is measured for all of it, and so are milliseconds."""
        return self.heavy or self.script is buffered

    def fits(self, dialect: Dialect, same: bool) -> bool:
        """Whether the row belongs in front of such a real engine; `same`: whole and streamed answers have one text.

        Faults of connections and of every request never reach an engine. Memory rows measure the check itself.
        """
        return (
            self.real
            and not self.heavy
            and self.to not in ("connection", "all", "none")
            and (self.needs != "same" or same)
            and (self.needs != "usage" or dialect.stream_usage)
            and (self.needs != "alive" or dialect.liveness_path is not None)
        )


# what is sent instead of the response


def answer(body: bytes | str, kind: str = "application/json", status: int = 200, *headers: tuple[str, str]) -> Script:
    """The same response to every request."""
    content = body.encode() if isinstance(body, str) else body
    return lambda _: [Response.of(content, kind, status, *headers).whole()]


def error(status: int, message: str = "", *headers: tuple[str, str]) -> Script:
    return answer(json.dumps({"error": {"message": message, "code": status}}), "application/json", status, *headers)


def steps(*given: Step) -> Script:
    return lambda _: given


def edited(change: Callable[[Any], Any]) -> Script:
    """The engine's own JSON with a change."""

    def script(context: FaultContext) -> Iterator[Step]:
        real = context.upstream()
        yield real.with_json(change(real.json())).whole()

    return script


def rewritten(change: Callable[[bytes], bytes], *headers: tuple[str, str]) -> Script:
    """The engine's own body with changed bytes."""

    def script(context: FaultContext) -> Iterator[Step]:
        real = context.upstream()
        yield replace(real, body=change(real.body), headers=(*real.headers, *headers)).whole()

    return script


def typed(kind: str) -> Script:
    """The engine's own body with another content type."""

    def script(context: FaultContext) -> Iterator[Step]:
        yield Response.of(context.upstream().body, kind).whole()

    return script


def wire(write: Callable[[FaultContext, Response], Iterator[Step]]) -> Script:
    """What `write` makes of the engine's own response, byte for byte."""
    return lambda context: write(context, context.upstream())


def streamed(
    change: Callable[[list[bytes]], list[bytes]], *, last: bool = True, ending: Step | None = None, pause: float = 0.0
) -> Script:
    """The engine's own events with a change, one event per chunk; without `last`, the chunked body has no end.

    `pause`: seconds between events. Without a pause, the stream of a slow engine looks buffered.
    """

    def script(context: FaultContext) -> Iterator[Step]:
        real = context.upstream()
        yield real.chunked_head()
        for event in change(real.events):
            yield chunked(event, last=False)
            if pause:
                yield pause
        if last:
            yield b"0\r\n\r\n"
        if ending is not None:
            yield ending

    return script


def each(change: Callable[[dict[str, Any], int], Any]) -> Callable[[list[bytes]], list[bytes]]:
    """Applies `change` to the data and index of every event except [DONE]; None removes the event."""

    def apply(events: list[bytes]) -> list[bytes]:
        found = []
        for number, event in enumerate(events):
            if b"[DONE]" in event:
                found.append(event)
            elif (data := change(json.loads(event.removeprefix(b"data:")), number)) is not None:
                found.append(sse(data))
        return found

    return apply


def sse(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


# faults that need more than one line


def hang(_: FaultContext) -> Iterator[Step]:
    yield 60.0


def hang_in_body(context: FaultContext) -> Iterator[Step]:
    whole = context.upstream().whole()
    yield whole[:-20]
    yield 60.0


def hang_in_stream(context: FaultContext) -> Iterator[Step]:
    real = context.upstream()
    yield real.chunked_head() + chunked(*real.events[:3], last=False)
    yield 60.0


def drip(content: bytes, pause: float, times: float) -> Iterator[Step]:
    """Byte by byte, for at most `times` seconds."""
    end = time.monotonic() + times
    for byte in content:
        yield bytes([byte])
        if time.monotonic() > end:
            return
        yield pause


def drip_body(context: FaultContext) -> Iterator[Step]:
    real = context.upstream()
    yield real.head(("Content-Length", str(len(real.body))))
    yield from drip(real.body, 0.3 * context.timeout, 9 * context.timeout)


def drip_headers(context: FaultContext) -> Iterator[Step]:
    yield from drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 5000, 0.3 * context.timeout, 9 * context.timeout)


def drip_error(context: FaultContext) -> Iterator[Step]:
    yield b"HTTP/1.1 500 X\r\nContent-Length: 5000\r\n\r\n"
    yield from drip(b"y" * 5000, 0.3 * context.timeout, 9 * context.timeout)


def drip_events(context: FaultContext) -> Iterator[Step]:
    """Complete events, each within the timeout, without an end."""
    real = context.upstream()
    yield real.chunked_head() + chunked(real.events[0], last=False)
    for _ in range(60):
        yield chunked(real.events[1], last=False)
        yield 0.2 * context.timeout


def drip_one_event(context: FaultContext) -> Iterator[Step]:
    """The bytes of an event that never completes."""
    real = context.upstream()
    yield real.chunked_head() + chunked(real.events[0], b"data: ", last=False)
    for _ in range(80):
        yield chunked(b"y", last=False)
        yield 0.2 * context.timeout


def endless_comments(context: FaultContext) -> Iterator[Step]:
    """Only keep-alive comments: what a proxy sends while the engine hangs."""
    yield context.upstream().chunked_head()
    for _ in range(80):
        yield chunked(b": keep-alive\n\n", last=False)
        yield 0.2 * context.timeout


def endless_empty_deltas(context: FaultContext) -> Iterator[Step]:
    """Only events like the first one, which has a role and no text."""
    real = context.upstream()
    yield real.chunked_head()
    for _ in range(80):
        yield chunked(real.events[0], last=False)
        yield 0.2 * context.timeout


def slow_events(context: FaultContext) -> Iterator[Step]:
    """One token every 0.3 timeouts: longer than two timeouts in total, but each token in time."""
    real = context.upstream()
    yield real.chunked_head()
    for event in real.events:
        yield chunked(event, last=False)
        yield 0.3 * context.timeout
    yield b"0\r\n\r\n"


def endless_informational(context: FaultContext) -> Iterator[Step]:
    for _ in range(80):
        yield b"HTTP/1.1 102 Processing\r\n\r\n"
        yield 0.2 * context.timeout


def endless_events(context: FaultContext) -> Iterator[Step]:
    real = context.upstream()
    yield real.chunked_head() + chunked(real.events[0], last=False)
    some = chunked(*([real.events[1]] * 100), last=False)
    while True:
        yield some


def endless_big_events(context: FaultContext) -> Iterator[Step]:
    """Events of half a MiB each, without text."""
    real = context.upstream()
    yield real.chunked_head() + chunked(real.events[0], last=False)
    data = json.loads(real.events[1].removeprefix(b"data:")) | {"choices": [], "padding": "y" * (MIB // 2)}
    big = chunked(sse(data), last=False)
    while True:
        yield big


def many_choices(context: FaultContext) -> Iterator[Step]:
    """Events with a hundred thousand wrong choices each."""
    real = context.upstream()
    yield real.chunked_head() + chunked(real.events[0], last=False)
    data = json.loads(real.events[1].removeprefix(b"data:")) | {"choices": [0] * 100_000}
    wrong = chunked(sse(data), last=False)
    for _ in range(5):
        yield wrong
    yield chunked(sse(b"[DONE]"))


def endless_body(context: FaultContext) -> Iterator[Step]:
    yield context.upstream().chunked_head()
    some = chunked(b"y" * 65536, last=False)
    while True:
        yield some


@lru_cache(maxsize=1)
def bomb() -> bytes:
    """200 MiB of white space in 200 KB, compressed piece by piece."""
    packer = zlib.compressobj(9, wbits=31)
    first, block = (packer.compress(b" " * MIB) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    # independent blocks; nobody reads as far as the checksum
    return first + block * 199


def zip_bomb(context: FaultContext) -> Iterator[Step]:
    yield replace(context.upstream(), body=bomb()).head(
        ("Content-Encoding", "gzip"), ("Content-Length", str(len(bomb())))
    )
    yield bomb()


def buffered(context: FaultContext) -> Iterator[Step]:
    """All events at the end, as from a proxy that buffered them."""
    real = context.upstream()
    text = [event for event in real.events[1:] if b'"content"' in event]
    # enough of the engine's own events, repeated, to show buffering
    many = [real.events[0], *(text[:1] * 30), *real.events[-3:]]
    # longer than a slow engine takes for the one token with which the check compares it
    yield max(0.5, 0.25 * context.timeout)
    yield real.chunked_head() + chunked(*many)


def in_small_chunks(context: FaultContext) -> Iterator[Step]:
    real = context.upstream()
    yield real.chunked_head() + chunked(*(bytes([byte]) for byte in real.body))


def with_extensions(context: FaultContext) -> Iterator[Step]:
    real = context.upstream()
    yield real.chunked_head()
    yield b'%x;name=value;other="q"\r\n%s\r\n0;last\r\nX-Trailer: 1\r\n\r\n' % (len(real.body), real.body)


def garbage_chunk_size(context: FaultContext) -> Iterator[Step]:
    yield context.upstream().chunked_head() + b"zz\r\n{}\r\n0\r\n\r\n"


def cut_chunks(context: FaultContext) -> Iterator[Step]:
    real = context.upstream()
    yield real.chunked_head() + chunked(real.body[: len(real.body) // 2], last=False)


def short_body(context: FaultContext) -> Iterator[Step]:
    yield context.upstream().whole()[:-20]


def reset_in_body(context: FaultContext) -> Iterator[Step]:
    yield context.upstream().whole()[:-20]
    yield 0.1
    yield RESET


def informational(context: FaultContext) -> Iterator[Step]:
    yield b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + context.upstream().whole()


def switching(_: FaultContext) -> Iterator[Step]:
    yield b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    yield 60.0


def headers_in(case: Callable[[str], str]) -> Script:
    def script(context: FaultContext) -> Iterator[Step]:
        real = context.upstream()
        head, _, body = real.whole().partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        parts = [line.partition(": ") for line in lines]
        lines = [f"{case(name)}: {value}" for name, _, value in parts]
        yield ("\r\n".join([first, *lines]) + "\r\n\r\n").encode("latin-1") + body

    return script


def http_1_0(context: FaultContext) -> Iterator[Step]:
    """No length and no chunks: the end of the connection is the end of the body."""
    real = context.upstream()
    yield real.head(version="1.0") + real.body


def huge_header(size: int) -> Script:
    return rewritten(bytes, ("X-Big", "a" * size))


def swapped(context: FaultContext) -> Iterator[Step]:
    """Two concurrent requests get each other's response."""
    own, proxy = context.upstream(), context.proxy
    box: list[Response] = []
    with proxy.lock:
        partner = proxy.waiting.pop() if proxy.waiting else None
        if partner is None:
            proxy.waiting.append((own, box))
    if partner is not None:
        partner[1].append(own)
        yield partner[0].whole()
        return
    for _ in range(10):
        if box:
            break
        yield 0.05
    with proxy.lock:
        proxy.waiting[:] = [one for one in proxy.waiting if one[1] is not box]
    yield (box[0] if box else own).whole()


# changes of bodies and events


def put(path: str, value: Any) -> Callable[[Any], Any]:
    """Sets the value at a path like `choices.0.message.content`; `...` removes it."""

    def change(data: Any) -> Any:
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        inner = data
        for part in way:
            inner = inner[part]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
        return data

    return change


def in_event(wanted: int, change: Callable[[Any], Any]) -> Callable[[list[bytes]], list[bytes]]:
    return each(lambda data, number: change(data) if number == wanted else data)


def without_done(events: list[bytes]) -> list[bytes]:
    return [event for event in events if b"[DONE]" not in event]


def with_error(events: list[bytes]) -> list[bytes]:
    failure = {"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError", "code": 500}}
    return [*events[:3], sse(failure), sse(b"[DONE]")]


def with_fastchat_error(events: list[bytes]) -> list[bytes]:
    return [*events[:1], sse({"text": "**NETWORK ERROR DUE TO HIGH TRAFFIC.**", "error_code": 50001}), sse(b"[DONE]")]


def finished(events: list[bytes]) -> list[bytes]:
    """Repeats the chunk with the finish reason."""
    found = next(event for event in reversed(events) if b'"finish_reason"' in event and b'"choices": []' not in event
                 and b'"choices":[]' not in event)  # fmt: skip
    place = events.index(found)
    return [*events[: place + 1], found, *events[place + 1 :]]


def lost_start(events: list[bytes]) -> list[bytes]:
    """Removes the two events after the role."""
    return [events[0], *events[3:]]


def usage_that_does_not_add_up(events: list[bytes]) -> list[bytes]:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 99}
    extra = json.loads(events[-2].removeprefix(b"data:")) | {"choices": [], "usage": usage}
    return [*(event for event in events[:-1] if b'"usage"' not in event), sse(extra), events[-1]]


def no_usage(data: dict[str, Any], _: int) -> dict[str, Any] | None:
    data.pop("usage", None)
    return data if data["choices"] else None


@lru_cache(maxsize=4)
def entries(count: int, full: bool = False) -> bytes:
    """A JSON array of models, created fast and once, so that the test measures the check and not itself."""
    rest = b"," + json.dumps(CARD, separators=(",", ":")).encode()[1:] if full else b"}"
    return b"[" + b",".join(b'{"id":"m%d"%s' % (number, rest) for number in range(count)) + b"]"


def before(more: Callable[[], bytes]) -> Script:
    """The engine's own models, followed by those of the JSON array `more`."""

    def script(context: FaultContext) -> Iterator[Step]:
        own = json.dumps(context.upstream().json()["data"]).encode()
        body = b'{"object":"list","data":' + own[:-1] + b"," + more()[1:] + b"}"
        yield Response.of(body).whole()

    return script


HTML = "<!DOCTYPE html><html><head><title>Sign in</title></head><body>Sign in to continue</body></html>"
CARD = {"object": "model", "created": 1795385672, "owned_by": "somebody"}
DEEP = "[" * 100_000 + "]" * 100_000

CONNECTIONS = (
    Row("nothing listens", "connection", steps(), fails="connect", says=r"^nothing listens on 127\.0\.0\.1:\d+$",
        needs="closed"),
    Row("a full queue of connections", "connection", steps(), fails="connect",
        says="does not accept the connection in time", waits=1,
        needs="full"),
    Row("a name that does not resolve", "connection", steps(), fails="resolve",
        says=r"^the name 'engine\.invalid' can't be resolved$",
        needs="no-name"),
    Row("a silent name server", "connection", steps(), fails="resolve", says="can't be resolved", waits=1,
        needs="silent-names"),
    Row("IPv6 only", "none", steps(), needs="ipv6"),
    Row("localhost, where ::1 refuses", "none", steps(), says="::1 does not accept connections", needs="localhost"),
    Row("reset at once", "connection", steps(RESET), fails="connect|http",
        says="accepted the connection and dropped it"),
    Row("silence at once", "connection", hang, fails="http", says="sent nothing for", waits=1),
    Row("an SSH banner", "connection", steps(b"SSH-2.0-OpenSSH_9.2\r\n", 0.2), fails="http",
        says="dropped it|not speak HTTP"),
    Row("an endless banner", "connection", lambda _: iter(lambda: b"y" * 65536, b""), fails="http",
        says="dropped it|not speak HTTP", heavy=True),
    Row("https to a plain port", "none", steps(), fails="tls",
        says="speaks plain HTTP, but the URL says https", needs="https"),
    Row("http to a TLS port", "none", steps(), fails="http",
        says="speaks TLS, but the URL says http", needs="tls http"),
    Row("a trusted certificate", "none", steps(), needs="tls good"),
    Row("a self-signed certificate", "none", steps(), fails="tls", says="not trusted: self.signed certificate",
        needs="tls selfsigned"),
    Row("an expired certificate", "none", steps(), fails="tls",
        says="not trusted: certificate has expired", needs="tls expired"),
    Row("a certificate for another host", "none", steps(), fails="tls", says=r"not trusted: .*(mismatch|not valid for)",
        needs="tls wronghost"),
    Row("a certificate that soon expires", "none", steps(), warns="tls", says=r"the certificate expires in \d days",
        needs="tls soon"),
    Row("silence in the TLS handshake", "connection", hang, fails="tls",
        says="sent nothing|in time", waits=1, needs="https"),
)  # fmt: skip

# faults for every request, with and without the key
SERVERS = (
    Row("reset before headers", "all", steps(RESET), fails="http", says="accepted the connection and dropped it"),
    Row("silence", "all", hang, fails="http", says=r"accepted the request, but sent nothing for", waits=1),
    Row("dripping headers", "all", drip_headers, fails="http", says="not complete|sent nothing", waits=2),
    Row("endless informational responses", "all", endless_informational, fails="http",
        says="not complete|sent nothing", waits=2),
    Row("every response is a redirect", "all", answer("", "text/html", 302, ("Location", "https://login.example/")),
        fails="http", says="the server redirects"),
    Row("a redirect to a very long URL", "all", answer("", "text/html", 302, ("Location", "/" + "a" * 60_000)),
        fails="http", says="the server redirects"),
    Row("every response is 502", "all", answer("<h1>502 Bad Gateway</h1>", "text/html", 502), fails="alive|models",
        says="502",
        also=("models", "chat", "stream", "auth")),
    Row("every response is a sign-in page", "all", answer(HTML, "text/html"), fails="models",
        says=r"expected a list of models, got HTTP 200 \(text/html\)", also=("chat", "stream", "auth")),
    Row("every response is empty", "all", answer(""), fails="models", says="expected a list of models, got",
        also=("chat", "stream", "auth")),
    Row("a header beyond what HTTP clients take", "all", huge_header(200_000), fails="http",
        says="dropped it|not speak HTTP|header",
        heavy=True),
    Row("switching protocols", "all", switching, fails="http", says="101|dropped it|not speak HTTP"),
)  # fmt: skip

MODELS = (
    Row("no models", "models", answer('{"object":"list","data":[]}'), fails="models",
        says="^the server lists no models$"),
    Row("a bare array of models", "models", edited(lambda data: data["data"]), warns="models", says="a JSON array"),
    Row("models as HTML", "models", answer(HTML, "text/html"), fails="models",
        says=r"expected a list of models, got .*text/html"),
    Row("models as text", "models", typed("text/plain")),
    Row("nulls among the models", "models", edited(lambda data: {**data, "data": [None, *data["data"], None]}),
        warns="models", says=r"data\[0\]"),
    Row("model data is null", "models", answer('{"object":"list","data":null}'), fails="models",
        says="expected a list of models"),
    Row("null instead of the list", "models", answer("null"), fails="models", says="expected a list of models"),
    Row("models are numbers", "models", answer('{"object":"list","data":[1,2,3]}'), fails="models",
        says="lists no models"),
    Row("a hundred thousand models", "models", before(lambda: entries(100_000, full=True)), fails="models",
        says="more than 4 MiB", heavy=True),
    Row("a hundred thousand bare models", "models", before(lambda: entries(100_000)), warns="models",
        says="100[ ,]?00[0-9] models in total", heavy=True),
    Row("a million nulls for models", "models", before(lambda: b"[" + b"null," * 800_000 + b"0]"), warns="models",
        says=r"the server lists .*, but data\[", heavy=True),
    Row("the model under another name among many", "models", lambda _: [Response.of(
        b'{"object":"list","data":' + entries(60_000) + b"}").whole()], fails="models",
        says="^the server does not list ", heavy=True),
    Row("names of half a MiB", "models", lambda _: [Response.of(json.dumps(
        {"object": "list", "data": [{"id": "n" * (MIB // 2 + i), **CARD} for i in range(7)]}).encode()).whole()],
        fails="models", says="^the server does not list ", heavy=True),
    Row("a model named by half a character", "models", before(lambda: b'[{"id":"\\ud800"}]'), warns="models"),
    Row("deep nesting for models", "models", answer(DEEP), fails="models",
        says="expected a list of models", heavy=True),
    Row("models are silent", "models", hang, fails="models", says="sent nothing for", waits=3, also=("auth",)),
    Row("models are refused", "models", error(403, "forbidden"), fails="models",
        says="refuses the key", also=("auth",)),
    Row("models are not found", "models", error(404, "Not Found"), fails="models", says="/models is not found"),
    Row("models while loading", "models", error(503, "Loading model"), fails="models", says="503.*Loading model"),
)  # fmt: skip

CHATS = (
    Row("chat reset before headers", "chat", steps(RESET), fails="chat", says="accepted the connection and dropped it"),
    Row("chat reset in the body", "chat", reset_in_body, fails="chat", says="dropped it|closed the connection"),
    Row("chat is silent", "chat", hang, fails="chat", says="accepted the request, but sent nothing for", waits=1),
    Row("chat hangs in the body", "chat", hang_in_body, fails="chat", says="sent nothing for|not complete", waits=2),
    Row("chat drips", "chat", drip_body, fails="chat", says="the body was not complete", waits=1.5),
    Row("chat drips its headers", "chat", drip_headers, fails="chat", says="not complete|sent nothing", waits=2),
    Row("chat is cut", "chat", short_body, fails="chat", says="dropped it|closed the connection"),
    Row("chat is cut between chunks", "chat", cut_chunks, fails="chat", says="dropped it|closed the connection"),
    Row("chat with a garbage chunk size", "chat", garbage_chunk_size, fails="chat",
        says="dropped it|not speak HTTP|closed the connection"),
    Row("chat in chunks of a byte", "chat", in_small_chunks),
    Row("chat in chunks with extensions and a trailer", "chat", with_extensions),
    Row("chat as HTTP/1.0 without a length", "chat", http_1_0),
    Row("chat after informational responses", "chat", informational),
    Row("chat under lower-case headers", "chat", headers_in(str.lower)),
    Row("chat under upper-case headers", "chat", headers_in(str.upper)),
    Row("chat with a header of 60 KB", "chat", huge_header(60_000)),
    Row("chat in gzip", "chat", rewritten(gzip.compress, ("Content-Encoding", "gzip"))),
    Row("chat not in gzip although its header says so", "chat", rewritten(bytes, ("Content-Encoding", "gzip")),
        fails="chat",
        says="does not match its header `Content-Encoding`"),
    Row("chat in a truncated gzip", "chat",
        rewritten(lambda body: gzip.compress(body)[:-30], ("Content-Encoding", "gzip")),
        fails="chat", says="JSON|encoded"),
    Row("chat is a zip bomb", "chat", zip_bomb, fails="chat", says="JSON|more than 4 MiB", heavy=True),
    Row("chat without end", "chat", endless_body, fails="chat",
        says="JSON|more than 4 MiB|not complete", waits=1, heavy=True),
    Row("chat is a line of 10 MB", "chat", edited(put("choices.0.message.content", "y" * 10_000_000)), fails="chat",
        says="JSON|more than 4 MiB", heavy=True),
    Row("chat of 3 MB", "chat", edited(put("choices.0.message.content", "y" * 3_000_000)), heavy=True),
    Row("chat is HTML under 200", "chat", answer(HTML, "text/html"), fails="chat", says="text/html instead of JSON"),
    Row("chat is empty under 200", "chat", answer(b""), fails="chat", says="JSON|empty"),
    Row("chat is empty without a type", "chat", steps(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), fails="chat",
        says="an empty body instead of JSON"),
    Row("chat is an error under 200", "chat", answer('{"object":"error","message":"CUDA out of memory","code":50001}'),
        fails="chat", says="CUDA out of memory"),
    Row("chat is truncated JSON", "chat", rewritten(lambda body: body[:-10]), fails="chat", says="JSON"),
    Row("chat as text/plain", "chat", typed("text/plain"), says="the content type of the response is text/plain"),
    Row("chat is not UTF-8", "chat",
        rewritten(lambda body: body.replace(b'"assistant"', b'"assistant","x":"\xff\xfe"')),
        fails="chat", says="JSON"),
    Row("chat with NUL bytes", "chat", rewritten(lambda body: body + b"\0\0"), fails="chat", says="JSON"),
    Row("chat with a byte order mark", "chat", rewritten(lambda body: b"\xef\xbb\xbf" + body)),
    Row("chat with a key twice", "chat", rewritten(lambda body: b'{"id":"first",' + body[1:])),
    Row("chat with NaN", "chat", rewritten(lambda body: b'{"score":NaN,' + body[1:]), fails="chat", says="JSON"),
    Row("chat nested deeply", "chat", rewritten(lambda body: b'{"deep":' + DEEP.encode() + b"," + body[1:]),
        fails="chat",
        says="JSON", heavy=True),
    Row("chat nested as deep as Python reads", "chat", lambda _: [Response.of(
        b'{"error":{"code":' + b"[" * 900 + b"]" * 900 + b"}}").whole()], fails="chat", says="not as documented"),
    Row("chat counts more tokens than floats hold", "chat",
        edited(put("usage", {"prompt_tokens": 10**400, "completion_tokens": 1, "total_tokens": 10**400 + 1})),
        fails="chat",
        says=r"usage\.prompt_tokens"),
    Row("chat counts more tokens than can be printed", "chat",
        edited(put("usage", {"prompt_tokens": 9 * 10**4298, "completion_tokens": 9 * 10**4298, "total_tokens": 1})),
        fails="chat", says=r"usage"),
    Row("chat answers half a character", "chat", edited(put("choices.0.message.content", "Paris \ud800"))),
    Row("chat answers white space", "chat", edited(put("choices.0.message.content", " \n\t ")), says="white space"),
    Row("chat answers controls", "chat", edited(put("choices.0.message.content", "\x1b[2J\x1b]0;x\x07Paris\u202e"))),
    Row("chat without choices", "chat", edited(put("choices", [])), fails="chat", says="choices"),
    Row("chat with a hundred thousand wrong choices", "chat", edited(put("choices", [None] * 100_000)), fails="chat",
        says="choices", heavy=True),
    Row("chat without content", "chat", edited(put("choices.0.message.content", None)), fails="chat",
        says="has no content"),
    Row("chat without a role", "chat", edited(put("choices.0.message.role", ...)), fails="chat",
        says=r"message\.role: field req"),
    Row("chat ends for an unknown reason", "chat", edited(put("choices.0.finish_reason", "bored")), fails="chat",
        says="finish_reason 'bored' is not documented"),
    Row("chat ends for no reason", "chat", edited(put("choices.0.finish_reason", None)), fails="chat",
        says="finish_reason"),
    Row("chat by another model", "chat", edited(put("model", "gpt-imposter")), fails="chat",
        says="'gpt-imposter' answered"),
    Row("chat usage that does not add up", "chat", edited(put("usage.total_tokens", 7)), fails="chat",
        says=r"usage: \d+ prompt tokens \+ \d+ completion tokens is not the total 7"),
    Row("chat without usage", "chat", edited(put("usage", ...)), warns="chat", says="reports no usage"),
    Row("chat beyond max_tokens", "chat",
        edited(put("usage", {"prompt_tokens": 1, "completion_tokens": 999, "total_tokens": 1000})), warns="chat",
        says="999 tokens were generated"),
    *(Row(f"chat gives {status}", "chat", error(status, "told by the server"), fails="chat",
          says=rf"^HTTP {status} \(application/json\) instead of a completion: told by the server$")
      for status in (400, 401, 403, 404, 429, 500, 502, 503)),
    Row("chat is limited with Retry-After", "chat", error(429, "slow down", ("Retry-After", "17")), fails="chat",
        says="429.*slow down"),
    Row("chat gives 500 in HTML", "chat", answer("<h1>Internal Server Error</h1>", "text/html", 500), fails="chat",
        says=r"^HTTP 500 \(text/html\) instead of a completion$"),
    Row("chat gives 204", "chat", steps(b"HTTP/1.1 204 No Content\r\n\r\n"), fails="chat", says="HTTP 204"),
    Row("chat gives 206", "chat", lambda context: [replace(context.upstream(), status=206).whole()], fails="chat",
        says="HTTP 206"),
    Row("chat redirects", "chat", answer("", "text/html", 307, ("Location", "/elsewhere")), fails="chat",
        says="HTTP 307"),
    Row("the answer to another request", "answers", swapped, fails="load",
        says="mixed up", profile="deep", select=("load",)),
)  # fmt: skip

STREAMS = (
    Row("stream reset before headers", "stream", steps(RESET), fails="stream",
        says="accepted the connection and dropped it"),
    Row("stream reset in the middle", "stream", streamed(lambda events: events[:3], last=False, ending=RESET),
        fails="stream", says="dropped it|without \\[DONE\\]|finish_reason"),
    Row("stream is silent", "stream", hang, fails="stream", says="accepted the request, but sent nothing for", waits=1),
    Row("stream hangs in the middle", "stream", hang_in_stream, fails="stream", says="sent nothing for", waits=1),
    Row("stream drips without end", "stream", drip_events, fails="stream",
        says=r"the stream is too slow \([\d.]+ events/s\): it did not end after", waits=11, stretch=2, real=False),
    Row("stream drips an event without end", "stream", drip_one_event, fails="stream",
        says=r"no token arrived for [\d.]+ s", waits=1),
    Row("stream of keep-alive lines without end", "stream", endless_comments, fails="stream",
        says=r"no token arrived for [\d.]+ s",
        waits=1),
    Row("stream of empty deltas without end", "stream", endless_empty_deltas, fails="stream",
        says="no chunk has content|no token arrived", waits=1),
    Row("stream that is slow, and ends", "stream", slow_events, waits=10, stretch=3, real=False),
    Row("stream without end", "stream", endless_events, fails="stream",
        says="the stream did not end", waits=5, heavy=True),
    Row("stream of big events without end", "stream", endless_big_events, fails="stream",
        says="did not end|no chunk", waits=5,
        heavy=True),
    Row("stream of a hundred thousand wrong choices", "stream", many_choices, fails="stream", says="choices", waits=5,
        heavy=True),
    Row("stream is a line of 10 MB", "stream", streamed(lambda events: [events[0], FULL_EVENT, *events[1:]]),
        fails="stream", says="larger|longer|too big|MiB|limit", heavy=True),
    Row("stream begins with a line of 10 MB", "stream", streamed(lambda events: [FULL_EVENT, *events]),
        fails="stream", says="larger|longer|too big|MiB|limit", heavy=True),
    Row("stream is cut, and ends cleanly", "stream", streamed(lambda events: events[:3]), fails="stream",
        says=r"^the stream has no finish_reason \(and 1 more problem\)"),
    Row("stream lacks [DONE]", "stream", streamed(without_done), fails="stream", says=r"cut: it ends without \[DONE\]"),
    Row("stream lacks the end of its chunks", "stream", streamed(without_done, last=False), fails="stream",
        says=r"ends without \[DONE\] \(.*(dropped it|closed the connection)"),
    Row("stream ends without the end of its chunks after [DONE]", "stream", streamed(list, last=False)),
    Row("stream hangs after [DONE]", "stream", streamed(list, last=False, ending=60.0), waits=1),
    Row("stream has an error and [DONE]", "stream", streamed(with_error), fails="stream",
        says="^the stream has an error event despite status 200: EngineCore encountered an issue"),
    Row("stream has an error of FastChat and [DONE]", "stream", streamed(with_fastchat_error), fails="stream",
        says="the stream has an error event despite status 200: .*NETWORK ERROR"),
    Row("stream is HTML under 200", "stream", answer(HTML, "text/html"), fails="stream",
        says="text/html, not text/event-str"),
    Row("stream is empty under 200", "stream", answer("", "text/event-stream"), fails="stream",
        says="the stream is empty"),
    Row("stream is JSON: `stream` is ignored", "stream", answer('{"object":"chat.completion"}'), fails="stream",
        says="application/json, not text/event-stream"),
    Row("stream as application/json", "stream", typed("application/json"), fails="stream",
        says="application/json, not text/event-stream"),
    Row("stream has truncated JSON", "stream", streamed(lambda events: [events[0], events[1][:-20] + b"\n\n",
                                                                        *events[2:]]), fails="stream",
        says="event 2 is not JSON"),
    Row("stream in gzip", "stream", rewritten(gzip.compress, ("Content-Encoding", "gzip"))),
    Row("stream not in gzip although its header says so", "stream", rewritten(bytes, ("Content-Encoding", "gzip")),
        fails="stream",
        says="does not match its header `Content-Encoding`"),
    Row("stream in chunks of a byte", "stream", in_small_chunks),
    Row("stream in chunks with extensions and a trailer", "stream", with_extensions),
    Row("stream with a garbage chunk size", "stream", garbage_chunk_size, fails="stream",
        says="dropped it|not speak HTTP|closed the connection"),
    Row("stream as HTTP/1.0", "stream", http_1_0),
    Row("stream after informational responses", "stream", informational),
    Row("stream with CRLF", "stream", rewritten(lambda body: body.replace(b"\n", b"\r\n"))),
    Row("stream with CR", "stream", rewritten(lambda body: body.replace(b"\n", b"\r"))),
    Row("stream with keep-alive lines", "stream", streamed(lambda events: [b": keep-alive\n\n", *(
        b": x\n" + event for event in events)])),
    Row("stream with ids, retries and unknown fields", "stream", streamed(lambda events: [
        b"id: 7\nretry: 10\nfoo: bar\n" + event for event in events])),
    Row("stream without a space after data:", "stream", streamed(lambda events: [
        event.replace(b"data: ", b"data:") for event in events])),
    Row("stream lacks a role", "stream", streamed(in_event(0, put("choices.0.delta", {"content": ""}))), fails="stream",
        says="the first chunk has no role"),
    Row("stream begins with a byte order mark", "stream", rewritten(lambda body: b"\xef\xbb\xbf" + body),
        fails="stream",
        says="no role|byte order mark"),
    Row("stream finishes twice", "stream", streamed(finished), fails="stream", says="2 finish reasons instead of one"),
    Row("stream goes on after [DONE]", "stream", streamed(lambda events: [*events, events[1]]), fails="stream",
        says=r"1 event after \[DONE\]"),
    Row("stream usage that does not add up", "stream", streamed(usage_that_does_not_add_up), fails="stream",
        says=r"usage: 5 prompt tokens \+ 2 completion tokens is not the total 99"),
    Row("stream counts more tokens than floats hold", "stream", streamed(each(lambda data, _: {**data, "usage": {
        "prompt_tokens": 1, "completion_tokens": 10**400, "total_tokens": 10**400 + 1}})), fails="stream",
        says="usage"),
    Row("stream is not UTF-8", "stream", streamed(lambda events: [events[0], events[1].replace(
        b'"content":"', b'"content":"\xff').replace(b'"content": "', b'"content": "\xff'), *events[2:]]),
        fails="stream",
        says="UTF-8"),
    Row("stream with NUL bytes", "stream", streamed(lambda events: [events[0], b"data: \0\n\n", *events[1:]]),
        fails="stream", says="not JSON"),
    Row("stream with NaN", "stream", streamed(lambda events: [events[0], events[1].replace(b"data: {",
        b'data: {"score":NaN,'), *events[2:]]), fails="stream", says="not JSON"),
    Row("stream nested deeply", "stream", streamed(lambda events: [events[0], sse(DEEP.encode()), *events[1:]]),
        fails="stream", says="not JSON", heavy=True),
    Row("stream of errors nested as deep as Python reads", "stream", streamed(lambda events: [events[0], sse(
        b'{"error":{"code":' + b"[" * 900 + b"]" * 900 + b"}}"), *events[1:]]), fails="stream", says="error event"),
    Row("stream ends for an unknown reason", "stream", streamed(each(lambda data, _: data | {"choices": [
        choice | {"finish_reason": choice.get("finish_reason") and "bored"} for choice in data["choices"]]})),
        fails="stream", says="finish_reason 'bored' is not documented"),
    Row("stream by another model", "stream", streamed(each(lambda data, _: data | {"model": "gpt-imposter"})),
        fails="stream", says="'gpt-imposter' answered"),
    Row("stream changes its model midway", "stream", streamed(each(
        lambda data, number: data | {"model": "gpt-imposter"} if number > 1 else data)), fails="stream",
        says="the model name in the stream changes from .* to 'gpt-imposter'"),
    Row("stream without text", "stream", streamed(each(lambda data, _: data | {"choices": [
        choice | {"delta": {key: value for key, value in choice["delta"].items() if key == "role"}}
        for choice in data["choices"]]})), fails="stream", says="no chunk has content"),
    Row("stream is buffered", "stream", buffered, warns="stream",
        says=r"^the stream is buffered: \d+ chunks arrived in \d reads?"),
    *(Row(f"stream gives {status}", "stream", error(status, "told by the server"), fails="stream",
          says=rf"^HTTP {status} \(application/json\) instead of a completion: told by the server$")
      for status in (400, 401, 404, 429, 500, 503)),
    Row("stream gives 204", "stream", steps(b"HTTP/1.1 204 No Content\r\n\r\n"), fails="stream", says="HTTP 204"),
    Row("stream error drips", "stream", drip_error,
        fails="stream", says="not complete", waits=1.5),
)  # fmt: skip

# faults that depend on the dialect, or on a reproducible answer
OWN = (
    Row("stream loses its first text", "stream", streamed(lost_start, pause=0.02), warns="stream",
        says=r"the first \d+ characters of the answer are missing from the stream", needs="same"),
    Row("stream without the requested usage", "stream", streamed(each(no_usage), pause=0.02), warns="stream",
        says="reports no usage, although usage was requested", needs="usage"),
)  # fmt: skip

ALIVE = (
    Row("liveness path gives 500", "/health", error(500, "dead"), fails="alive",
        says="/health answers 500", needs="alive"),
    Row("liveness path is hidden", "/health", error(404, "no"), warns="alive", says="is not offered here",
        needs="alive"),
    Row("liveness path is silent", "/health", hang, fails="alive", says="sent nothing", waits=1, needs="alive"),
)  # fmt: skip

# no faults, but the answers pass through the same code
UNCHANGED = (
    Row("unchanged chat", "chat", rewritten(bytes)),
    Row("unchanged stream", "stream", streamed(list, pause=0.02)),
)
ROWS = (*CONNECTIONS, *SERVERS, *ALIVE, *MODELS, *CHATS, *STREAMS, *OWN)
