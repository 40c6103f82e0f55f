"""Several requests at once: all are answered, and each gets its own answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from stackgen.check.checks.features.schemas import TextChoice, TextCompletion
from stackgen.check.checks.verdict import Context, Verdict, failed, passed, warned
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.openai_schema import Completion, parse
from stackgen.check.transport.stream import percentile

__all__ = ["load"]

MAX_TOKENS = 16
# Words that a prompt is longer by than the one before: two nonces differ by fewer than half as many tokens. Lengths
# start again after some, so that a prompt of a large load fits a small context.
STEP, LENGTHS = 16, 12
# what a prompt begins with
OPENING = "Do not read this:"
# consonants and vowels in turn: a few tokens, which a small model can repeat
CONSONANTS, VOWELS = "bdfgklmnprtvz", "aeiou"
LOGS_HINT = "look at the server's log: `docker compose logs`"
WEDGE_HINT = (
    "a FastChat worker hangs like this, with /v1/models still green, when its slots have leaked (`temperature: null`"
    " does it): restart the worker"
)
SLOW_HINT = f"the engine may hang, or be slower than the time-out: allow more by --timeout; {LOGS_HINT}"
MIXED_HINT = "a proxy, a cache or the engine gives answers to the wrong client: let nobody use it"
LIMIT_HINT = "its queue or a rate limit is smaller than the load"


@dataclass(slots=True)
class Marks:
    """What in an answer tells whose it is, as one request at a time has shown."""

    # the response's id holds the X-Request-Id of the request (vLLM)
    id: bool = False
    # the text holds the prompt, as /completions with `echo` was asked
    echo: bool = False
    # the model repeats the word that it is told to
    repeat: bool = False
    # prompt tokens of the shortest prompt, and how many a step adds; a step of 0 tells nothing
    base: float = 0.0
    step: float = 0.0

    def told(self) -> str:
        """The marks in words, for evidence."""
        words = (
            ("the request's id in the response's", self.id),
            ("the prompt echoed", self.echo),
            ("a word repeated by the model", self.repeat),
            ("the number of prompt tokens", self.step > 0),
        )
        return ", ".join(word for word, used in words if used)


@dataclass(slots=True)
class Answer:
    """How a request ended. `status` is None where nothing came, `problem` empty where a right answer came."""

    number: int
    nonce: str
    seconds: float = 0.0
    status: int | None = None
    problem: str = ""
    timeout: bool = False
    id: str = ""
    text: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int = 0


def load(context: Context, model: str) -> Verdict:
    """As many requests at once as `Options.load` says are all answered, and none gets another one's answer."""
    count = context.options.load
    nonces = _nonces(count + 3)
    first, marks = _calibrate(context, model, nonces[count:])
    if first.status == 429:
        return warned(f"a single request is refused already: {first.problem}", LIMIT_HINT)
    if first.problem:
        return failed(f"a single request gets no answer: {first.problem}", _hint(context, first))
    begun = time.monotonic()
    with ThreadPoolExecutor(count, "stackgen-load") as pool:
        answers = list(pool.map(lambda number: _ask(context, model, number, nonces[number], marks.echo), range(count)))
    seconds = time.monotonic() - begun
    done = [answer for answer in answers if not answer.problem]
    figures, samples = _figures(done, count, seconds)
    used = marks.told()
    evidence = f"told apart by: {used}" if used else "nothing in the answers tells them apart"
    # a small model that repeated its word once needs not do so always: that shows no mix-up, and proves less
    mute = sum(answer.nonce not in answer.text for answer in done) if marks.repeat else 0
    notes = (f"{mute} of {len(done)} answers do not repeat their word",) if mute else ()
    more: dict[str, Any] = {"figures": figures, "samples": samples, "notes": notes}
    if mixed := _mixed(answers, nonces, marks):
        return failed(f"answers are mixed up: {mixed[0]}", MIXED_HINT, "; ".join((*mixed[:3], evidence)), **more)
    refused = [answer for answer in answers if answer.status in (429, 503)]
    broken = [answer for answer in answers if answer.problem and answer not in refused]
    if broken or not done:
        return _broken(context, broken or refused, count, evidence, more)
    if refused:
        return warned(f"refuses beyond {len(done)} of {count} requests at once: {refused[0].problem}", LIMIT_HINT,
                      evidence, **more)  # fmt: skip
    told = f"{count} at once in {seconds:.2f} s, p50 {figures['p50_seconds']:.2f} s, p99 {figures['p99_seconds']:.2f} s"
    if not used:
        return warned(f"{told}, but mix-ups can't be told", "nothing in an answer shows whose it is", evidence, **more)
    return passed(told, evidence, **more)


def _broken(context: Context, broken: Sequence[Answer], count: int, evidence: str, more: dict[str, Any]) -> Verdict:
    silent = [answer for answer in broken if answer.timeout]
    first = (silent or broken)[0]
    told = [f"request {one.number + 1}: {one.problem}" for one in broken[:3]]
    return failed(f"{len(broken)} of {count} requests at once not answered: {first.problem}", _hint(context, first),
                  "; ".join([*told, evidence]), **more)  # fmt: skip


def _hint(context: Context, answer: Answer) -> str:
    if not answer.timeout:
        return LOGS_HINT
    return WEDGE_HINT if context.dialect.name == "fastchat" else SLOW_HINT


def _calibrate(context: Context, model: str, nonces: Sequence[str]) -> tuple[Answer, Marks]:
    """Which marks come back when nothing else runs; the first answer tells whether requests work at all."""
    marks = Marks()
    first = _ask(context, model, 0, nonces[0], False)
    if first.problem:
        return first, marks
    marks.id, marks.repeat = nonces[0] in first.id, nonces[0] in first.text
    shortest = first
    # the echo is worth another path only where the id doesn't tell
    if not marks.id:
        echoed = _ask(context, model, 0, nonces[1], True)
        # a model may repeat the word by itself, once; what a server echoes begins as the prompt does
        if not echoed.problem and nonces[1] in echoed.text and echoed.text.lstrip().startswith(OPENING):
            marks.echo, marks.repeat, shortest = True, False, echoed
    # the longest: measured over fewer steps, what nonces differ by would be taken for a part of the step
    longest = _ask(context, model, LENGTHS - 1, nonces[2], marks.echo)
    if shortest.prompt_tokens is not None and longest.prompt_tokens is not None:
        step = (longest.prompt_tokens - shortest.prompt_tokens) / (LENGTHS - 1)
        # less than half a token a word is no count of this prompt
        if step >= STEP / 2:
            marks.base, marks.step = shortest.prompt_tokens, step
    return first, marks


def _ask(context: Context, model: str, number: int, nonce: str, echo: bool) -> Answer:
    """One request. Its length tells its number, its text and its header hold the nonce."""
    filler = " one" * (STEP * (number % LENGTHS))
    prompt = f"{OPENING}{filler}. Repeat this word and nothing else: {nonce}"
    body: dict[str, object] = {"model": model, "max_tokens": MAX_TOKENS, "temperature": 0}
    body |= {"prompt": prompt, "echo": True} if echo else {"messages": [{"role": "user", "content": prompt}]}
    answer, started = Answer(number, nonce), time.monotonic()
    try:
        path = "completions" if echo else "chat/completions"
        reply = context.session.post(f"{context.url}/{path}", body, headers={"X-Request-Id": nonce})
    except Fault as fault:
        answer.problem, answer.timeout = fault.message, fault.kind == "timeout"
        return answer
    answer.seconds, answer.status = time.monotonic() - started, reply.status
    if reply.status != 200:
        answer.problem = context.excerpt(reply)
        return answer
    parsed: TextCompletion | Completion | None
    parsed, problems = parse(TextCompletion, reply.json()) if echo else parse(Completion, reply.json())
    if parsed is None:
        answer.problem = f"a body that is not as documented: {problems[0]}; {context.excerpt(reply)}"
        return answer
    choice, usage = parsed.choices[0], parsed.usage
    answer.id, answer.text = (
        parsed.id,
        (choice.text if isinstance(choice, TextChoice) else choice.message.content or ""),
    )
    if usage:
        answer.prompt_tokens, answer.completion_tokens = usage.prompt_tokens, usage.completion_tokens
    return answer


def _mixed(answers: Sequence[Answer], nonces: Sequence[str], marks: Marks) -> list[str]:
    """Which requests got the answer of another one; the `nonces` beyond theirs are of requests before the load."""
    found = []
    for answer in answers:
        if answer.problem:
            continue
        mine, where = answer.number + 1, f"{answer.id} {answer.text}"
        others = [number + 1 for number, nonce in enumerate(nonces) if nonce != answer.nonce and nonce in where]
        if others:
            whose = f"of request {others[0]}" if others[0] <= len(answers) else "of an earlier request"
            found.append(f"request {mine} got the answer {whose}")
        elif (marks.id and answer.nonce not in answer.id) or (marks.echo and answer.nonce not in answer.text):
            found.append(f"request {mine} got an answer without its mark")
        elif marks.step and answer.prompt_tokens is not None:
            steps = round((answer.prompt_tokens - marks.base) / marks.step)
            if steps != answer.number % LENGTHS:
                found.append(f"request {mine} got an answer to a prompt of {answer.prompt_tokens} tokens")
    return found


def _figures(
    done: Sequence[Answer], count: int, seconds: float
) -> tuple[dict[str, float], dict[str, tuple[float, ...]]]:
    figures = {"requests": float(count), "answered": float(len(done)), "seconds": round(seconds, 4)}
    times = tuple(round(answer.seconds, 4) for answer in done)
    if times:
        figures |= {"p50_seconds": percentile(times, 50), "p99_seconds": percentile(times, 99)}
        # without usage there is nothing to count
        if tokens := sum(answer.completion_tokens for answer in done):
            figures["tokens_per_second"] = round(tokens / max(seconds, 1e-6), 1)
    return figures, {"latency_seconds": times}


def _nonces(count: int) -> list[str]:
    """Different words of eight letters that no model has seen."""
    found: set[str] = set()
    while len(found) < count:
        found.add("".join(secrets.choice(CONSONANTS) + secrets.choice(VOWELS) for _ in range(4)))
    return sorted(found)
