"""The check `stream`: chunks in order and complete, time to first token, tokens per second, and buffering."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from stackgen.check.checks.refusal import LOGS_HINT, describe_model_problems, fail_refused
from stackgen.check.checks.verdict import Context, Verdict, fail, succeed, warn
from stackgen.check.dialects import allowed_finish_reasons
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.session import Reply, content_type, read_reply
from stackgen.check.transport.stream import StrictUtf8, Transcript, collect_events
from stackgen.lazy import LazyModule

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = LazyModule("httpx2")

__all__ = ["read_stream", "stream"]

SLOW_HINT = "check the server's queue (/metrics) and GPU load (`nvidia-smi`). The server may still be warming up"
BUFFERING_HINT = (
    "a proxy buffers the stream, or the server sends tokens in groups. To turn buffering off, set `gzip off` and"
    " `proxy_buffering off` in nginx, or `option http-no-delay` in HAProxy"
)
REASONING_HINT = "the model used all tokens for reasoning: raise --max-tokens to see an answer"
# a report keeps at most this many inter-token latencies of a stream
MAX_SAMPLES = 256
# a stream that keeps sending may last this many timeouts; one timeout bounds a single silence
STREAM_FACTOR = 10
# the check reads this many more streams before it reports buffering
BUFFERING_RETRIES = 2
# an answer that is long enough to show whether its tokens arrive one by one
LONG_ANSWER: dict[str, object] = {
    "messages": [{"role": "user", "content": "Count from one to forty, in words."}],
    "max_tokens": 64,
}


def stream(context: Context, model: str) -> Verdict:
    """The stream starts with a role, has content, ends with one finish reason and `[DONE]`, and has no error."""
    transcript, cut, notes, other = read_stream(context, model)
    one_token = 0.0
    if other is None and not cut and transcript.describe_buffering():
        # a proxy buffers every stream; a busy machine delays only some streams
        one_token = _time_one_token(context, model)
        for _ in range(BUFFERING_RETRIES):
            retry = read_stream(context, model)
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
        transcript, cut, _, other = read_stream(context, model, LONG_ANSWER)
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


def read_stream(
    context: Context, model: str, changes: Mapping[str, object] | None = None, max_events: int | None = None
) -> tuple[Transcript, str, list[str], Verdict | None]:
    """Returns one stream, how it was cut, and notes; or the verdict on a response that is not a stream.

    `changes` to the usual request; None removes a field. After `max_events`, the connection is closed.
    """
    transcript, started, cut, notes = Transcript(), time.monotonic(), "", list[str]()
    timeout, deadline = context.session.timeout, started + STREAM_FACTOR * context.session.timeout
    changed = {**context.chat_body(model, stream=True), **(changes or {})}
    body = context.shape(model).apply({name: value for name, value in changed.items() if value is not None})
    url = f"{context.url}/chat/completions"

    def drop_deviations(problems: list[str]) -> list[str]:
        return context.drop_deviations("stream", problems, notes)

    try:
        with context.session.stream(url, body) as (response, shown, extend):
            if response.status_code != 200 or content_type(response).lower() != "text/event-stream":
                # `read_reply` has its own time limit, which must pass before this deadline
                extend(2 * timeout)
                reply = read_reply(response, timeout)
                shown.append(reply.body.decode("utf-8", "replace"))
                # `chat` has learned the form that the model accepts, unless only `stream` is selected
                if context.learn(model, reply):
                    return read_stream(context, model, changes, max_events)
                return transcript, "", notes, _judge_whole_reply(context, reply, model)
            try:
                # StrictUtf8 has every attribute of a response that EventSource uses
                events: Any = StrictUtf8(response, f"{context.session.target.host}:{context.session.target.port}")
                source = islice(httpx2.EventSource(events), max_events)
                collect_events(source, transcript, drop_deviations, started, deadline,
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
        hint = f"with pydantic 2, FastChat sends empty streams: install `pydantic<2`. For other servers, {LOGS_HINT}"
        return fail("the stream is empty: the server sent status 200, but no events", hint=hint)
    # problems come first: usage and speed mean nothing for a broken stream
    # a speed limit makes even a quick check request more than one token
    limit = max(context.chat_body(model, stream=True)["max_tokens"], context.token_limit(model))
    problems = transcript.problems(allowed_finish_reasons(context.dialect), limit)
    wrong = context.drop_deviations("stream", problems, notes)
    wrong += describe_model_problems(context, transcript.model, model, notes)
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
    if shown := transcript.describe_content(limit):
        return warn(shown, hint=REASONING_HINT, evidence=speed, **measured)
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
        return fail_refused(context, reply, model)
    # FastChat with pydantic 2 sends status 200 and an empty body, with or without a content type
    if not reply.body:
        return _judge_stream(context, model, Transcript(), "", [])
    message = f"the content type of the response is {reply.content_type or 'missing'}, not text/event-stream"
    return fail(message, hint="the server or its proxy ignores the field `stream`", evidence=context.excerpt(reply))
