"""Verdicts that all features share: not supported, ignored, failed, or working."""

from __future__ import annotations

import re
from typing import Any

from stackgen.check.checks.verdict import Context, Verdict, fail, skip, succeed, warn
from stackgen.check.report import ApiState
from stackgen.check.transport.session import Reply, error_message

__all__ = ["LOGS_HINT", "fail_body", "judge_ignored", "judge_refusal", "refusal_state", "succeed_feature"]

LOGS_HINT = "see the server's log: `docker compose logs`"
DOCS_HINT = "OpenAI clients may fail. Expected response: https://platform.openai.com/docs/api-reference"
# Texts of errors that are due to the server or its flags, not to the request. Recorded: vLLM "requires
# --tool-call-parser to be set", llama.cpp "does not support embeddings. Start it with"; OpenAI "You are not allowed to
# generate embeddings from this model"
UNSUPPORTED = re.compile(
    r"support|requires? |enable|disabled|not allowed|not available|not implemented|not permitted|extra (inputs|fields)"
    r"|unrecognized|unknown (field|parameter|argument)|must be set|start it with|no such (path|endpoint|route)",
    re.IGNORECASE,
)


def judge_refusal(context: Context, name: str, reply: Reply) -> Verdict | None:
    """The verdict on a response that is not 200; None for a 200.

    A feature that the dialect claims must work. For any other feature, 404, 405, 501 and a 4xx with a matching text
    mean that the server does not offer the feature, which is fine. Other 5xx are always failures.
    """
    if reply.status == 200:
        return None
    error, evidence = context.session.redact.excerpt(error_message(reply), 160), context.excerpt(reply)
    message = reply.summary + (f": {error}" if error else "")
    state = refusal_state(reply.status)
    if reply.status == 429:
        return warn(
            f"a rate limit was reached, or the queue is full: {message}",
            hint="send fewer requests",
            evidence=evidence,
            support="not checked",
        )
    if name in context.dialect.claims:
        message = f"{context.dialect.name} supports {name}, but this server returns {message}"
        return fail(message, hint=LOGS_HINT, evidence=evidence, support=state)
    # before the other 5xx: 501 is the documented way to say "not implemented"
    if reply.status in (404, 405, 501):
        return skip(f"the server does not offer {name}: {message}", support=state)
    if reply.status >= 500:
        return fail(message, hint=LOGS_HINT, evidence=evidence, support=state)
    if reply.status in (401, 403) or (reply.status < 500 and error and UNSUPPORTED.search(error)):
        return skip(f"the server does not offer {name}: {message}", support=state)
    # the server neither answers nor names the reason, so a client can't tell what is wrong
    return warn(f"a valid request is refused: {message}", hint=DOCS_HINT, evidence=evidence, support=state)


def refusal_state(status: int) -> ApiState:
    """The state of an API whose request got a response that is not 200."""
    if status == 429:
        return "not checked"
    if status in (404, 405, 501):
        return "not served"
    return "fails" if status >= 500 else "refused"


def judge_ignored(context: Context, name: str, what: str, reply: Reply, **more: Any) -> Verdict:
    """The verdict on a 200 without the requested feature: a failure if the dialect claims it, else a warning."""
    evidence = context.excerpt(reply)
    if name in context.dialect.claims:
        return fail(
            f"{context.dialect.name} supports {name}, but this server ignores it: {what}",
            hint=LOGS_HINT,
            evidence=evidence,
            support="ignored",
            **more,
        )
    # a warning: the status does not show clients that the feature was ignored
    hint = "clients get a normal answer, as if they had not used the feature"
    return warn(
        f"{context.dialect.name} ignores {name}: {what}", hint=hint, evidence=evidence, support="ignored", **more
    )


def succeed_feature(context: Context, name: str, message: str, *notes: str, **more: Any) -> Verdict:
    """The feature works. Adds a note if the dialect is known to ignore it."""
    if name in context.dialect.ignores:
        notes = (*notes, f"{context.dialect.name} normally ignores {name}, but this server supports {name}")
    return succeed(message, notes=notes, **more)


def fail_body(context: Context, problems: tuple[str, ...], reply: Reply) -> Verdict:
    """The verdict on a 200 whose body is not as documented."""
    if reply.json() is None:
        kind = reply.content_type or "an empty body"
        # bodies with Python's `NaN` are rejected here too
        problems = ("it is not valid JSON" if "json" in kind.lower() else f"{kind} instead of JSON",)
    evidence = f"{'; '.join(problems[:5])}; {context.excerpt(reply)}"
    return fail(f"the response body is not as documented: {problems[0]}", hint=DOCS_HINT, evidence=evidence)
