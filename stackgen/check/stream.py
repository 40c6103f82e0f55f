"""A streamed completion: what its events held, and what is wrong with them.

Format: https://platform.openai.com/docs/api-reference/chat/streaming. A stream may end with an `error` event and
`[DONE]` under a 200 (vLLM does, once it has begun to answer), so events are parsed, not only counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stackgen.check.contract import BareChunk, Chunk, Usage, parse, sum_problem
from stackgen.plan import Dialect

if TYPE_CHECKING:
    from httpx2 import ServerSentEvent

__all__ = ["Transcript", "collect"]

# one wrong field is wrong in every chunk
MAX_PROBLEMS = 5


@dataclass(slots=True)
class Transcript:
    """What a stream held. Times are seconds since the request was sent; None: nothing of that kind came."""

    events: int = 0
    text: str = ""
    reasoning: bool = False
    deltas: int = 0
    role_first: bool | None = None
    finishes: list[str] = field(default_factory=list)
    usage: Usage | None = None
    model: str = ""
    done: bool = False
    after_done: int = 0
    error: str = ""
    first: float | None = None
    last: float | None = None
    malformed: list[str] = field(default_factory=list)
    tail: str = ""

    def problems(self, allowed_finish: frozenset[str]) -> list[str]:
        """What a client would stumble over, the worst first; empty for a stream that ended properly."""
        found = []
        if self.error:
            found.append(f"an error event under status 200: {self.error}")
        found += self.malformed[:MAX_PROBLEMS]
        if self.role_first is False:
            found.append("the first chunk has no role")
        if not self.deltas and not self.error:
            found.append("no chunk has content")
        if len(self.finishes) != 1:
            found.append(f"{len(self.finishes) or 'no'} finish_reason instead of one" + _listed(self.finishes))
        odd = [reason for reason in self.finishes if reason not in allowed_finish]
        found += [f"finish_reason {reason!r} is not documented" for reason in odd]
        if not self.done:
            found.append("the stream was cut: it ends without [DONE]")
        if self.after_done:
            found.append(f"{self.after_done} event(s) after [DONE]")
        if self.usage and sum_problem(self.usage):
            found.append(sum_problem(self.usage))
        return found

    def speed(self) -> str:
        """`TTFT 0.031 s, 45.2 tokens/s`; deltas where the server reports no usage, as one may hold several tokens."""
        if self.first is None or self.last is None:
            return ""
        count, unit = (self.usage.completion_tokens, "tokens") if self.usage else (self.deltas, "chunks")
        text = f"TTFT {self.first:.3f} s"
        # the first token's time belongs to TTFT; chunks that came all at once tell no speed
        if count > 1 and self.last - self.first > 0.005:
            text += f", {(count - 1) / (self.last - self.first):.1f} {unit}/s"
        return text


def collect(
    events: Iterable[ServerSentEvent], into: Transcript, dialect: Dialect, started: float, deadline: float
) -> None:
    """Adds `events` to a transcript until they end or `deadline` passes; times are on the monotonic clock.

    A connection that breaks raises from `events`; what came before stays in the transcript, which lacks `[DONE]`.
    """
    for event in events:
        now = time.monotonic()
        into.events += 1
        # kept for the evidence, whole: cutting is the redactor's work, or half a key could stay
        into.tail = event.data
        if into.done:
            into.after_done += 1
        elif event.data.strip() == "[DONE]":
            into.done = True
        else:
            _chunk(event, into, dialect, now - started)
        if now > deadline:
            into.malformed.append(f"the stream had no end after {now - started:.0f} s")
            return


def _chunk(event: ServerSentEvent, into: Transcript, dialect: Dialect, now: float) -> None:
    try:
        data = json.loads(event.data)
    except (ValueError, RecursionError):
        into.malformed.append(f"event {into.events} is no JSON")
        return
    # the first error is the cause, later ones follow from it
    error = _error(event.event, data)
    if error:
        into.error = into.error or error
        return
    chunk, problems = parse(BareChunk if dialect.stream_bare_chunks else Chunk, data)
    if chunk is None:
        into.malformed += [f"event {into.events}: {problem}" for problem in problems]
        return
    into.model = into.model or chunk.model
    into.usage = chunk.usage or into.usage
    for choice in chunk.choices:
        if into.role_first is None:
            into.role_first = choice.delta.role is not None
        # vLLM: `reasoning`; older ones and others: `reasoning_content`
        extra = choice.delta.model_extra or {}
        into.reasoning = into.reasoning or bool(extra.get("reasoning") or extra.get("reasoning_content"))
        if choice.delta.content or extra.get("reasoning") or extra.get("reasoning_content"):
            into.text += choice.delta.content or ""
            into.deltas += 1
            into.first = now if into.first is None else into.first
            into.last = now
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


def _listed(reasons: list[str]) -> str:
    return f" ({', '.join(reasons)})" if reasons else ""
