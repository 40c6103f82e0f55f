"""A chat completion and a streamed one, against the documented structure."""

from __future__ import annotations

import time

from stackgen.check.contract import Completion, parse, sum_problem
from stackgen.check.dialects import finish_reasons
from stackgen.check.faults import Fault
from stackgen.check.names import did_you_mean
from stackgen.check.session import Reply, content_type, error_message, read
from stackgen.check.stream import Transcript, collect
from stackgen.check.verdict import Context, Verdict, failed, passed, warned
from stackgen.plan import Dialect

__all__ = ["chat", "is_unknown_model", "stream"]

LOGS_HINT = "look at the server's log: `docker compose logs`"
CONTRACT_HINT = "OpenAI clients may fail on it: https://platform.openai.com/docs/api-reference/chat/object"
REASONING_HINT = "it spent all of the check's tokens on reasoning: start it with less reasoning to see an answer"
# a stream may last this many times the time-out of a single silence
STREAM_FACTOR = 4


def chat(context: Context, model: str) -> Verdict:
    """The body has every documented field, the usage adds up, the model is the one asked for, the answer has text."""
    reply = context.session.post(f"{context.url}/chat/completions", context.chat_body(model))
    if reply.status != 200:
        return _refused(context, reply, model)
    # all structural problems are found at once; the rules between fields follow below
    completion, problems = parse(Completion, reply.json())
    if completion is None:
        if reply.json() is None:
            problems = (f"{reply.content_type or 'an empty body'} instead of JSON",)
        return failed(f"the body is not as documented: {problems[0]}", CONTRACT_HINT,
                      f"{'; '.join(problems[:5])}; {context.excerpt(reply)}")  # fmt: skip
    # n is not set, so there is one choice
    first = completion.choices[0]
    notes: list[str] = []
    wrong = [sum_problem(completion.usage)] if sum_problem(completion.usage) else []
    if first.finish_reason not in finish_reasons(context.dialect):
        wrong.append(f"finish_reason {first.finish_reason!r} is not documented")
    wrong += _echo(context, completion.model, model, notes)
    # a dialect's known slips are told once, as a note, and fail nobody
    limit, counted = context.options.max_tokens, completion.usage.completion_tokens
    if context.dialect.length_off_by_one and first.finish_reason == "length" and counted == limit - 1:
        notes.append(f"{context.dialect.name} counts one completion token too few at the length limit")
    message = first.message
    extra = message.model_extra or {}
    reasoning = bool(extra.get("reasoning") or extra.get("reasoning_content"))
    if not message.content and not reasoning:
        wrong.append("the answer has no content")
    if wrong:
        return failed("; ".join(wrong), CONTRACT_HINT, context.excerpt(reply))
    if not message.content:
        return warned("only reasoning, no content", REASONING_HINT, context.excerpt(reply))
    # the first model's answer stands for the endpoint
    if context.answer is None:
        context.answer = context.session.redact.excerpt(message.content, 1000)
    said = repr(context.session.redact.excerpt(message.content, 60)) if message.content.strip() else "with white space"
    return passed(f"answers {said} ({counted} tokens, {first.finish_reason})", "; ".join(notes))


def stream(context: Context, model: str) -> Verdict:
    """The stream begins with a role, brings content, ends with one finish reason and `[DONE]`, and has no error."""
    from httpx2 import EventSource

    transcript, started, cut = Transcript(), time.monotonic(), ""
    deadline = started + STREAM_FACTOR * context.options.timeout
    body = context.chat_body(model, stream=True)
    try:
        with context.session.stream(f"{context.url}/chat/completions", body) as response:
            if response.status_code != 200 or content_type(response).lower() != "text/event-stream":
                return _no_stream(context, read(response, context.options.timeout), model)
            collect(EventSource(response), transcript, context.dialect, started, deadline)
    except Fault as fault:
        # before the first event it is a fault of the request; after it, a stream that was cut
        if not transcript.events:
            raise
        cut = f" ({fault.message})"
    return _judge(context, model, transcript, cut)


def _judge(context: Context, model: str, transcript: Transcript, cut: str) -> Verdict:
    excerpt = context.session.redact.excerpt
    if not transcript.events:
        return failed("the stream is empty: status 200 and no event",
                      f"FastChat does this with pydantic 2 (it needs pydantic<2); else {LOGS_HINT}")  # fmt: skip
    # usage and speed come after the faults: of a broken stream they mean nothing
    notes: list[str] = []
    wrong = transcript.problems(finish_reasons(context.dialect)) + _echo(context, transcript.model, model, notes)
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return failed(f"{excerpt(wrong[0])}{more}{cut}", LOGS_HINT,
                      excerpt(f"{'; '.join(wrong)}; last event: {transcript.tail}", 600))  # fmt: skip
    speed = transcript.speed()
    if context.dialect.stream_usage and transcript.usage is None:
        return warned("ends properly, but reports no usage though asked to", "token counts of streams are lost", speed)
    if context.dialect.stream_bare_chunks:
        notes.append(f"{context.dialect.name} sends object and created in the last chunk only")
    if not context.dialect.stream_usage and transcript.usage is None:
        notes.append(f"{context.dialect.name} reports no usage in streams")
    return passed(f"{transcript.deltas} deltas, {transcript.finishes[0]}, [DONE]; {speed}", "; ".join([speed, *notes]))


def _no_stream(context: Context, reply: Reply, model: str) -> Verdict:
    if reply.status != 200:
        return _refused(context, reply, model)
    # FastChat with pydantic 2 sends 200 and nothing, with or without a content type
    if not reply.body:
        return _judge(context, model, Transcript(), "")
    return failed(f"the answer is {reply.content_type or 'of no type'} and not text/event-stream",
                  "the server or a proxy in front ignores `stream`", context.excerpt(reply))  # fmt: skip


def _refused(context: Context, reply: Reply, model: str) -> Verdict:
    said = context.session.redact.excerpt(error_message(reply), 160)
    message = f"{reply.what} instead of a completion" + (f": {said}" if said else "")
    if is_unknown_model(context.dialect, reply):
        return failed(message, did_you_mean(model, context.listed or ()), context.excerpt(reply))
    if reply.status in (401, 403):
        return failed(message, "the server refuses the key", context.excerpt(reply))
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
    # OpenAI answers `gpt-x` as its dated snapshot `gpt-x-2025-01-31`
    if answered.startswith(f"{asked}-"):
        notes.append(f"answered by {answered}")
        return []
    # a server of one model with several names lists the leading one first and answers under it
    if context.dialect.leading_name and answered in (context.listed or context.session.target.models)[:1]:
        notes.append(f"{asked} is an alias of {answered}, under which {context.dialect.name} answers")
        return []
    return [f"asked {asked!r}, and {answered!r} answers"]
