"""Reads a streamed completion: turns its events into a transcript.

Format: https://platform.openai.com/docs/api-reference/chat/streaming. A stream with status 200 may end with an `error`
event and `[DONE]` (vLLM reports later errors this way), so events are parsed, not only counted.
"""

from __future__ import annotations

import json
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from stackgen.check.transport.faults import Fault
from stackgen.check.transport.openai_schema import BareChunk, Chunk, ChunkChoice, parse
from stackgen.check.transport.session import reject_constant
from stackgen.check.transport.transcript import Transcript, percentile

if TYPE_CHECKING:
    from httpx2 import Response, ServerSentEvent

__all__ = ["StrictUtf8", "Transcript", "collect_events", "percentile"]

# an answer to the check has a few dozen events; a server that never stops must not fill the memory
MAX_EVENTS, MAX_SIZE = 10_000, 8 * 1024 * 1024


class StrictUtf8:
    """A response for `EventSource` that accepts only valid UTF-8, because the OpenAI SDK fails on other bytes.

    `arrived` is when the latest part was read, in seconds on the monotonic clock.
    """

    def __init__(self, response: Response, where: str) -> None:
        self.request, self.headers = response.request, response.headers
        self.arrived = time.monotonic()
        self._response, self._where = response, where

    def iter_text(self) -> Iterator[str]:
        """Yields the body as text. Raises Fault for invalid UTF-8."""
        decoder = getincrementaldecoder("utf-8")()
        try:
            for part in self._response.iter_bytes():
                self.arrived = time.monotonic()
                yield decoder.decode(part)
        except UnicodeDecodeError:
            message = f"the stream from {self._where} is not UTF-8"
            raise Fault("encoding", message, hint="check the proxies between this machine and the server") from None


def collect_events(
    events: Iterable[ServerSentEvent],
    into: Transcript,
    drop_deviations: Callable[[list[str]], list[str]],
    started: float,
    deadline: float,
    progress: Callable[[], None] = lambda: None,
    arrived: Callable[[], float] = time.monotonic,
) -> None:
    """Adds `events` to a transcript until they end or `deadline` passes; times are on the monotonic clock.

    - `drop_deviations` takes the problems of a chunk and returns those that are not known deviations of the dialect.
    - `progress` is called for each event with content; an empty delta does not count.
    - `arrived` returns when the latest event was read. A busy machine may parse the event later.

    A broken connection raises from `events`. Earlier events stay in the transcript, which then lacks `[DONE]`.
    """
    size, count = 0, into.progress_count
    for event in events:
        now = time.monotonic()
        size += len(event.data)
        into.events += 1
        # kept complete, for the evidence: only the redactor may cut text, or half a key could stay
        into.last_event = event.data
        if len(into.first_events) < 4000:
            into.first_events += f"{event.data}\n"
        if into.done:
            into.after_done += 1
        elif event.data.strip() == "[DONE]":
            into.done = True
        else:
            _add_chunk(event, into, drop_deviations, arrived() - started)
        if into.progress_count != count:
            count = into.progress_count
            progress()
        so_far = f"did not end after {now - started:.0f} s and {into.events} events"
        # inserted first, because other problems may already fill the list that a report shows
        if into.events >= MAX_EVENTS or size > MAX_SIZE:
            into.stream_problems.insert(0, f"the stream {so_far}")
            return
        if now > deadline:
            rate = into.events / (now - started)
            into.stream_problems.insert(0, f"the stream is too slow ({rate:.1f} events/s): it {so_far}")
            return


def _add_chunk(
    event: ServerSentEvent, into: Transcript, drop_deviations: Callable[[list[str]], list[str]], now: float
) -> None:
    try:
        data = json.loads(event.data, parse_constant=reject_constant)
    except (ValueError, RecursionError):
        into.add_problem(f"event {into.events} is not JSON")
        return
    # the first error is the cause, later errors are its consequences
    error = _error_text(event.event, data)
    if error:
        into.error = into.error or error
        return
    chunk: BareChunk | None
    chunk, problems = parse(Chunk, data)
    # deviations are looked up only for chunks that are not as documented, because nearly all chunks are
    if chunk is None:
        for problem in drop_deviations([f"event {into.events}: {problem}" for problem in problems]):
            into.add_problem(problem)
        chunk, _ = parse(BareChunk, data)
    if chunk is None:
        return
    if into.model and chunk.model not in ("", into.model):
        into.add_problem(f"the model name in the stream changes from {into.model!r} to {chunk.model!r}")
    # a mixed-up stream; some servers send no id at all
    if into.id and chunk.id not in ("", into.id):
        into.add_problem(
            f"the id in the stream changes from {into.id!r} to {chunk.id!r}: chunks of another answer are mixed in"
        )
    # the first value is the reference, because later chunks may lack it
    into.model, into.id = into.model or chunk.model, into.id or chunk.id
    into.usage = chunk.usage or into.usage
    into.content.add_usage(chunk.usage)
    for choice in chunk.choices:
        _add_choice(choice, into, now)


def _add_choice(choice: ChunkChoice, into: Transcript, now: float) -> None:
    if choice.index:
        into.add_problem(
            f"event {into.events}: the event is for choice {choice.index}, but only one choice was requested"
        )
        return
    role = choice.delta.role
    if into.starts_with_role is None:
        into.starts_with_role = role is not None
    if role not in (None, "", "assistant"):
        into.add_problem(f"event {into.events}: the role is {role!r}, not 'assistant'")
    extra = choice.delta.model_extra or {}
    has_text = bool(into.content.add(choice.delta, delta=True))
    # vLLM sends `reasoning`; its older versions and other servers send `reasoning_content`
    if has_text or extra.get("reasoning") or extra.get("reasoning_content"):
        # text in the chunk of a second finish reason is reported as a second finish reason
        if into.finish_reasons and choice.finish_reason is None:
            into.add_problem(f"event {into.events}: there is text after the finish_reason")
        into.arrivals.append(now)
    into.add_calls(extra.get("tool_calls"))
    # one chunk may have both content and a finish reason (the last one of vLLM does)
    if choice.finish_reason is not None:
        into.finish_reasons.append(choice.finish_reason)


def _error_text(event: str, data: Any) -> str:
    """The message of an error event, else "". vLLM sends `{"error": {…}}`, FastChat `{"text", "error_code"}`."""
    if isinstance(data, dict):
        error = data.get("error")
        if isinstance(error, dict):
            return str(error.get("message") or error)
        if error or data.get("error_code") or data.get("object") == "error":
            return str(error or data.get("message") or data.get("text") or data)
    return str(data) if event == "error" else ""
