"""Wrong requests are refused clearly, and the server works on after them."""

from __future__ import annotations

from stackgen.check.checks.verdict import Context, Verdict, failed, passed, warned
from stackgen.check.checks.wrong_requests import (
    LONGEST_CONTEXT,
    Probe,
    Problem,
    context_length,
    judge,
    long_prompt,
    probes,
    told_length,
)
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.session import error_message

__all__ = ["errors"]

CLEAR_HINT = "clients can't tell their own mistake from the server's: it should be a 4xx with a message"
DEAD_HINT = (
    "a request that any user can send stops it: look at `docker compose logs`; an engine that died needs a restart"
)
SHOWN = 3


def errors(context: Context, _model: str) -> Verdict:
    """Each wrong request gets a clear 4xx, none a 5xx, and a right one is answered after them."""
    model, notes = context.any_model, list[str]()
    problems: list[Problem] = []
    length = context.context_length or context_length(context, model)
    queue, tried = list(probes(model)), list[str]()
    while queue:
        probe = queue.pop(0)
        tried.append(probe.name)
        try:
            reply = context.session.post(f"{context.url}/chat/completions", probe.body)
        except Fault as fault:
            problems.append(Problem(f"{probe.name}: {fault.message}", True))
            shaken = True
        else:
            problems += judge(context, probe, reply)
            shaken = reply.status >= 500
            length = length or told_length(reply)
        # an engine may die of it a moment later, and then the next probe would be blamed
        if shaken and (dead := _dead(context, model)):
            return failed(f"the server stopped answering after {probe.name!r}: {dead}", DEAD_HINT,
                          "; ".join(one.text for one in problems[-SHOWN:]))  # fmt: skip
        if not queue and "too long prompt" not in tried:
            queue += _long(model, length, notes)
    context.context_length = length
    if dead := _dead(context, model):
        return failed(f"the server stopped answering after wrong requests, the last was {tried[-1]!r}: {dead}",
                      DEAD_HINT, "; ".join(one.text for one in problems[-SHOWN:]))  # fmt: skip
    return _verdict(context, problems, tried, notes)


def _verdict(context: Context, problems: list[Problem], tried: list[str], notes: list[str]) -> Verdict:
    # one by one: which of them stay decides between fail and warn
    left = [one for one in problems if context.allow("errors", [one.text], notes)]
    severe = [one for one in left if one.severe]
    figures = {"requests": float(len(tried))}
    if not left:
        return passed(f"{len(tried)} wrong requests, and it answers on", notes=tuple(notes), figures=figures)
    worst = sorted(left, key=lambda one: not one.severe)
    more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    verdict = failed if severe else warned
    return verdict("; ".join(one.text for one in worst[:SHOWN]) + more, CLEAR_HINT,
                   "; ".join(one.evidence or one.text for one in worst[:SHOWN]), notes=tuple(notes),
                   figures=figures)  # fmt: skip


def _long(model: str, length: int | None, notes: list[str]) -> list[Probe]:
    if length is None:
        notes.append("a prompt longer than the context was not tried: nothing tells its length")
        return []
    if length > LONGEST_CONTEXT:
        notes.append(f"a prompt longer than the context of {length} tokens was not tried: it would be too large")
        return []
    return [long_prompt(model, length)]


def _dead(context: Context, model: str) -> str:
    """Why a right request is not answered; empty where it is."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "temperature": 0}
    try:
        reply = context.session.post(f"{context.url}/chat/completions", body)
    except Fault as fault:
        return fault.message
    # a limit of requests is no death
    if reply.status in (200, 429):
        return ""
    said = context.session.redact.excerpt(error_message(reply), 120)
    return reply.what + (f": {said}" if said else "")
