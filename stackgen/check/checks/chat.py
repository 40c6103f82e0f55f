"""A chat completion and a streamed one, against the documented structure."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from stackgen.check.checks.model_names import did_you_mean
from stackgen.check.checks.verdict import Context, Verdict, failed, passed, warned
from stackgen.check.dialects import OPENAI, finish_problem, finish_reasons
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.openai_schema import Completion, parse, sum_problem
from stackgen.check.transport.session import Reply, content_type, error_message, read
from stackgen.check.transport.stream import Transcript, Utf8, collect
from stackgen.plan import Dialect

__all__ = ["chat", "is_unknown_model", "stream"]

LOGS_HINT = "look at the server's log: `docker compose logs`"
CONTRACT_HINT = "OpenAI clients may fail on it: https://platform.openai.com/docs/api-reference/chat/object"
REASONING_HINT = "it spent all of the check's tokens on reasoning: start it with less reasoning to see an answer"
SLOW_HINT = "see the queue and the load of the server: its /metrics, `nvidia-smi`; a first request may still warm it up"
GATHER_HINT = (
    "a proxy holds tokens back (nginx: gzip off and proxy_buffering off; HAProxy: option http-no-delay), or the server"
    " sends them in groups"
)
# inter-token latencies that a report keeps of a stream
MAX_SAMPLES = 256
# a stream that goes on may last this many times the time-out, which bounds a single silence
STREAM_FACTOR = 10
# OpenAI answers `gpt-x` as its snapshot `gpt-x-2025-01-31` or `gpt-x-0613`
SNAPSHOT = re.compile(r"-(\d{4}-\d\d-\d\d|\d{4})")


def chat(context: Context, model: str) -> Verdict:
    """The body has every documented field, the usage adds up, the model is the one asked for, the answer has text."""
    reply = context.session.post(f"{context.url}/chat/completions", context.chat_body(model))
    if reply.status != 200:
        return _refused(context, reply, model)
    notes: list[str] = []
    # all structural problems are found at once; the rules between fields follow below
    completion, problems = parse(Completion, reply.json())
    if completion is None:
        if reply.json() is None:
            kind = (reply.content_type or "something") if reply.body.strip() else "an empty body"
            problems = (f"{kind} instead of JSON",)
        elif said := context.session.redact.excerpt(error_message(reply), 160):
            return failed(f"an error under status 200: {said}", LOGS_HINT, context.excerpt(reply))
        return failed(f"the body is not as documented: {problems[0]}", CONTRACT_HINT,
                      f"{'; '.join(problems[:5])}; {context.excerpt(reply)}")  # fmt: skip
    wrong = context.allow("chat", _content_problems(context, completion), notes)
    wrong += _echo(context, completion.model, model, notes)
    if wrong:
        return failed("; ".join(wrong), CONTRACT_HINT, context.excerpt(reply))
    # a context that is full ends an answer early as well, so this alone is no fault
    first, usage = completion.choices[0], completion.usage
    counted = usage.completion_tokens if usage else 0
    if usage and first.finish_reason == "length" and 0 < counted < context.max_tokens:
        short = [_short(counted, context.max_tokens)]
        # what a dialect is known for is one token
        notes += context.allow("chat", short, notes) if counted == context.max_tokens - 1 else short
    if reply.content_type.lower() != "application/json":
        notes.append(f"the content type is {context.session.redact.excerpt(reply.content_type, 60) or 'missing'}")
    message = first.message
    figures = {"prompt_tokens": float(usage.prompt_tokens), "completion_tokens": float(counted)} if usage else {}
    text = message.content or ""
    if counted > context.max_tokens:
        return warned(f"{counted} tokens came, and at most {context.max_tokens} were asked for",
                      "max_tokens is not kept to: answers may run away", context.excerpt(reply),
                      figures=figures)  # fmt: skip
    if not text and context.max_tokens > 1:
        return warned("only reasoning, no content", REASONING_HINT, context.excerpt(reply), figures=figures)
    # the first model's answer stands for the endpoint
    if context.answer is None:
        context.answer = context.session.redact.excerpt(text, 1000)
    context.texts[model] = (text, counted)
    said = repr(context.session.redact.excerpt(text, 60)) if text.strip() else "with white space"
    if usage is None:
        return warned(f"answers {said}, but reports no usage", "nobody can count what it costs", notes=tuple(notes))
    return passed(f"answers {said} ({counted} tokens, {first.finish_reason})", notes=tuple(notes), figures=figures)


def _content_problems(context: Context, completion: Completion) -> list[str]:
    """What no single field shows: sums, reasons, an answer without text. `n` is not set, so there is one choice."""
    first, usage = completion.choices[0], completion.usage
    wrong = [problem] if usage and (problem := sum_problem(usage)) else []
    if len(completion.choices) > 1:
        wrong.append(f"{len(completion.choices)} choices, and one was asked for")
    if first.index:
        wrong.append(f"the only choice has the index {first.index}")
    if problem := finish_problem(first.finish_reason, finish_reasons(context.dialect)):
        wrong.append(problem)
    extra = first.message.model_extra or {}
    some = first.message.content or extra.get("reasoning") or extra.get("reasoning_content")
    counted = usage.completion_tokens if usage else 0
    if not some and context.max_tokens > 1:
        wrong.append("the answer has no content")
    # a single token may be half a letter or a mark of reasoning, which shows as nothing but in the usage
    elif not some and not counted:
        wrong.append("nothing was generated: no content, and no token in the usage")
    elif usage and not counted:
        at_limit = first.finish_reason == "length" and context.max_tokens == 1
        wrong.append(_short(0, 1) if at_limit else "usage counts no completion token, and there is text")
    return wrong


def _short(counted: int, limit: int) -> str:
    return f"completion_tokens is {counted} at a length limit of {limit}"


# streams more that are looked at before tokens are said to be held back
AGAIN = 2
# an answer of so many tokens that it shows whether they come one by one
LONGER: dict[str, object] = {
    "messages": [{"role": "user", "content": "Count from one to forty, in words."}],
    "max_tokens": 64,
}


def stream(context: Context, model: str) -> Verdict:
    """The stream begins with a role, brings content, ends with one finish reason and `[DONE]`, and has no error."""
    transcript, cut, notes, other = _take(context, model)
    first = 0.0
    if other is None and not cut and transcript.gathering():
        # what gathers tokens does it every time, and a machine that was busy for a moment does not
        first = _first_token(context, model)
        for _ in range(AGAIN):
            again = _take(context, model)
            if again[3] is None and not again[0].gathering(first):
                transcript, cut, notes, other = again
                break
    verdict = other or _judge(context, model, transcript, cut, notes, first)
    if verdict.status == "pass" and transcript.lumped():
        return _longer(context, model, verdict)
    return verdict


def _longer(context: Context, model: str, verdict: Verdict) -> Verdict:
    """`verdict`, unless answers that are long enough to tell come in one piece as well."""
    first = _first_token(context, model)
    for _ in range(AGAIN):
        transcript, cut, _, other = _take(context, model, LONGER)
        if other is not None or cut or not (told := transcript.gathering(first)):
            return verdict
    return warned(told, GATHER_HINT, transcript.speed(), notes=verdict.notes, figures=transcript.figures())


def _first_token(context: Context, model: str) -> float:
    """Seconds that one token takes; 0.0, for unknown, where no answer comes, which is for `chat` to tell."""
    begun = time.monotonic()
    try:
        reply = context.session.post(f"{context.url}/chat/completions", context.chat_body(model) | {"max_tokens": 1})
    except Fault:
        return 0.0
    return time.monotonic() - begun if reply.status == 200 else 0.0


def _take(
    context: Context, model: str, more: Mapping[str, object] | None = None
) -> tuple[Transcript, str, list[str], Verdict | None]:
    """One stream, how it was cut, and notes; or the verdict on an answer that is no stream."""
    from httpx2 import EventSource

    transcript, started, cut, notes = Transcript(), time.monotonic(), "", list[str]()
    timeout, deadline = context.options.timeout, started + STREAM_FACTOR * context.options.timeout
    body, url = {**context.chat_body(model, stream=True), **(more or {})}, f"{context.url}/chat/completions"
    try:
        with context.session.stream(url, body) as (response, shown, extend):
            if response.status_code != 200 or content_type(response).lower() != "text/event-stream":
                # reading has a bound of its own
                extend(2 * timeout)
                reply = read(response, timeout)
                shown.append(reply.body.decode("utf-8", "replace"))
                return transcript, "", notes, _no_stream(context, reply, model)
            try:
                # a response in all that an EventSource wants of one
                events: Any = Utf8(response, f"{context.session.target.host}:{context.session.target.port}")
                collect(EventSource(events), transcript, lambda found: context.allow("stream", found, notes), started,
                        deadline, lambda: extend(timeout), lambda: events.arrived)  # fmt: skip
            finally:
                shown += [transcript.head, transcript.tail]
    except Fault as fault:
        # before the first event it is a fault of the request; after it, a stream that was cut
        if not transcript.events:
            raise
        cut = f" ({fault.message})"
    return transcript, cut, notes, None


def _judge(
    context: Context, model: str, transcript: Transcript, cut: str, notes: list[str], first: float = 0.0
) -> Verdict:
    excerpt = context.session.redact.excerpt
    if not transcript.events:
        return failed("the stream is empty: status 200 and no event",
                      f"FastChat does this with pydantic 2 (it needs pydantic<2); else {LOGS_HINT}")  # fmt: skip
    # usage and speed come after the faults: of a broken stream they mean nothing
    found = transcript.problems(finish_reasons(context.dialect))
    wrong = context.allow("stream", found, notes) + _echo(context, transcript.model, model, notes)
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return failed(f"{excerpt(wrong[0])}{more}{cut}", LOGS_HINT,
                      excerpt(f"{'; '.join(wrong)}; last event: {transcript.tail}", 600))  # fmt: skip
    speed, figures = transcript.speed(), transcript.figures()
    if not context.dialect.stream_usage and transcript.usage is None:
        notes.append(f"{context.dialect.name} reports no usage in streams")
    more_of: dict[str, Any] = {"figures": figures, "samples": {"inter_token_seconds": transcript.gaps()[:MAX_SAMPLES]}}
    if slow := _too_slow(context, transcript, first):
        return failed(slow, SLOW_HINT, speed, notes=tuple(notes), **more_of)
    for message, hint in (
        (transcript.differs(*context.texts.get(model, ("", 0))), "a proxy or the server loses or repeats events"),
        (transcript.gathering(first), GATHER_HINT),
        (transcript.surplus(), "a proxy or the server repeats events, or cuts tokens into pieces"),
        ("ends properly, but reports no usage though asked to"
         if context.dialect.stream_usage and transcript.usage is None else "", "token counts of streams are lost"),
    ):  # fmt: skip
        if message:
            return warned(message, hint, speed, notes=tuple(notes), **more_of)
    return passed(
        f"{transcript.deltas} deltas, {transcript.finishes[0]}, [DONE]; {speed}", notes=tuple(notes), **more_of
    )


def _too_slow(context: Context, transcript: Transcript, first: float) -> str:
    """Which of the user's limits the stream breaks; a speed that can't be told breaks none."""
    target, options, figures = context.session.target, context.options, transcript.figures()
    longest = target.max_ttft or options.max_ttft
    if longest and figures.get("ttft_seconds", 0.0) > longest:
        return f"the first token took {figures['ttft_seconds']:.3f} s, and at most {longest:g} s are wanted"
    least = target.min_tokens_per_second or options.min_tokens_per_second
    # of a server without usage in streams chunks are counted, which are tokens or a few of them
    speed = transcript.rate(first) if least else None
    if least and speed is not None and speed < least:
        return f"{speed:.1f} tokens a second, and at least {least:g} are wanted"
    return ""


def _no_stream(context: Context, reply: Reply, model: str) -> Verdict:
    if reply.status != 200:
        return _refused(context, reply, model)
    # FastChat with pydantic 2 sends 200 and nothing, with or without a content type
    if not reply.body:
        return _judge(context, model, Transcript(), "", [])
    return failed(f"the answer is {reply.content_type or 'of no type'} and not text/event-stream",
                  "the server or a proxy in front ignores `stream`", context.excerpt(reply))  # fmt: skip


def _refused(context: Context, reply: Reply, model: str) -> Verdict:
    said = context.session.redact.excerpt(error_message(reply), 160)
    message = f"{reply.what} instead of a completion" + (f": {said}" if said else "")
    if is_unknown_model(context.dialect, reply):
        return failed(message, did_you_mean(model, context.listed or ()), context.excerpt(reply))
    if reply.status in (401, 403):
        return failed(message, "the server refuses the key", context.excerpt(reply))
    if place := context.place(reply):
        return failed(f"{message}: it redirects to {place}", "use the URL that it names", context.excerpt(reply))
    if reply.status == 429:
        wait = (
            f"it may be asked again after {reply.retry_after} (Retry-After)" if reply.retry_after else "ask less often"
        )
        return failed(message, f"a rate limit or a full queue: {wait}", context.excerpt(reply))
    if reply.status in (502, 503, 504):
        return failed(message, "a proxy answers, and the server behind it is away, full or still loading; "
                      + LOGS_HINT, context.excerpt(reply))  # fmt: skip
    return failed(message, LOGS_HINT, context.excerpt(reply))


def is_unknown_model(dialect: Dialect, reply: Reply) -> bool:
    """Whether an error is the dialect's answer to a model name that it doesn't serve."""
    status, code = dialect.unknown_model
    if reply.status != status:
        return False
    # vLLM and OpenAI wrap the code in `error`, FastChat has it at the top
    body = reply.json()
    inner = body.get("error", body) if isinstance(body, dict) else None
    return code is None or (isinstance(inner, dict) and inner.get("code") == code)


def _echo(context: Context, answered: str, asked: str, notes: list[str]) -> list[str]:
    if answered == asked or not answered:
        return []
    if context.dialect.name == OPENAI.name and SNAPSHOT.fullmatch(answered.removeprefix(asked)):
        notes.append(f"answered by {answered}")
        return []
    # a server of one model with several names lists the leading one first and answers under it; a gateway lists other
    # models before it
    leading = {*(context.listed or ())[:1], *context.session.target.models[:1]}
    if context.dialect.leading_name and answered in leading:
        notes.append(f"{asked} is an alias of {answered}, under which {context.dialect.name} answers")
        return []
    return [f"asked {asked!r}, and {answered!r} answers"]
