"""Fills the table "what works with this endpoint": takes what other checks found, and probes the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stackgen.check.checks.apis.probes import PROBES, Finding
from stackgen.check.checks.chat import chat
from stackgen.check.checks.features.answers import json_schema, tools
from stackgen.check.checks.features.texts import completions, embeddings
from stackgen.check.checks.verdict import Context, Verdict, skip, succeed, warn
from stackgen.check.report import APIS, ApiState, ApiSupport
from stackgen.check.transport.faults import Fault

__all__ = ["apis"]

# API -> the check that finds out, and its function for models that this check has not tried
CHECKED: Mapping[str, tuple[str, Callable[[Context, str], Verdict]]] = {
    "chat": ("chat", chat),
    "completions": ("completions", completions),
    "embeddings": ("embeddings", embeddings),
    "tools": ("tools", tools),
    "structured_output": ("json-schema", json_schema),
}
# forms of chat requests
NEEDS_CHAT = ("tools", "structured_output", "list_content", "max_completion_tokens", "stream_usage")
TROUBLE: tuple[ApiState, ...] = ("ignored", "fails")
HINT = "clients that use these get wrong answers or errors: choose other clients, or update the server or its proxy"


def apis(context: Context, model: str) -> Verdict:
    """Adds the state of each API for `model` to `context.apis`. Never fails: a client needs only some of them."""
    if context.completion_failure:
        return skip(f"the server does not answer: {context.completion_failure}")
    found: dict[str, Finding] = {}
    silence = ""
    for api in APIS:
        try:
            found[api.name] = ("not checked", silence) if silence else _find(context, model, api.name, found)
        except Fault as fault:
            found[api.name] = ("fails", fault.message)
            # a server that is silent would take a timeout for each request that is left
            silence = f"the request for {api.title} got no answer"
    context.apis += [ApiSupport(model, name, state, detail) for name, (state, detail) in found.items()]
    message = _summarize(found)
    # the other APIs have checks of their own, which have already warned
    trouble = [name for name in PROBES if found[name][0] in TROUBLE]
    if trouble:
        return warn(message, hint=HINT, evidence="; ".join(f"{name}: {found[name][1]}" for name in trouble))
    return succeed(message)


def _find(context: Context, model: str, name: str, found: Mapping[str, Finding]) -> Finding:
    if name in NEEDS_CHAT and found["chat"][0] != "works":
        return "not checked", "chat does not work"
    if name not in CHECKED:
        return PROBES[name](context, model)
    check, run = CHECKED[name]
    verdict = context.outcomes.get((check, model))
    if verdict is None:
        verdict = context.outcomes[check, model] = run(context, model)
    if name == "chat" and verdict.status == "warn":
        # such a warning is about one field of an answer
        return ("works", verdict.message) if model in context.chat_answers else ("not checked", verdict.message)
    state = verdict.support or DEFAULTS[verdict.status]
    detail = verdict.message.removeprefix(f"the server does not offer {check}: ")
    return state, "" if state == "works" else detail


# a warning without a state is about an answer that proves nothing, for example because it was cut off
DEFAULTS: Mapping[str, ApiState] = {"pass": "works", "warn": "not checked", "fail": "fails", "skip": "not checked"}


def _summarize(found: Mapping[str, Finding]) -> str:
    """`works: chat, messages; refused: tools`: the APIs by state, in the order of the table."""
    titles = {api.name: api.title for api in APIS}
    states: dict[str, list[str]] = {}
    for name, (state, _) in found.items():
        states.setdefault(state, []).append(titles[name])
    return "; ".join(f"{state}: {', '.join(names)}" for state, names in states.items())
