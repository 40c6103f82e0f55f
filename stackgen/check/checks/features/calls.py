"""Streamed tool calls: the whole call arrives, and the stream ends with the finish reason of a call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stackgen.check.checks.chat_stream import read_stream
from stackgen.check.checks.features.outcome import succeed_feature
from stackgen.check.checks.verdict import Context, Verdict, warn
from stackgen.check.transport.transcript import Transcript

__all__ = ["CALL_REASONS", "FINISH_HINT", "judge_streamed_call"]

CALL_REASONS = ("tool_calls", "function_call")
FINISH_HINT = "agents that branch on finish_reason never run the tool: update the server or its proxy"
STREAM_HINT = "clients that stream get no usable call: update the server or its proxy, or check its tool parser"


def judge_streamed_call(context: Context, model: str, request: Mapping[str, Any], message: str) -> Verdict:
    """The verdict on the same `request`, streamed, after a whole call that was right and that `message` describes."""
    transcript, cut, _, other = read_stream(context, model, request)
    if other is not None:
        return warn(f"{message}, but not in a stream: {other.message}", hint=other.hint, evidence=other.evidence,
                    support="fails")  # fmt: skip
    is_named = request["tool_choice"] != "required"
    problem, hint = _find_problem(transcript, cut, is_named)
    if problem:
        evidence = context.session.redact.excerpt(f"last event: {transcript.last_event}", 600)
        return warn(f"{message}, but in a stream {problem}", hint=hint, evidence=evidence, support="fails")
    return succeed_feature(context, "tools", f"{message}, with and without streaming")


def _find_problem(transcript: Transcript, cut: str, is_named: bool) -> tuple[str, str]:
    reasons = transcript.finish_reasons
    if transcript.error:
        return f"there is an error event: {transcript.error}", STREAM_HINT
    if not transcript.done:
        return f"the call is cut off{cut}", STREAM_HINT
    if not transcript.calls:
        return "there is no tool call", STREAM_HINT
    # a cut-off call is no fault of the server
    if not all(one["name"] and _is_object(one["arguments"]) for one in transcript.calls.values()):
        hint = "a reasoning model may use up its tokens before it answers: raise --max-tokens"
        return (
            "the parts of the call don't add up to a name and a JSON object",
            hint if "length" in reasons else STREAM_HINT,
        )
    if not is_named and not set(reasons) & set(CALL_REASONS):
        return f"finish_reason is {reasons[0] if reasons else None!r} instead of 'tool_calls'", FINISH_HINT
    return "", ""


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
