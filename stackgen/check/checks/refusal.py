"""The message if a response is no completion: unknown model, wrong key, 429, 502, redirect, another model's answer."""

from __future__ import annotations

import re

from stackgen.check.checks.model_names import did_you_mean
from stackgen.check.checks.verdict import Context, Verdict, fail, warn
from stackgen.check.dialects import OPENAI
from stackgen.check.transport.answer import refuses_few_tokens
from stackgen.check.transport.session import Reply, error_message
from stackgen.plan import Dialect

__all__ = ["LOGS_HINT", "describe_model_problems", "fail_refused", "is_unknown_model"]

LOGS_HINT = "see the server's log: `docker compose logs`"
BUDGET_HINT = "the model needs more tokens to reason: raise --max-tokens"
# OpenAI answers requests for `gpt-x` as its snapshot `gpt-x-2025-01-31` or `gpt-x-0613`
SNAPSHOT = re.compile(r"-(\d{4}-\d\d-\d\d|\d{4})")


def fail_refused(context: Context, reply: Reply, model: str) -> Verdict:
    """The verdict on a response with another status than 200."""
    error, evidence = context.session.redact.excerpt(error_message(reply), 160), context.excerpt(reply)
    message = f"{reply.summary} instead of a completion" + (f": {error}" if error else "")
    if is_unknown_model(context.dialect, reply):
        return fail(message, hint=did_you_mean(model, context.listed or ()), evidence=evidence)
    if refuses_few_tokens(reply.status, error_message(reply)):
        limit = context.token_limit(model)
        message = f"the model refuses a short answer, even with a limit of {limit} tokens: {error}"
        return warn(message, hint=BUDGET_HINT, evidence=evidence)
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


def describe_model_problems(context: Context, answered: str, requested: str, notes: list[str]) -> list[str]:
    """Why the answer is not the requested model's. Known aliases only add a note."""
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
