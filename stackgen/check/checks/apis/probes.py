"""One small request for each API and each form of requests that no other check has tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stackgen.check.checks.apis.bodies import MessageBody, ResponseBody
from stackgen.check.checks.chat_stream import read_stream
from stackgen.check.checks.features.outcome import refusal_state
from stackgen.check.checks.verdict import QUESTION, Context, Verdict
from stackgen.check.report import ApiState
from stackgen.check.transport.openai_schema import Completion, parse
from stackgen.check.transport.session import Reply, error_message
from stackgen.check.transport.transcript import Transcript

__all__ = ["PROBES", "Finding"]

Finding = tuple[ApiState, str]
# OpenAI refuses fewer tokens in /v1/responses
MIN_OUTPUT_TOKENS = 16
# Anthropic refuses requests without a version; 2023-06-01 is the only version that its SDKs send
ANTHROPIC_HEADERS = {"anthropic-version": "2023-06-01"}
TOKEN_LIMIT = 5
# a server that ignores the limit would generate up to its own limit, so the check leaves after this many events
MAX_EVENTS = 30
# nobody can answer this in five tokens
LONG_QUESTION = "Count from one to forty, in words."


def responses(context: Context, model: str) -> Finding:
    """POST /v1/responses returns a response with text, and not more tokens than requested.

    The detail also tells whether a response that reached the limit is marked as incomplete. llama.cpp b11669 calls it
    completed (findings/llamacpp-cut-responses-completed.sh), vLLM 0.32.0 incomplete.
    """
    limit = max(MIN_OUTPUT_TOKENS, context.shape(model).min_tokens)
    # otherwise OpenAI keeps the request
    body: dict[str, Any] = {"model": model, "input": LONG_QUESTION, "max_output_tokens": limit, "store": False}
    reply = context.session.post(f"{context.url}/responses", _with_temperature(context, model, body))
    state, detail = _judge_text(context, reply, ResponseBody, "/v1/responses", limit)
    if state == "works":
        response, _ = parse(ResponseBody, reply.json())
        # a server with its own minimum of tokens may have answered the whole question
        if response and response.usage and response.usage.output_tokens == limit and response.status == "completed":
            detail += f", but reports the answer as completed although it was cut off at the limit of {limit} tokens"
    return state, detail


def messages(context: Context, model: str) -> Finding:
    """POST /v1/messages returns a message with text, and not more tokens than requested."""
    limit = max(MIN_OUTPUT_TOKENS, context.shape(model).min_tokens)
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": limit}
    shaped = _with_temperature(context, model, body)
    reply = context.session.post(f"{context.url}/messages", shaped, headers=ANTHROPIC_HEADERS)
    return _judge_text(context, reply, MessageBody, "/v1/messages", limit)


def list_content(context: Context, model: str) -> Finding:
    """Content as a list of text parts reaches the model as the same prompt as plain content."""
    parts = [{"type": "text", "text": QUESTION}]
    reply = context.post_chat(model, context.chat_body(model) | {"messages": [{"role": "user", "content": parts}]})
    if reply.status != 200:
        return _refusal(context, reply)
    completion, problems = parse(Completion, reply.json())
    if completion is None:
        return "fails", f"the response body is not as documented: {problems[0]}"
    plain = context.outcomes.get(("chat", model))
    before = plain.figures.get("prompt_tokens") if plain else None
    now = completion.usage.prompt_tokens if completion.usage else None
    text, _ = context.chat_answers.get(model, ("", 0))
    # rounding may change the text of the same prompt, but never the number of its tokens
    if text and completion.choices[0].message.content == text:
        return "works", "same answer as for plain content"
    if now is None or before is None:
        return "not checked", "the answer differs from the answer to plain content, and the server counts no tokens"
    if now == before:
        return "works", f"{now} prompt tokens, as for plain content"
    return "fails", f"the model gets another prompt: {now} prompt tokens instead of {before:.0f} for plain content"


def max_completion_tokens(context: Context, model: str) -> Finding:
    """`max_completion_tokens: 5` ends a long answer after at most five tokens."""
    if context.shape(model).min_tokens > TOKEN_LIMIT:
        return "not checked", f"the model refuses answers shorter than {context.shape(model).min_tokens} tokens"
    changes = {
        "messages": [{"role": "user", "content": LONG_QUESTION}],
        "max_tokens": None,
        "max_completion_tokens": TOKEN_LIMIT,
    }
    transcript, finding = _stream(context, model, changes)
    if finding:
        return finding
    counted = transcript.usage.completion_tokens if transcript.usage else transcript.deltas
    if counted > TOKEN_LIMIT or not transcript.finish_reasons:
        more = f"{counted} tokens" if transcript.usage else f"at least {transcript.deltas} pieces of text"
        return "ignored", f"{TOKEN_LIMIT} tokens were requested, and {more} arrived"
    if transcript.finish_reasons[0] != "length":
        return "not checked", f"the answer ended by itself after {counted} tokens"
    return "works", f"{counted} tokens for a limit of {TOKEN_LIMIT}"


def stream_usage(context: Context, model: str) -> Finding:
    """A stream has a chunk with usage if the request asks for it."""
    changes = {"max_tokens": TOKEN_LIMIT, "stream_options": {"include_usage": True}}
    transcript, finding = _stream(context, model, changes)
    if finding:
        return finding
    if transcript.usage is None:
        return "ignored", "the stream has no usage, although usage was requested"
    return "works", f"usage with {transcript.usage.completion_tokens} completion tokens"


PROBES: Mapping[str, Callable[[Context, str], Finding]] = {
    "responses": responses,
    "messages": messages,
    "list_content": list_content,
    "max_completion_tokens": max_completion_tokens,
    "stream_usage": stream_usage,
}


def _stream(context: Context, model: str, changes: Mapping[str, object]) -> tuple[Transcript, Finding | None]:
    transcript, cut, _, other = read_stream(context, model, changes, max_events=MAX_EVENTS)
    if other is not None:
        return transcript, _from_verdict(other)
    if transcript.error:
        return transcript, ("fails", f"an error event: {context.session.redact.excerpt(transcript.error, 160)}")
    if cut or not transcript.events:
        return transcript, ("fails", f"the stream is cut off{cut}" if transcript.events else "the stream is empty")
    return transcript, None


def _from_verdict(verdict: Verdict) -> Finding:
    # `fail_refused` starts its messages with the status
    words = verdict.message.split()
    status = int(words[1]) if words[0] == "HTTP" and words[1].isdigit() else 500
    return refusal_state(status), verdict.message


def _judge_text(
    context: Context, reply: Reply, schema: type[ResponseBody] | type[MessageBody], path: str, limit: int
) -> Finding:
    if reply.status != 200:
        return _refusal(context, reply, path)
    body: ResponseBody | MessageBody | None
    body, problems = parse(schema, reply.json())
    if body is None:
        return "fails", f"the response body is not as documented: {problems[0]}"
    counted = body.usage.output_tokens if body.usage else 0
    if counted > limit:
        return "fails", f"{counted} tokens were generated, but at most {limit} were requested"
    if not body.text.strip():
        return "not checked", f"the answer has no text within {limit} tokens"
    return "works", f"answers {context.session.redact.excerpt(body.text, 40)!r}"


def _refusal(context: Context, reply: Reply, path: str = "") -> Finding:
    error = context.session.redact.excerpt(error_message(reply), 160)
    detail = reply.summary + (f": {error}" if error else "")
    state = refusal_state(reply.status)
    # the gateway and stackgen's FastChat launcher name the path and the engine themselves
    if state == "not served" and path not in context.dialect.api_paths and path not in error:
        detail += f"; {context.dialect.name} has no {path}"
    return state, detail


def _with_temperature(context: Context, model: str, body: dict[str, Any]) -> dict[str, Any]:
    return body | ({"temperature": 0} if context.shape(model).temperature else {})
