"""A chat completion and a streamed one, compared with the API reference."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from stackgen.check.checks.model_names import did_you_mean
from stackgen.check.checks.verdict import Context, Verdict, fail, succeed, warn
from stackgen.check.dialects import OPENAI, allowed_finish_reasons, finish_problem
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.openai_schema import Completion, parse, usage_problem
from stackgen.check.transport.session import Reply, content_type, error_message, read_reply
from stackgen.check.transport.stream import StrictUtf8, Transcript, collect_events
from stackgen.plan import Dialect

__all__ = ["chat", "is_unknown_model", "stream"]

LOGS_HINT = "see the server's log: `docker compose logs`"
CONTRACT_HINT = "OpenAI clients may fail on this: https://platform.openai.com/docs/api-reference/chat/object"
REASONING_HINT = "the model used all tokens for reasoning: start the server with less reasoning to see an answer"
SLOW_HINT = "check the server's queue and load: /metrics, `nvidia-smi`. The server may still be warming up"
BUFFERING_HINT = (
    "a proxy buffers the stream, or the server sends tokens in groups. To turn buffering off, set `gzip off` and"
    " `proxy_buffering off` in nginx, or `option http-no-delay` in HAProxy"
)
TOO_LONG_HINT = "the server ignores max_tokens, so answers may become very long"
# a report keeps at most this many inter-token latencies of a stream
MAX_SAMPLES = 256
# a stream that keeps sending may last this many timeouts; one timeout bounds a single silence
STREAM_FACTOR = 10
# OpenAI answers requests for `gpt-x` as its snapshot `gpt-x-2025-01-31` or `gpt-x-0613`
SNAPSHOT = re.compile(r"-(\d{4}-\d\d-\d\d|\d{4})")


def chat(context: Context, model: str) -> Verdict:
    """The answer has all documented fields and text, its usage adds up, and it comes from the requested model."""
    reply = context.session.post(f"{context.url}/chat/completions", context.chat_body(model))
    if reply.status != 200:
        return _fail_refused(context, reply, model)
    excerpt, notes = context.session.redact.excerpt, list[str]()
    # the schema reports all structural problems at once; the rules between fields follow below
    completion, problems = parse(Completion, reply.json())
    if completion is None:
        if reply.json() is None:
            kind = (reply.content_type or "no content type") if reply.body.strip() else "an empty body"
            problems = (f"{kind} instead of JSON",)
        elif error := excerpt(error_message(reply), 160):
            message = f"the response is an error despite status 200: {error}"
            return fail(message, hint=LOGS_HINT, evidence=context.excerpt(reply))
        evidence = f"{'; '.join(problems[:5])}; {context.excerpt(reply)}"
        return fail(f"the body is not as documented: {problems[0]}", hint=CONTRACT_HINT, evidence=evidence)
    wrong = context.drop_deviations("chat", _content_problems(context, completion), notes)
    wrong += _model_problems(context, completion.model, model, notes)
    if wrong:
        return fail("; ".join(wrong), hint=CONTRACT_HINT, evidence=context.excerpt(reply))
    first, usage = completion.choices[0], completion.usage
    counted = usage.completion_tokens if usage else 0
    # a full context ends an answer early too, so a short answer alone is no failure
    if usage and first.finish_reason == "length" and 0 < counted < context.max_tokens:
        short = [_short_count(counted, context.max_tokens)]
        # the known deviation of a dialect is one token; a larger difference stays a note
        notes += context.drop_deviations("chat", short, notes) if counted == context.max_tokens - 1 else short
    if reply.content_type.lower() != "application/json":
        notes.append(f"the content type of the response is {excerpt(reply.content_type, 60) or 'missing'}")
    figures = {"prompt_tokens": float(usage.prompt_tokens), "completion_tokens": float(counted)} if usage else {}
    text = first.message.content or ""
    if counted > context.max_tokens:
        message = f"{counted} tokens were generated, but at most {context.max_tokens} were requested"
        return warn(message, hint=TOO_LONG_HINT, evidence=context.excerpt(reply), figures=figures)
    if not text and context.max_tokens > 1:
        message = "the answer has only reasoning and no content"
        return warn(message, hint=REASONING_HINT, evidence=context.excerpt(reply), figures=figures)
    # the answer of the first model is shown for the endpoint
    context.answer = excerpt(text, 1000) if context.answer is None else context.answer
    context.chat_answers[model] = (text, counted)
    shown = f"the model answers {repr(excerpt(text, 60)) if text.strip() else 'with white space'}"
    if usage is None:
        return warn(f"{shown}, but the server reports no usage", hint="clients can't count tokens", notes=tuple(notes))
    message = f"{shown} ({counted} tokens, finish_reason {first.finish_reason})"
    return succeed(message, notes=tuple(notes), figures=figures)


def _content_problems(context: Context, completion: Completion) -> list[str]:
    """Returns problems beyond single fields. One choice is expected, because the request does not set `n`."""
    first, usage = completion.choices[0], completion.usage
    wrong = [problem] if usage and (problem := usage_problem(usage)) else []
    if len(completion.choices) > 1:
        wrong.append(f"the answer has {len(completion.choices)} choices, but one was requested")
    if first.index:
        wrong.append(f"the only choice has index {first.index}")
    if problem := finish_problem(first.finish_reason, allowed_finish_reasons(context.dialect)):
        wrong.append(problem)
    extra = first.message.model_extra or {}
    content = first.message.content or extra.get("reasoning") or extra.get("reasoning_content")
    counted = usage.completion_tokens if usage else 0
    if not content and context.max_tokens > 1:
        wrong.append("the answer has no content")
    # a single token may be half a letter or a mark of reasoning; then only the usage shows that a token was generated
    elif not content and not counted:
        wrong.append("the model generated nothing: the answer has no content, and usage counts no completion tokens")
    elif usage and not counted:
        at_limit = first.finish_reason == "length" and context.max_tokens == 1
        wrong.append(_short_count(0, 1) if at_limit else "usage counts no completion tokens, but the answer has text")
    return wrong


def _short_count(counted: int, limit: int) -> str:
    return f"completion_tokens is {counted} at a length limit of {limit}"


# the check reads this many more streams before it reports buffering
BUFFERING_RETRIES = 2
# an answer that is long enough to show whether its tokens arrive one by one
LONG_ANSWER: dict[str, object] = {
    "messages": [{"role": "user", "content": "Count from one to forty, in words."}],
    "max_tokens": 64,
}


def stream(context: Context, model: str) -> Verdict:
    """The stream starts with a role, has content, ends with one finish reason and `[DONE]`, and has no error."""
    transcript, cut, notes, other = _read_stream(context, model)
    one_token = 0.0
    if other is None and not cut and transcript.describe_buffering():
        # a proxy buffers every stream; a busy machine delays only some streams
        one_token = _time_one_token(context, model)
        for _ in range(BUFFERING_RETRIES):
            retry = _read_stream(context, model)
            if retry[3] is None and not retry[0].describe_buffering(one_token):
                transcript, cut, notes, other = retry
                break
    verdict = other or _judge_stream(context, model, transcript, cut, notes, one_token)
    if verdict.status == "pass" and transcript.may_be_buffered():
        return _check_longer_answer(context, model, verdict)
    return verdict


def _check_longer_answer(context: Context, model: str, verdict: Verdict) -> Verdict:
    """Returns `verdict`, unless longer answers, which show buffering clearly, arrive buffered in every retry."""
    one_token = _time_one_token(context, model)
    for _ in range(BUFFERING_RETRIES):
        transcript, cut, _, other = _read_stream(context, model, LONG_ANSWER)
        if other is not None or cut or not (buffering := transcript.describe_buffering(one_token)):
            return verdict
    speed, figures = transcript.format_speed(), transcript.figures()
    return warn(buffering, hint=BUFFERING_HINT, evidence=speed, notes=verdict.notes, figures=figures)


def _time_one_token(context: Context, model: str) -> float:
    """Returns how long an answer of one token takes (s), or 0.0 without an answer: `chat` reports a missing answer."""
    started = time.monotonic()
    try:
        reply = context.session.post(f"{context.url}/chat/completions", context.chat_body(model) | {"max_tokens": 1})
    except Fault:
        return 0.0
    return time.monotonic() - started if reply.status == 200 else 0.0


def _read_stream(
    context: Context, model: str, changes: Mapping[str, object] | None = None
) -> tuple[Transcript, str, list[str], Verdict | None]:
    """Returns one stream, how it was cut, and notes; or the verdict on a response that is not a stream."""
    # heavy: only a check that runs needs it
    from httpx2 import EventSource

    transcript, started, cut, notes = Transcript(), time.monotonic(), "", list[str]()
    timeout, deadline = context.options.timeout, started + STREAM_FACTOR * context.options.timeout
    body, url = {**context.chat_body(model, stream=True), **(changes or {})}, f"{context.url}/chat/completions"

    def drop_deviations(problems: list[str]) -> list[str]:
        return context.drop_deviations("stream", problems, notes)

    try:
        with context.session.stream(url, body) as (response, shown, extend):
            if response.status_code != 200 or content_type(response).lower() != "text/event-stream":
                # `read_reply` has its own time limit, which must pass before this deadline
                extend(2 * timeout)
                reply = read_reply(response, timeout)
                shown.append(reply.body.decode("utf-8", "replace"))
                return transcript, "", notes, _judge_whole_reply(context, reply, model)
            try:
                # StrictUtf8 has every attribute of a response that EventSource uses
                events: Any = StrictUtf8(response, f"{context.session.target.host}:{context.session.target.port}")
                collect_events(EventSource(events), transcript, drop_deviations, started, deadline,
                               progress=lambda: extend(timeout), arrived=lambda: events.arrived)  # fmt: skip
            finally:
                shown += [transcript.first_events, transcript.last_event]
    except Fault as fault:
        # a fault before the first event means a failed request; a later fault means a cut stream
        if not transcript.events:
            raise
        cut = f" ({fault.message})"
    return transcript, cut, notes, None


def _judge_stream(
    context: Context, model: str, transcript: Transcript, cut: str, notes: list[str], one_token: float = 0.0
) -> Verdict:
    excerpt = context.session.redact.excerpt
    if not transcript.events:
        hint = f"FastChat sends empty streams with pydantic 2: install pydantic<2. For other servers, {LOGS_HINT}"
        return fail("the stream is empty: the server sent status 200, but no events", hint=hint)
    # problems come first: usage and speed mean nothing for a broken stream
    problems = transcript.problems(allowed_finish_reasons(context.dialect))
    wrong = context.drop_deviations("stream", problems, notes)
    wrong += _model_problems(context, transcript.model, model, notes)
    if wrong:
        more = f" (and {len(wrong) - 1} more problem{'s' if len(wrong) > 2 else ''})" if len(wrong) > 1 else ""
        evidence = excerpt(f"{'; '.join(wrong)}; last event: {transcript.last_event}", 600)
        return fail(f"{excerpt(wrong[0])}{more}{cut}", hint=LOGS_HINT, evidence=evidence)
    speed, no_usage = transcript.format_speed(), transcript.usage is None
    if not context.dialect.stream_usage and no_usage:
        notes.append(f"{context.dialect.name} reports no usage in streams")
    measured: dict[str, Any] = {
        "notes": tuple(notes),
        "figures": transcript.figures(),
        "samples": {"inter_token_seconds": transcript.inter_token_latencies()[:MAX_SAMPLES]},
    }
    if slow := _too_slow(context, transcript, one_token):
        return fail(slow, hint=SLOW_HINT, evidence=speed, **measured)
    if loss := transcript.describe_text_loss(*context.chat_answers.get(model, ("", 0))):
        return warn(loss, hint="a proxy or the server loses or repeats events", evidence=speed, **measured)
    if buffering := transcript.describe_buffering(one_token):
        return warn(buffering, hint=BUFFERING_HINT, evidence=speed, **measured)
    if extra := transcript.describe_extra_chunks():
        return warn(extra, hint="a proxy or the server repeats events, or splits tokens", evidence=speed, **measured)
    if context.dialect.stream_usage and no_usage:
        message = "the stream is complete, but reports no usage, although usage was requested"
        return warn(message, hint="clients can't count the tokens of streams", evidence=speed, **measured)
    ends = f"finish_reason {transcript.finish_reasons[0]}, [DONE]"
    return succeed(f"the stream is complete: {transcript.deltas} deltas, {ends}; {speed}", **measured)


def _too_slow(context: Context, transcript: Transcript, one_token: float) -> str:
    """Describes the user's limit that the stream breaks; empty if it breaks none. An unknown speed breaks no limit."""
    target, options, figures = context.session.target, context.options, transcript.figures()
    max_ttft = target.max_ttft or options.max_ttft
    if max_ttft and figures.get("ttft_seconds", 0.0) > max_ttft:
        return f"the first token took {figures['ttft_seconds']:.3f} s, above the limit of {max_ttft:g} s"
    min_rate = target.min_tokens_per_second or options.min_tokens_per_second
    # without usage in the stream, the rate counts chunks; a chunk contains one or a few tokens
    rate = transcript.effective_rate(one_token) if min_rate else None
    if min_rate and rate is not None and rate < min_rate:
        return f"the stream ran at {rate:.1f} tokens/s, below the limit of {min_rate:g} tokens/s"
    return ""


def _judge_whole_reply(context: Context, reply: Reply, model: str) -> Verdict:
    if reply.status != 200:
        return _fail_refused(context, reply, model)
    # FastChat with pydantic 2 sends status 200 and an empty body, with or without a content type
    if not reply.body:
        return _judge_stream(context, model, Transcript(), "", [])
    message = f"the content type of the response is {reply.content_type or 'missing'}, not text/event-stream"
    return fail(message, hint="the server or its proxy ignores the field `stream`", evidence=context.excerpt(reply))


def _fail_refused(context: Context, reply: Reply, model: str) -> Verdict:
    error, evidence = context.session.redact.excerpt(error_message(reply), 160), context.excerpt(reply)
    message = f"{reply.summary} instead of a completion" + (f": {error}" if error else "")
    if is_unknown_model(context.dialect, reply):
        return fail(message, hint=did_you_mean(model, context.listed or ()), evidence=evidence)
    if reply.status in (401, 403):
        return fail(message, hint="the server refuses the key", evidence=evidence)
    if location := context.redirect_target(reply):
        message += f": the server redirects to {location}"
        return fail(message, hint="use the URL that the server redirects to", evidence=evidence)
    if reply.status == 429:
        wait = f"retry after {reply.retry_after} (Retry-After)" if reply.retry_after else "send fewer requests"
        return fail(message, hint=f"a rate limit was reached, or the queue is full: {wait}", evidence=evidence)
    if reply.status in (502, 503, 504):
        hint = f"a proxy answers, but the server behind the proxy is down, overloaded or still loading; {LOGS_HINT}"
        return fail(message, hint=hint, evidence=evidence)
    return fail(message, hint=LOGS_HINT, evidence=evidence)


def is_unknown_model(dialect: Dialect, reply: Reply) -> bool:
    """Whether an error is the dialect's response to a model name that it doesn't serve."""
    status, code = dialect.unknown_model
    # vLLM and OpenAI wrap the code in `error`, FastChat has it at the top level
    body = reply.json()
    inner = body.get("error", body) if isinstance(body, dict) else None
    return reply.status == status and (code is None or (isinstance(inner, dict) and inner.get("code") == code))


def _model_problems(context: Context, answered: str, requested: str, notes: list[str]) -> list[str]:
    if answered == requested or not answered:
        return []
    if context.dialect.name == OPENAI.name and SNAPSHOT.fullmatch(answered.removeprefix(requested)):
        notes.append(f"the model that answered is {answered}")
        return []
    # a server reports its first name and lists that name first; a gateway may list other models before it
    leading = {*(context.listed or ())[:1], *context.session.target.models[:1]}
    if context.dialect.reports_first_name and answered in leading:
        notes.append(f"{requested} is an alias: {context.dialect.name} reports the name {answered} in its answers")
        return []
    return [f"the model {requested!r} was requested, but {answered!r} answered"]
