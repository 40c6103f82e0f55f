"""The check `load`: concurrent requests are all answered, none is slow or refused, and none gets another's answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from stackgen.check.checks.features.schemas import TextChoice, TextCompletion
from stackgen.check.checks.verdict import Context, Verdict, fail, succeed, warn
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.openai_schema import Completion, parse
from stackgen.check.transport.stream import percentile

__all__ = ["load"]

MAX_TOKENS = 16
# Each prompt is STEP words longer than the previous prompt. Two nonces differ by less than STEP / 2 tokens. The lengths
# repeat after LENGTHS prompts, so that the prompts of a large load still fit a small context.
STEP, LENGTHS = 16, 12
# the start of every prompt; an echo is recognized by it
OPENING = "Do not read this:"
# alternating consonants and vowels: a few tokens that a small model can repeat
CONSONANTS, VOWELS = "bdfgklmnprtvz", "aeiou"
LOGS_HINT = "see the server's log: `docker compose logs`"
WEDGE_HINT = (
    "restart the FastChat worker. In plain FastChat, a request that fails inside the worker can permanently lower the"
    " worker's concurrency limit. At a limit of zero the worker hangs, although /v1/models still answers"
)
SLOW_HINT = f"the engine may hang or be slower than the timeout: raise --timeout; {LOGS_HINT}"
MIXED_HINT = "take the endpoint out of service: a proxy, a cache or the engine sends answers to the wrong client"
LIMIT_HINT = "this load exceeds the server's rate limit or the size of its queue"


@dataclass(slots=True)
class Markers:
    """What in an answer identifies its request. `_calibrate` finds this out with one request at a time."""

    # the id of the response contains the X-Request-Id of the request (vLLM)
    id: bool = False
    # the text contains the prompt: /completions with `echo`
    echo: bool = False
    # the model repeats the word as instructed
    repeat: bool = False
    # prompt tokens of the shortest prompt, and how many each step adds; a step of 0 identifies nothing
    base: float = 0.0
    step: float = 0.0

    def describe(self) -> str:
        """The markers in use as text, for evidence; empty if there are none."""
        markers = (
            ("the request ID in the response ID", self.id),
            ("the echoed prompt", self.echo),
            ("a word repeated by the model", self.repeat),
            ("the number of prompt tokens", self.step > 0),
        )
        return ", ".join(text for text, is_used in markers if is_used)


@dataclass(slots=True)
class Answer:
    """The outcome of a request. `status` is None without a response; `problem` is empty for a correct answer."""

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
    """`Options.load` concurrent requests are all answered, and none gets the answer to another one."""
    count = context.options.load
    nonces = _make_nonces(count + 3)
    first, markers = _calibrate(context, model, nonces[count:])
    if first.status == 429:
        return warn(f"even a single request is refused: {first.problem}", hint=LIMIT_HINT)
    if first.problem:
        return fail(f"a single request gets no answer: {first.problem}", hint=_hint(context, first))

    def send(number: int) -> Answer:
        return _send_request(context, model, number, nonces[number], markers.echo)

    started = time.monotonic()
    with ThreadPoolExecutor(count, "stackgen-load") as pool:
        answers = list(pool.map(send, range(count)))
    seconds = time.monotonic() - started
    done = [answer for answer in answers if not answer.problem]
    figures, samples = _measure(done, count, seconds)
    used = markers.describe()
    evidence = f"answers are identified by: {used}" if used else "no part of an answer identifies its request"
    # a small model may not always repeat its word: that is no mix-up, but the check then proves less
    not_repeated = sum(answer.nonce not in answer.text for answer in done) if markers.repeat else 0
    notes = (f"{not_repeated} of {len(done)} answers do not repeat the word from their prompt",) if not_repeated else ()
    measured: dict[str, Any] = {"figures": figures, "samples": samples, "notes": notes}
    if mix_ups := _find_mix_ups(answers, nonces, markers):
        evidence = "; ".join((*mix_ups[:3], evidence))
        return fail(f"answers are mixed up: {mix_ups[0]}", hint=MIXED_HINT, evidence=evidence, **measured)
    # a server that refuses requests beyond its limits works as designed
    refused = [answer for answer in answers if answer.status in (429, 503)]
    broken = [answer for answer in answers if answer.problem and answer not in refused]
    if broken or not done:
        return _fail_unanswered(context, broken or refused, count, evidence, measured)
    if refused:
        message = f"the server answers {len(done)} of {count} concurrent requests and refuses the others"
        message += f": {refused[0].problem}"
        return warn(message, hint=LIMIT_HINT, evidence=evidence, **measured)
    latencies = f"p50 {figures['p50_seconds']:.2f} s, p99 {figures['p99_seconds']:.2f} s"
    message = f"{count} concurrent requests were answered in {seconds:.2f} s (latency {latencies})"
    if not used:
        message += ", but mixed-up answers can't be detected"
        hint = "no part of an answer shows to which request it belongs"
        return warn(message, hint=hint, evidence=evidence, **measured)
    return succeed(message, evidence=evidence, **measured)


def _fail_unanswered(
    context: Context, broken: Sequence[Answer], count: int, evidence: str, measured: dict[str, Any]
) -> Verdict:
    # a timeout is reported first, because it has its own hint
    timed_out = [answer for answer in broken if answer.timeout]
    first = (timed_out or broken)[0]
    requests = [f"request {one.number + 1}: {one.problem}" for one in broken[:3]]
    message = f"{len(broken)} of {count} concurrent requests were not answered: {first.problem}"
    return fail(message, hint=_hint(context, first), evidence="; ".join([*requests, evidence]), **measured)


def _hint(context: Context, answer: Answer) -> str:
    if not answer.timeout:
        return LOGS_HINT
    return WEDGE_HINT if context.dialect.name == "fastchat" else SLOW_HINT


def _calibrate(context: Context, model: str, nonces: Sequence[str]) -> tuple[Answer, Markers]:
    """Returns the first answer and the markers that come back without other load.

    The first answer shows whether requests work at all.
    """
    markers = Markers()
    first = _send_request(context, model, 0, nonces[0], False)
    if first.problem:
        return first, markers
    markers.id, markers.repeat = nonces[0] in first.id, nonces[0] in first.text
    shortest = first
    # the echo needs another path, so it is used only if the id is no marker
    if not markers.id:
        echoed = _send_request(context, model, 0, nonces[1], True)
        # a model may repeat the word by chance; an echo starts like the prompt
        if not echoed.problem and nonces[1] in echoed.text and echoed.text.lstrip().startswith(OPENING):
            markers.echo, markers.repeat, shortest = True, False, echoed
    # the longest prompt: over fewer steps, the difference between two nonces would distort the step
    longest = _send_request(context, model, LENGTHS - 1, nonces[2], markers.echo)
    if shortest.prompt_tokens is not None and longest.prompt_tokens is not None:
        step = (longest.prompt_tokens - shortest.prompt_tokens) / (LENGTHS - 1)
        # a server that counts less than half a token a word does not count this prompt
        if step >= STEP / 2:
            markers.base, markers.step = shortest.prompt_tokens, step
    return first, markers


def _send_request(context: Context, model: str, number: int, nonce: str, echo: bool) -> Answer:
    """Sends one request. Its length encodes its number; its text and its header contain the nonce."""
    filler = " one" * (STEP * (number % LENGTHS))
    prompt = f"{OPENING}{filler}. Repeat this word and nothing else: {nonce}"
    body: dict[str, object] = {"model": model, "max_tokens": MAX_TOKENS, "temperature": 0}
    body |= {"prompt": prompt, "echo": True} if echo else {"messages": [{"role": "user", "content": prompt}]}
    answer, started = Answer(number, nonce), time.monotonic()
    try:
        headers = {"X-Request-Id": nonce}
        if echo:
            reply = context.session.post(f"{context.url}/completions", body, headers=headers)
        else:
            reply = context.post_chat(model, body, headers=headers)
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
        answer.problem = f"the response body is not as documented: {problems[0]}; {context.excerpt(reply)}"
        return answer
    choice, usage = parsed.choices[0], parsed.usage
    answer.id, answer.text = (
        parsed.id,
        (choice.text if isinstance(choice, TextChoice) else choice.message.content or ""),
    )
    if usage:
        answer.prompt_tokens, answer.completion_tokens = usage.prompt_tokens, usage.completion_tokens
    return answer


def _find_mix_ups(answers: Sequence[Answer], nonces: Sequence[str], markers: Markers) -> list[str]:
    """Requests that got the answer to another one. The last `nonces` belong to requests sent before the load."""
    mix_ups = []
    for answer in answers:
        if answer.problem:
            continue
        mine, content = answer.number + 1, f"{answer.id} {answer.text}"
        others = [number + 1 for number, nonce in enumerate(nonces) if nonce != answer.nonce and nonce in content]
        if others:
            other = f"request {others[0]}" if others[0] <= len(answers) else "an earlier request"
            mix_ups.append(f"request {mine} got the answer to {other}")
        elif (markers.id and answer.nonce not in answer.id) or (markers.echo and answer.nonce not in answer.text):
            mix_ups.append(f"request {mine} got an answer without the marker of this request")
        elif markers.step and answer.prompt_tokens is not None:
            steps = round((answer.prompt_tokens - markers.base) / markers.step)
            if steps != answer.number % LENGTHS:
                mix_ups.append(
                    f"request {mine} got the answer to another prompt, which has {answer.prompt_tokens} tokens"
                )
    return mix_ups


def _measure(
    done: Sequence[Answer], count: int, seconds: float
) -> tuple[dict[str, float], dict[str, tuple[float, ...]]]:
    figures = {"requests": float(count), "answered": float(len(done)), "seconds": round(seconds, 4)}
    times = tuple(round(answer.seconds, 4) for answer in done)
    if times:
        figures |= {"p50_seconds": percentile(times, 50), "p99_seconds": percentile(times, 99)}
        # without usage there are no tokens to count
        if tokens := sum(answer.completion_tokens for answer in done):
            figures["tokens_per_second"] = round(tokens / max(seconds, 1e-6), 1)
    return figures, {"latency_seconds": times}


def _make_nonces(count: int) -> list[str]:
    """`count` different words of eight letters that no model has seen."""
    # a set: a nonce that occurs twice would look like a mix-up
    nonces: set[str] = set()
    while len(nonces) < count:
        nonces.add("".join(secrets.choice(CONSONANTS) + secrets.choice(VOWELS) for _ in range(4)))
    return sorted(nonces)
