"""The content of a streamed completion: its problems, its speed, and whether a proxy buffered it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stackgen.check.dialects import finish_problem
from stackgen.check.transport.answer import Content, Outcome
from stackgen.check.transport.openai_schema import Usage, usage_problem

__all__ = ["Transcript", "percentile"]

# a field that is wrong in one chunk is usually wrong in all of them
MAX_PROBLEMS = 5
# Chunks within a millisecond came in one read. Tokens that take 5 ms each can't arrive in one read unless buffered.
SAME_READ_SECONDS, MIN_TOKEN_SECONDS = 0.001, 0.005
# a busy machine sometimes reads two chunks together; if this happens for the whole stream, the stream is buffered
MIN_CHUNKS, MIN_CHUNKS_PER_READ = 8, 1.75
# fewer chunks prove buffering only if all came in one read, at least MIN_HELD_SECONDS after the request
MIN_CHUNKS_ONE_READ, MIN_HELD_SECONDS = 4, 0.25
# some servers send two or three tokens in a chunk, and speculative decoding sends a few more
MAX_TOKENS_PER_CHUNK = 5


@dataclass(slots=True)
class Transcript:
    """The content of a stream. Times are seconds since the request was sent; None means that no such part arrived.

    `calls` are the streamed tool calls by index: `name` and `arguments`, put together from all chunks.
    `arrivals` are the times of the chunks with text. `stream_problems` are problems of single events; `problems` adds
    the problems of the whole stream. `first_events` and `last_event` are raw data, for evidence.
    """

    events: int = 0
    content: Content = field(default_factory=Content)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    arrivals: list[float] = field(default_factory=list)
    starts_with_role: bool | None = None
    finish_reasons: list[str] = field(default_factory=list)
    usage: Usage | None = None
    id: str = ""
    model: str = ""
    done: bool = False
    after_done: int = 0
    error: str = ""
    stream_problems: list[str] = field(default_factory=list)
    first_events: str = ""
    last_event: str = ""

    @property
    def text(self) -> str:
        """The text of all chunks."""
        return self.content.text

    @property
    def reasoning(self) -> bool:
        """Whether a chunk has reasoning."""
        return "reasoning" in self.content.others

    @property
    def deltas(self) -> int:
        """How many chunks have text."""
        return len(self.arrivals)

    @property
    def progress_count(self) -> int:
        """Grows with each event that has text, a finish reason, usage, an error or the end of the stream."""
        ends = len(self.finish_reasons) + bool(self.error) + self.done + self.after_done
        return self.deltas + bool(self.usage) + ends

    def add_problem(self, problem: str) -> None:
        """Adds a problem once; only the first ten are kept."""
        if problem not in self.stream_problems and len(self.stream_problems) < 2 * MAX_PROBLEMS:
            self.stream_problems.append(problem)

    def add_calls(self, deltas: Any) -> None:
        """Adds the `tool_calls` of a chunk: the first part of a call has its name, later parts its arguments."""
        for one in deltas if isinstance(deltas, list) else ():
            function = one.get("function") if isinstance(one, dict) else None
            if not isinstance(function, dict) or not isinstance(index := one.get("index", 0), int):
                continue
            call = self.calls.setdefault(index, {"name": "", "arguments": ""})
            for name in call:
                call[name] += part if isinstance(part := function.get(name), str) else ""

    def judge(self, limit: int | None) -> Outcome:
        """The verdict on the content of the stream; `limit` is the requested token limit."""
        counted = self.usage.completion_tokens if self.usage else 0
        return self.content.judge(self.finish_reasons[0] if self.finish_reasons else "", counted, limit)

    def describe_content(self, limit: int | None) -> str:
        """Describes a stream without text, if that is only worth a warning; else empty."""
        outcome = self.judge(limit)
        if outcome.status != "warn":
            return ""
        kinds = " and ".join(self.content.others)
        return f"the stream has only {kinds} and no content" if kinds else "the stream has no text"

    def problems(self, allowed_finish: frozenset[str], limit: int | None = None) -> list[str]:
        """Returns the problems that a client would fail on, the worst first; empty for a complete stream.

        `limit` is the requested token limit: a single token may have no text.
        """
        found = []
        # the error first, because it usually explains the other problems
        if self.error:
            found.append(f"the stream has an error event despite status 200: {self.error}")
        found += self.stream_problems[:MAX_PROBLEMS]
        # None means that no chunk had a choice, which is reported as missing content
        if self.starts_with_role is False:
            found.append("the first chunk has no role")
        if self.judge(limit).status == "fail" and not self.error:
            found.append("no chunk has content")
        if len(self.finish_reasons) != 1:
            found.append(_wrong_finish_count(self.finish_reasons))
        found += [problem for reason in self.finish_reasons if (problem := finish_problem(reason, allowed_finish))]
        if not self.done:
            found.append("the stream was cut: it ends without [DONE]")
        if self.after_done:
            found.append(f"the stream has {self.after_done} event{'s' * (self.after_done > 1)} after [DONE]")
        if self.usage and usage_problem(self.usage):
            found.append(usage_problem(self.usage))
        if self.usage and self.deltas and not self.usage.completion_tokens:
            found.append("`usage` counts no completion tokens, but the answer has text")
        return found

    def inter_token_latencies(self) -> tuple[float, ...]:
        """Seconds between chunks with text: the inter-token latencies if a chunk is a token."""
        return tuple(round(after - before, 6) for before, after in zip(self.arrivals, self.arrivals[1:], strict=False))

    def figures(self) -> dict[str, float]:
        """Returns TTFT and inter-token latency (s), and speed (tokens/s); unknown figures are left out.

        The token count is that of the usage. Without usage, chunks are counted instead, as `chunks_per_second`.
        """
        if not self.arrivals:
            return {}
        found, latencies = {"ttft_seconds": round(self.arrivals[0], 4)}, self.inter_token_latencies()
        if latencies:
            found["inter_token_p50_seconds"] = round(percentile(latencies, 50), 5)
            found["inter_token_p99_seconds"] = round(percentile(latencies, 99), 5)
        count, unit = (self.usage.completion_tokens, "tokens") if self.usage else (self.deltas, "chunks")
        # the time of the first token is the TTFT; chunks that all arrived at once show no speed
        if count > 1 and self.arrivals[-1] - self.arrivals[0] > 0.005:
            found[f"{unit}_per_second"] = round((count - 1) / (self.arrivals[-1] - self.arrivals[0]), 1)
        return found

    def format_speed(self) -> str:
        """TTFT and speed as text: `TTFT 0.031 s, 45.2 tokens/s`."""
        figures = self.figures()
        text = f"TTFT {figures['ttft_seconds']:.3f} s" if figures else ""
        for unit in ("tokens", "chunks"):
            if f"{unit}_per_second" in figures:
                text += f", {figures[f'{unit}_per_second']:.1f} {unit}/s"
        return text

    def effective_rate(self, one_token: float = 0.0) -> float | None:
        """Tokens a second (chunks if there is no usage), to compare with a limit; None for fewer than two tokens.

        A buffered stream was generated before it arrived, so its rate uses the whole time since the request. For
        `one_token` see `describe_buffering`.
        """
        count = self.usage.completion_tokens if self.usage else self.deltas
        if count < 2 or not self.arrivals:
            return None
        figures = self.figures()
        rate = figures.get("tokens_per_second", figures.get("chunks_per_second"))
        return count / self.arrivals[-1] if rate is None or self.describe_buffering(one_token) else rate

    def may_be_buffered(self) -> bool:
        """Whether a few chunks came in one read: too few to distinguish a buffering proxy from a fast server."""
        one_read = all(latency <= SAME_READ_SECONDS for latency in self.inter_token_latencies())
        few = MIN_CHUNKS_ONE_READ <= self.deltas < MIN_CHUNKS
        return few and one_read and self.arrivals[-1] / self.deltas >= MIN_TOKEN_SECONDS

    def describe_buffering(self, one_token: float = 0.0) -> str:
        """Describes how the stream was buffered; empty if its tokens arrived one by one.

        `one_token` is how long an answer of one token took (s). The rest of a stream's time was spent on its tokens.
        """
        if not self.arrivals:
            return ""
        reads = 1 + sum(latency > SAME_READ_SECONDS for latency in self.inter_token_latencies())
        held = self.arrivals[-1] - one_token
        if self.deltas >= MIN_CHUNKS:
            together = reads * MIN_CHUNKS_PER_READ <= self.deltas
        else:
            together = reads == 1 and self.deltas >= MIN_CHUNKS_ONE_READ and held >= MIN_HELD_SECONDS
        # the tokens of a tiny model arrive so fast that the kernel itself joins them
        if together and held / self.deltas >= MIN_TOKEN_SECONDS:
            return f"the stream is buffered: {self.deltas} chunks arrived in {reads} read{'s' if reads > 1 else ''}"
        tokens = self._tokens_of_text()
        if tokens >= max(MIN_CHUNKS, MAX_TOKENS_PER_CHUNK * self.deltas) and held / tokens >= MIN_TOKEN_SECONDS:
            events = f"{self.deltas} event{'s' if self.deltas > 1 else ''}"
            return f"the stream is buffered: {tokens} tokens arrived in {events}"
        return ""

    def describe_text_loss(self, text: str, tokens: int) -> str:
        """Describes how the stream lost or repeated one piece of `text`; empty if it did neither.

        `text` is the whole answer, of `tokens` tokens. Answers that differ by rounding differ in more than one piece.
        """
        streamed = self.text
        count = abs(len(text) - len(streamed))
        if not streamed.strip() or not text or not count:
            return ""
        # checked before the usage, because an answer that differs by rounding rarely ends with the same text
        if text.endswith(streamed):
            return f"the first {count} characters of the answer are missing from the stream"
        # an answer with another number of tokens is another answer, not a damaged one
        if not self.usage or self.usage.completion_tokens != tokens:
            return ""
        longer, shorter = (text, streamed) if len(text) > len(streamed) else (streamed, text)
        start = next((index for index, pair in enumerate(zip(longer, shorter, strict=False)) if pair[0] != pair[1]),
                     len(shorter))  # fmt: skip
        # if the rest is the same too, exactly one piece was removed or inserted
        if not longer.endswith(shorter[start:]):
            return ""
        if longer is text:
            if start == len(streamed):
                return f"the last {count} characters of the answer are missing from the stream"
            return f"{count} characters in the middle of the answer are missing from the stream"
        piece = streamed[start : start + count]
        repeated = streamed[:start].endswith(piece) or streamed[start + count :].startswith(piece)
        return f"the stream repeats {count} characters of the answer" if repeated else ""

    def describe_extra_chunks(self) -> str:
        """Describes a stream with more text chunks than tokens; else empty. A token should arrive in one chunk."""
        tokens = self.usage.completion_tokens if self.usage else self.deltas
        if self.deltas <= tokens:
            return ""
        return f"{self.deltas} chunks have text, but only {tokens} tokens were generated"

    def _tokens_of_text(self) -> int:
        """How many tokens the usage counts for the text; 0 if the count may include reasoning that was not sent."""
        tokens = self.usage.completion_tokens if self.usage else 0
        # a token has at least one letter, and some servers count hidden reasoning tokens without reporting them
        return tokens if tokens <= len(self.text) and not self.reasoning else 0


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `percent` of `values` (not empty) don't exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _wrong_finish_count(reasons: list[str]) -> str:
    if not reasons:
        return "the stream has no finish_reason"
    return f"the stream has {len(reasons)} finish reasons instead of one ({', '.join(reasons)})"
