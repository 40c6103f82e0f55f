"""What a streamed completion held: what is wrong with it, and how fast it came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from stackgen.check.dialects import finish_problem
from stackgen.check.transport.openai_schema import Usage, sum_problem

__all__ = ["Transcript", "percentile"]

# one wrong field is wrong in every chunk
MAX_PROBLEMS = 5
# Chunks that come within a millisecond were read together. Tokens that take 5 ms each can't be: something gathers them.
TOGETHER_SECONDS, APART_SECONDS = 0.001, 0.005
# A machine that is busy reads some chunks late, and then two together; pairs from end to end are no chance.
LEAST_CHUNKS, GATHERED = 8, 1.75
# fewer chunks tell something only where all came in one read, after they were kept for a while (s)
FEWEST_CHUNKS, KEPT_SECONDS = 4, 0.25
# tokens in a chunk: some servers send two or three at a time, and speculative decoding makes a few more
CROWDED = 5


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
    id: str = ""
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

    @property
    def brought(self) -> int:
        """Grows with each event that brings text, a finish reason, usage, an error or the end."""
        return self.deltas + len(self.finishes) + bool(self.usage) + bool(self.error) + self.done + self.after_done

    def blame(self, problem: str) -> None:
        """Adds a problem once; of many a few are kept."""
        if problem not in self.malformed and len(self.malformed) < 2 * MAX_PROBLEMS:
            self.malformed.append(problem)

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
        found += [problem for reason in self.finishes if (problem := finish_problem(reason, allowed_finish))]
        if not self.done:
            found.append("the stream was cut: it ends without [DONE]")
        if self.after_done:
            found.append(f"{self.after_done} event(s) after [DONE]")
        if self.usage and sum_problem(self.usage):
            found.append(sum_problem(self.usage))
        if self.usage and self.deltas and not self.usage.completion_tokens:
            found.append("usage counts no completion token, and text came")
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

    def rate(self, first: float = 0.0) -> float | None:
        """Tokens a second (chunks where no usage came) for a limit; None where a single one tells nothing.

        What came together was made before: its time is the whole time since the request.
        """
        count = self.usage.completion_tokens if self.usage else self.deltas
        if count < 2 or not self.arrivals:
            return None
        figures = self.figures()
        told = figures.get("tokens_per_second", figures.get("chunks_per_second"))
        return count / self.arrivals[-1] if told is None or self.gathering(first) else told

    def lumped(self) -> bool:
        """Whether a few chunks came in one read: too few to tell a proxy from a server that is fast."""
        together = FEWEST_CHUNKS <= self.deltas < LEAST_CHUNKS and all(gap <= TOGETHER_SECONDS for gap in self.gaps())
        return together and self.arrivals[-1] / self.deltas >= APART_SECONDS

    def gathering(self, first: float = 0.0) -> str:
        """How tokens were held back and sent together though generated apart; empty where they came one by one.

        `first` is how long an answer of one token took (s): what a stream took longer is what its tokens took.
        """
        if not self.arrivals:
            return ""
        reads, kept = 1 + sum(gap > TOGETHER_SECONDS for gap in self.gaps()), self.arrivals[-1] - first
        if self.deltas >= LEAST_CHUNKS:
            together = reads * GATHERED <= self.deltas
        else:
            together = reads == 1 and self.deltas >= FEWEST_CHUNKS and kept >= KEPT_SECONDS
        # tokens of a tiny model come so fast that the kernel itself puts them together
        if together and kept / self.deltas >= APART_SECONDS:
            return f"{self.deltas} chunks came in {reads} read{'s' if reads > 1 else ''}"
        tokens = self._tokens_of_text()
        if tokens >= max(LEAST_CHUNKS, CROWDED * self.deltas) and kept / tokens >= APART_SECONDS:
            return f"{tokens} tokens came in {self.deltas} event{'s' if self.deltas > 1 else ''}"
        return ""

    def differs(self, text: str, tokens: int) -> str:
        """How the stream lost or repeated a piece of `text`, the whole answer of `tokens` tokens; empty otherwise.

        Answers may differ by rounding as well, and then they differ in more than one piece.
        """
        streamed = self.text
        count = abs(len(text) - len(streamed))
        if not streamed.strip() or not text or not count:
            return ""
        if text.endswith(streamed):
            return f"the stream lacks the first {count} characters of the answer"
        # as many tokens and another length; with fewer or more tokens it was another answer
        if not self.usage or self.usage.completion_tokens != tokens:
            return ""
        longer, shorter = (text, streamed) if len(text) > len(streamed) else (streamed, text)
        start = next((place for place, pair in enumerate(zip(longer, shorter, strict=False)) if pair[0] != pair[1]),
                     len(shorter))  # fmt: skip
        # the rest must be the same too: then one piece was cut out, or put in
        if not longer.endswith(shorter[start:]):
            return ""
        if longer is text:
            if start == len(streamed):
                return f"the stream lacks the last {count} characters of the answer"
            return f"the stream lacks {count} characters in the middle of the answer"
        piece = streamed[start : start + count]
        repeated = streamed[:start].endswith(piece) or streamed[start + count :].startswith(piece)
        return f"the stream repeats {count} characters of the answer" if repeated else ""

    def surplus(self) -> str:
        """That more chunks brought text than there were tokens, each of which comes in one chunk; else empty."""
        tokens = self.usage.completion_tokens if self.usage else self.deltas
        return f"{self.deltas} chunks have text, and {tokens} tokens were generated" if self.deltas > tokens else ""

    def _tokens_of_text(self) -> int:
        """How many tokens the text is by the usage; 0 where that also counts what was thought and not sent."""
        tokens = self.usage.completion_tokens if self.usage else 0
        # a token is a letter at least, and hidden reasoning of some servers is counted and nowhere named
        return tokens if tokens <= len(self.text) and not self.reasoning else 0


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that at least `percent` of them don't exceed (nearest rank); there must be a value."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _listed(reasons: list[str]) -> str:
    return f" ({', '.join(reasons)})" if reasons else ""
