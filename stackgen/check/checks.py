"""The table of checks, in the order they run, and the checks of the server itself.

A new check is a function and a line in `CHECKS`.
"""

from __future__ import annotations

from typing import Any

from stackgen.check.auth import auth
from stackgen.check.chat import chat, stream
from stackgen.check.contract import ModelList, parse
from stackgen.check.dialects import TOGETHER
from stackgen.check.faults import speaks_tls
from stackgen.check.names import did_you_mean
from stackgen.check.session import Reply, error_message
from stackgen.check.verdict import Check, Context, Verdict, failed, passed, skipped, warned

__all__ = ["CHECKS", "READY", "alive", "connect", "list_models", "models"]

KEY_HINT = "the key is that of the running server's .env: a key changed later reaches it only when it is restarted"
LOGS_HINT = "look at the server's log: `docker compose logs`"


def connect(context: Context, _model: str) -> Verdict:
    """Something answers HTTP at the base URL; without a key, so that a wrong port never sees it."""
    target = context.session.target
    reply = context.session.get(f"{target.base_url}/models", None)
    if 300 <= reply.status < 400:
        return failed("the server redirects", f"use the URL that it names: {reply.location}", context.excerpt(reply))
    # nginx tells it by a 400 page, others by dropping the connection, which is a Fault
    if reply.status == 400 and target.base_url.startswith("http:") and speaks_tls(target.host, target.port):
        url = target.base_url.replace("http:", "https:", 1)
        return failed("the port speaks TLS, and the URL says http", f"use {url}", context.excerpt(reply))
    return passed(f"{target.host}:{target.port} answers HTTP")


def alive(context: Context, _model: str) -> Verdict:
    """The server's own liveness path answers 200."""
    path = context.dialect.alive_path
    if path is None:
        return skipped(f"{context.dialect.name} has no liveness path of its own; `models` and `chat` tell")
    reply = context.session.get(context.session.target.root + path)
    if reply.status == 200:
        return passed(f"{path} answers 200")
    # behind a gateway that lets only /v1 through, the server can be well all the same
    if reply.status in (401, 403, 404, 405):
        return warned(f"{path} is not offered here", "a gateway in front may hide it", context.excerpt(reply))
    hint = f"the engine has died or still loads; {LOGS_HINT}"
    return failed(f"{path} answers {reply.status}", hint, context.excerpt(reply))


def models(context: Context, _model: str) -> Verdict:
    """At least one model is listed, and the expected ones are, under exactly their served names."""
    reply = list_models(context)
    names = context.listed
    if names is None:
        return _no_list(context, reply)
    # FastChat answers 200 with an empty list while no worker is registered
    wanted = context.session.target.models
    if not names:
        hint = f"no worker has registered, or it has just died; {LOGS_HINT}"
        return failed("the server lists no model", hint, context.excerpt(reply))
    missing = [name for name in wanted if name not in names]
    if missing:
        return failed(f"not served: {', '.join(missing)}", f"{missing[0]}: {did_you_mean(missing[0], names)}",
                      f"listed: {context.session.redact.excerpt(', '.join(names))}")  # fmt: skip
    shown = wanted or names[:8]
    told = f"{', '.join(shown)} listed" + (f", {len(names)} in all" if len(names) > len(shown) else "")
    # what clients need are the ids; the rest of the list is worth a warning only
    wrong = _list_problems(context, reply)
    if wrong:
        return warned(f"{told}, but {wrong[0]}", "clients with typed models of the list may fail on it",
                      context.session.redact.excerpt("; ".join(wrong)))  # fmt: skip
    return passed(told)


def list_models(context: Context) -> Reply:
    """GET /models with the key; fills `listing` and `listed`, which stays None where the body is no list."""
    reply = context.session.get(f"{context.url}/models")
    body = reply.json()
    # Together sends the bare array
    cards = body.get("data") if isinstance(body, dict) else body
    context.listing, context.listed = reply, None
    if reply.status == 200 and isinstance(cards, list):
        # llama.cpp lists one name of a model as its id, and the others beside it
        ids = [name for card in cards if isinstance(card, dict) for name in (card.get("id"), *_aliases(card))]
        context.listed = tuple(name for name in ids if isinstance(name, str))
    return reply


def _no_list(context: Context, reply: Reply) -> Verdict:
    if reply.status in (401, 403):
        missing = context.session.target.api_key is None
        message = "the server wants a key, and none is given" if missing else "the server refuses the key"
        return failed(message, KEY_HINT, context.excerpt(reply))
    if reply.status == 404:
        return failed("/models is not found", "is the base URL right? it usually ends in /v1", context.excerpt(reply))
    # llama.cpp says here that it still loads the model
    said = context.session.redact.excerpt(error_message(reply), 120)
    message = f"no list of models came but {reply.what}" + (f": {said}" if said else "")
    return failed(message, LOGS_HINT, context.excerpt(reply))


def _list_problems(context: Context, reply: Reply) -> tuple[str, ...]:
    body = reply.json()
    if isinstance(body, list):
        # Together's documented form; the SDK's models.list() fails on it
        return () if context.dialect.name == TOGETHER.name else ("the list is a bare array, not {object, data}",)
    parsed, problems = parse(ModelList, body)
    return () if parsed else problems


CHECKS: tuple[Check, ...] = (
    Check("connect", connect, needs=()),
    Check("alive", alive),
    Check("models", models),
    Check("chat", chat, per_model=True),
    Check("stream", stream, per_model=True),
    # last, as it generates too: an engine that dies of its first request must die in `chat`, which says of what
    Check("auth", auth),
)
# what `wait` waits for
READY: tuple[Check, ...] = tuple(check for check in CHECKS if check.name in ("connect", "models"))


def _aliases(card: dict[str, Any]) -> tuple[Any, ...]:
    found = card.get("aliases")
    return tuple(found) if isinstance(found, list) else ()
