"""A streamed completion: what its events held, what is wrong with them, and how fast they came.

Format: https://platform.openai.com/docs/api-reference/chat/streaming. A stream may end with an `error` event and
`[DONE]` under a 200 (vLLM does, once it has begun to answer), so events are parsed, not only counted.
"""

from __future__ import annotations

import json
import math
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stackgen.check.contract import BareChunk, Chunk, Usage, parse, sum_problem
from stackgen.check.faults import Fault
from stackgen.check.session import no_number

if TYPE_CHECKING:
    from httpx2 import Response, ServerSentEvent

__all__ = ["Transcript", "Utf8", "collect", "percentile"]

# one wrong field is wrong in every chunk
MAX_PROBLEMS = 5
# an answer of the check has some dozens; a server that never ends must not fill the memory
MAX_EVENTS, MAX_SIZE = 10_000, 8 * 1024 * 1024
# Chunks that come within a millisecond were read together. Tokens that take 5 ms each can't be: something gathers them.
TOGETHER_SECONDS, APART_SECONDS = 0.001, 0.005
# fewer chunks tell nothing, and a third of them in reads of their own is no gathering
LEAST_CHUNKS, GATHERED = 8, 3


@dataclass(slots=True)
class Transcript:
    """What a stream held. Times are seconds since the request was sent; None: nothing of that kind came."""

    events: int = 0
    text: str = ""
    reasoning: bool = False
    arrivals: list[float] = field(default_factory=list)
    role_first: bool | None = None
    finishes: list[str] = field(default_factory=list)
    usage: Usage | None = None
    model: str = ""
    done: bool = False
    after_done: int = 0
    error: str = ""
    malformed: list[str] = field(default_factory=list)
    head: str = ""
    tail: str = ""

    @property
    def deltas(self) -> int:
        """How many chunks brought text."""
        return len(self.arrivals)

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

    def gaps(self) -> tuple[float, ...]:
        """Seconds between chunks with text: inter-token latencies where a chunk is a token."""
        return tuple(round(after - before, 6) for before, after in zip(self.arrivals, self.arrivals[1:], strict=False))

    def figures(self) -> dict[str, float]:
        """TTFT, inter-token latency and speed, in seconds and tokens a second; what can't be told is left out.

        Tokens are counted by the usage; by chunks where there is none, as `chunks_per_second`.
        """
        if not self.arrivals:
            return {}
        found, gaps = {"ttft_seconds": round(self.arrivals[0], 4)}, self.gaps()
        if gaps:
            found["inter_token_p50_seconds"] = round(percentile(gaps, 50), 5)
            found["inter_token_p99_seconds"] = round(percentile(gaps, 99), 5)
        count, unit = (self.usage.completion_tokens, "tokens") if self.usage else (self.deltas, "chunks")
        # the first token's time belongs to TTFT; chunks that came all at once tell no speed
        if count > 1 and self.arrivals[-1] - self.arrivals[0] > 0.005:
            found[f"{unit}_per_second"] = round((count - 1) / (self.arrivals[-1] - self.arrivals[0]), 1)
        return found

    def speed(self) -> str:
        """`TTFT 0.031 s, 45.2 tokens/s`."""
        figures = self.figures()
        text = f"TTFT {figures['ttft_seconds']:.3f} s" if figures else ""
        for unit in ("tokens", "chunks"):
            if f"{unit}_per_second" in figures:
                text += f", {figures[f'{unit}_per_second']:.1f} {unit}/s"
        return text

    def gathering(self, first: float = 0.0) -> str:
        """How chunks were held back and sent together though generated apart; empty where they came one by one.

        `first` is how long an answer of one token took (s): what a stream took longer is what its tokens took.
        """
        reads = 1 + sum(gap > TOGETHER_SECONDS for gap in self.gaps())
        if self.deltas < LEAST_CHUNKS or reads * GATHERED > self.deltas:
            return ""
        # tokens of a tiny model come so fast that the kernel itself puts them together
        if (self.arrivals[-1] - first) / self.deltas < APART_SECONDS:
            return ""
        return f"{self.deltas} chunks came in {reads} read{'s' if reads > 1 else ''}"


class Utf8:
    """A response for `EventSource` whose text is strictly UTF-8: the OpenAI SDK raises an exception for other bytes."""

    def __init__(self, response: Response, where: str) -> None:
        self.request, self.headers = response.request, response.headers
        self._response, self._where = response, where

    def iter_text(self) -> Iterator[str]:
        """The body as text; raises Fault."""
        decoder = getincrementaldecoder("utf-8")()
        try:
            for part in self._response.iter_bytes():
                yield decoder.decode(part)
        except UnicodeDecodeError:
            raise Fault("encoding", f"the stream from {self._where} is not UTF-8", "look at what proxies do") from None


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that at least `percent` of them don't exceed (nearest rank); there must be a value."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def collect(
    events: Iterable[ServerSentEvent],
    into: Transcript,
    allow: Callable[[list[str]], list[str]],
    started: float,
    deadline: float,
) -> None:
    """Adds `events` to a transcript until they end or `deadline` passes; times are on the monotonic clock.

    `allow` takes problems of a chunk and gives back those that the dialect is not known for. A connection that breaks
    raises from `events`; what came before stays in the transcript, which lacks `[DONE]`.
    """
    size = 0
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
            _chunk(event, into, allow, now - started)
        if now > deadline or into.events >= MAX_EVENTS or size > MAX_SIZE:
            # first: there may be as many others as a report shows
            into.malformed.insert(0, f"the stream had no end after {now - started:.0f} s and {into.events} events")
            return


def _chunk(event: ServerSentEvent, into: Transcript, allow: Callable[[list[str]], list[str]], now: float) -> None:
    try:
        data = json.loads(event.data, parse_constant=no_number)
    except (ValueError, RecursionError):
        into.malformed.append(f"event {into.events} is no JSON")
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
        into.malformed += allow([f"event {into.events}: {problem}" for problem in problems])
        del into.malformed[2 * MAX_PROBLEMS :]
        chunk, _ = parse(BareChunk, data)
    if chunk is None:
        return
    if into.model and chunk.model not in ("", into.model):
        into.malformed.append(f"the model changes from {into.model!r} to {chunk.model!r}")
    into.model = into.model or chunk.model
    into.usage = chunk.usage or into.usage
    for choice in chunk.choices:
        if into.role_first is None:
            into.role_first = choice.delta.role is not None
        # vLLM: `reasoning`; older ones and others: `reasoning_content`
        extra = choice.delta.model_extra or {}
        reasoning = bool(extra.get("reasoning") or extra.get("reasoning_content"))
        into.reasoning = into.reasoning or reasoning
        if choice.delta.content or reasoning:
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


def _listed(reasons: list[str]) -> str:
    return f" ({', '.join(reasons)})" if reasons else ""
