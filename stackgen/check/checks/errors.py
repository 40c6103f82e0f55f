"""Invalid requests get a clear error, and the server keeps working after them."""

from __future__ import annotations

from stackgen.check.checks.verdict import Context, Verdict, fail, succeed, warn
from stackgen.check.checks.wrong_requests import (
    LONG_PROMPT,
    MAX_CONTEXT,
    Probe,
    Problem,
    context_length,
    find_problems,
    length_from_error,
    long_prompt,
    probes,
)
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.session import error_message

__all__ = ["errors"]

CLEAR_HINT = (
    "clients can't tell their own errors from server errors: the server should refuse an invalid request with a 4xx and"
    " a message"
)
DEAD_HINT = (
    "any user can stop the server with the same invalid request. See `docker compose logs`, and restart the server if"
    " the server died"
)
MAX_SHOWN = 3


def errors(context: Context, _model: str) -> Verdict:
    """Each invalid request gets a clear 4xx, none gets a 5xx, and a valid request is answered after them."""
    model, notes = context.any_model, list[str]()
    problems: list[Problem] = []
    # the check `tokenize` runs earlier and may already know the context length, which vLLM reports there
    length = context.context_length or context_length(context, model)
    queue, tried = list(probes(model)), list[str]()
    while queue:
        probe = queue.pop(0)
        tried.append(probe.name)
        try:
            reply = context.session.post(f"{context.url}/chat/completions", probe.body)
        except Fault as fault:
            problems.append(Problem(f"{probe.name}: {fault.message}", True))
            may_be_dead = True
        else:
            problems += find_problems(context, probe, reply)
            may_be_dead = reply.status >= 500
            length = length or length_from_error(reply)
        # checked at once: otherwise the next probe would get the blame for a dead engine
        if may_be_dead and (dead := _health_problem(context, model)):
            evidence = "; ".join(one.text for one in problems[-MAX_SHOWN:])
            message = f"the server stopped answering after the invalid request {probe.name!r}: {dead}"
            return fail(message, hint=DEAD_HINT, evidence=evidence)
        # the long prompt comes last, because an earlier error may reveal the context length
        if not queue and LONG_PROMPT not in tried:
            queue += _long_prompt_probes(model, length, notes)
    context.context_length = length
    if dead := _health_problem(context, model):
        evidence = "; ".join(one.text for one in problems[-MAX_SHOWN:])
        message = f"the server stopped answering after the invalid requests (last request: {tried[-1]!r}): {dead}"
        return fail(message, hint=DEAD_HINT, evidence=evidence)
    return _verdict(context, problems, tried, notes)


def _verdict(context: Context, problems: list[Problem], tried: list[str], notes: list[str]) -> Verdict:
    # one by one, because only problems that are no known deviation decide between fail and warn
    left = [one for one in problems if context.drop_deviations("errors", [one.text], notes)]
    severe = [one for one in left if one.severe]
    figures = {"requests": float(len(tried))}
    if not left:
        message = f"the server still answers after {len(tried)} invalid requests"
        return succeed(message, notes=tuple(notes), figures=figures)
    # severe problems first, because the message has room for a few only
    worst = sorted(left, key=lambda one: not one.severe)
    more = f" and {len(left) - MAX_SHOWN} more" if len(left) > MAX_SHOWN else ""
    message = "; ".join(one.text for one in worst[:MAX_SHOWN]) + more
    evidence = "; ".join(one.evidence or one.text for one in worst[:MAX_SHOWN])
    build = fail if severe else warn
    return build(message, hint=CLEAR_HINT, evidence=evidence, notes=tuple(notes), figures=figures)


def _long_prompt_probes(model: str, length: int | None, notes: list[str]) -> list[Probe]:
    if length is None:
        notes.append("the check sent no prompt longer than the context, because the context length is unknown")
        return []
    if length > MAX_CONTEXT:
        notes.append(
            f"the check sent no prompt longer than the context, because the context has {length} tokens, and this "
            f"check only tests contexts of up to {MAX_CONTEXT} tokens"
        )
        return []
    return [long_prompt(model, length)]


def _health_problem(context: Context, model: str) -> str:
    """Returns why a valid request gets no answer; empty if the server answers."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "temperature": 0}
    try:
        reply = context.post_chat(model, body)
    except Fault as fault:
        return fault.message
    # a rate limit shows that the server is alive
    if reply.status in (200, 429):
        return ""
    error = context.session.redact.excerpt(error_message(reply), 120)
    return reply.summary + (f": {error}" if error else "")
