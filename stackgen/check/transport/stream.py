"""A streamed completion, read: its events become a transcript.

Format: https://platform.openai.com/docs/api-reference/chat/streaming. A stream may end with an `error` event and
`[DONE]` under a 200 (vLLM does, once it has begun to answer), so events are parsed, not only counted.
"""

from __future__ import annotations

import json
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from stackgen.check.transport.faults import Fault
from stackgen.check.transport.openai_schema import BareChunk, Chunk, ChunkChoice, parse
from stackgen.check.transport.session import no_number
from stackgen.check.transport.transcript import Transcript, percentile

if TYPE_CHECKING:
    from httpx2 import Response, ServerSentEvent

__all__ = ["Transcript", "Utf8", "collect", "percentile"]

# an answer of the check has some dozens; a server that never ends must not fill the memory
MAX_EVENTS, MAX_SIZE = 10_000, 8 * 1024 * 1024


class Utf8:
    """A response for `EventSource` whose text is strictly UTF-8: the OpenAI SDK raises an exception for other bytes.

    `arrived` is when its latest part was read, in seconds on the monotonic clock.
    """

    def __init__(self, response: Response, where: str) -> None:
        self.request, self.headers = response.request, response.headers
        self.arrived = time.monotonic()
        self._response, self._where = response, where

    def iter_text(self) -> Iterator[str]:
        """The body as text; raises Fault."""
        decoder = getincrementaldecoder("utf-8")()
        try:
            for part in self._response.iter_bytes():
                self.arrived = time.monotonic()
                yield decoder.decode(part)
        except UnicodeDecodeError:
            raise Fault("encoding", f"the stream from {self._where} is not UTF-8", "look at what proxies do") from None


def collect(
    events: Iterable[ServerSentEvent],
    into: Transcript,
    allow: Callable[[list[str]], list[str]],
    started: float,
    deadline: float,
    progress: Callable[[], None] = lambda: None,
    arrived: Callable[[], float] = time.monotonic,
) -> None:
    """Adds `events` to a transcript until they end or `deadline` passes; times are on the monotonic clock.

    `allow` takes problems of a chunk and gives back those that the dialect is not known for. `progress` is called for
    each event that brings something: empty deltas don't. `arrived` tells when the latest event was read, which is not
    when it is understood: a busy machine does that in its own time. A connection that breaks raises from `events`;
    what came before stays in the transcript, which lacks `[DONE]`.
    """
    size, before = 0, into.brought
    for event in events:
        now = time.monotonic()
        size += len(event.data)
        into.events += 1
        # kept for the evidence, whole: cutting is the redactor's work, or half a key could stay
        into.tail = event.data
        if len(into.head) < 4000:
            into.head += f"{event.data}\n"
        if into.done:
            into.after_done += 1
        elif event.data.strip() == "[DONE]":
            into.done = True
        else:
            _chunk(event, into, allow, arrived() - started)
        if into.brought != before:
            before = into.brought
            progress()
        told = f"no end after {now - started:.0f} s and {into.events} events"
        # first: there may be as many others as a report shows
        if into.events >= MAX_EVENTS or size > MAX_SIZE:
            into.malformed.insert(0, f"the stream had {told}")
            return
        if now > deadline:
            into.malformed.insert(0, f"the stream is too slow: {told}, {into.events / (now - started):.1f} a second")
            return


def _chunk(event: ServerSentEvent, into: Transcript, allow: Callable[[list[str]], list[str]], now: float) -> None:
    try:
        data = json.loads(event.data, parse_constant=no_number)
    except (ValueError, RecursionError):
        into.blame(f"event {into.events} is no JSON")
        return
    # the first error is the cause, later ones follow from it
    error = _error(event.event, data)
    if error:
        into.error = into.error or error
        return
    chunk: BareChunk | None
    chunk, problems = parse(Chunk, data)
    # nearly every chunk is as documented; only for the others it is looked up what the dialect is known for
    if chunk is None:
        for problem in allow([f"event {into.events}: {problem}" for problem in problems]):
            into.blame(problem)
        chunk, _ = parse(BareChunk, data)
    if chunk is None:
        return
    if into.model and chunk.model not in ("", into.model):
        into.blame(f"the model changes from {into.model!r} to {chunk.model!r}")
    # a chunk of another answer's stream; some servers send none
    if into.id and chunk.id not in ("", into.id):
        into.blame(f"the id changes from {into.id!r} to {chunk.id!r}: chunks of another answer?")
    into.model, into.id = into.model or chunk.model, into.id or chunk.id
    into.usage = chunk.usage or into.usage
    for choice in chunk.choices:
        _choice(choice, into, now)


def _choice(choice: ChunkChoice, into: Transcript, now: float) -> None:
    if choice.index:
        into.blame(f"event {into.events}: a part of choice {choice.index}, and one choice was asked for")
        return
    role = choice.delta.role
    if into.role_first is None:
        into.role_first = role is not None
    if role not in (None, "", "assistant"):
        into.blame(f"event {into.events}: the role is {role!r} and not 'assistant'")
    # vLLM: `reasoning`; older ones and others: `reasoning_content`
    extra = choice.delta.model_extra or {}
    reasoning = bool(extra.get("reasoning") or extra.get("reasoning_content"))
    into.reasoning = into.reasoning or reasoning
    if choice.delta.content or reasoning:
        # a second finish reason is a problem of its own
        if into.finishes and choice.finish_reason is None:
            into.blame(f"event {into.events}: text after the finish_reason")
        into.text += choice.delta.content or ""
        into.arrivals.append(now)
    # a chunk may hold content and the reason at once (vLLM's last one does)
    if choice.finish_reason is not None:
        into.finishes.append(choice.finish_reason)


def _error(event: str, data: Any) -> str:
    """The message of an error event: vLLM sends `{"error": {…}}`, FastChat `{"text", "error_code"}` with a code."""
    if isinstance(data, dict):
        error = data.get("error")
        if isinstance(error, dict):
            return str(error.get("message") or error)
        if error or data.get("error_code") or data.get("object") == "error":
            return str(error or data.get("message") or data.get("text") or data)
    return str(data) if event == "error" else ""
