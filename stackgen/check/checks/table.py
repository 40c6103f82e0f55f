"""The table of checks, in the order they run, and the checks of the server itself.

A new check is a function and a line in `CHECKS`.
"""

from __future__ import annotations

import difflib

from stackgen.check.checks.auth import auth
from stackgen.check.checks.chat import chat, stream
from stackgen.check.checks.errors import errors
from stackgen.check.checks.features import FEATURES
from stackgen.check.checks.load import load
from stackgen.check.checks.model_names import did_you_mean
from stackgen.check.checks.network import connect, http, resolve, tls
from stackgen.check.checks.services import containers, topology
from stackgen.check.checks.verdict import Check, Context, Verdict, failed, passed, skipped, warned
from stackgen.check.dialects import TOGETHER
from stackgen.check.options import Options
from stackgen.check.transport.openai_schema import ModelList, card_names, parse
from stackgen.check.transport.session import Reply, error_message
from stackgen.errors import StackgenError

__all__ = ["CHECKS", "READY", "alive", "choose", "list_models", "models"]

KEY_HINT = "the key is that of the running server's .env: a key changed later reaches it only when it is restarted"
LOGS_HINT = "look at the server's log: `docker compose logs`"


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
    """GET /models with the key; fills `listing` and `listed`, which stays None where the body is no list.

    Raises Fault; one that was met before is raised again, as each would cost a whole time-out.
    """
    if context.fault:
        raise context.fault
    reply = context.session.get(f"{context.url}/models")
    body = reply.json()
    # Together sends the bare array
    cards = body.get("data") if isinstance(body, dict) else body
    context.listing, context.listed, context.chats = reply, None, ()
    if reply.status == 200 and isinstance(cards, list):
        listed, chats = list[str](), list[str]()
        for card in cards:
            names = card_names(card) if isinstance(card, dict) else ()
            listed += names
            # Together lists image and speech models too, and tells by `type`
            chats += names if names and card.get("type") in (None, "model", "chat") else ()
        context.listed, context.chats = tuple(listed), tuple(chats)
    return reply


def _no_list(context: Context, reply: Reply) -> Verdict:
    if reply.status in (401, 403):
        target = context.session.target
        if target.api_key is None:
            return failed("the server wants a key, and none is given", target.no_key_hint, context.excerpt(reply))
        return failed("the server refuses the key", KEY_HINT, context.excerpt(reply))
    if place := context.place(reply):
        return failed(f"the server redirects those who have the key to {place}", "use the URL that it names",
                      context.excerpt(reply))  # fmt: skip
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


# In the order they run. `auth` comes after the completions, as it generates too: an engine that dies of its first
# request must die in `chat`, which says of what.
CHECKS: tuple[Check, ...] = (
    Check("containers", containers, "the stack's containers run", needs=()),
    Check("resolve", resolve, "the host name stands for an address", needs=()),
    Check("connect", connect, "the port accepts TCP connections", needs=("resolve",)),
    Check("tls", tls, "the certificate is trusted, fits and lasts", needs=("connect",)),
    Check("http", http, "something answers HTTP at the base URL", needs=("resolve", "connect", "tls")),
    Check("alive", alive, "the server's own liveness path answers 200"),
    Check("models", models, "the expected models are listed, under exactly their names"),
    Check("chat", chat, "a completion, as documented, by the model that was asked", per_model=True),
    Check("stream", stream, "a streamed completion: whole, in order, on time", per_model=True, depth=1),
    Check("auth", auth, "wrong keys are refused, and no path leads around the key"),
    *FEATURES,
    Check("errors", errors, "wrong requests are refused clearly, and it works on", needs=("chat",), depth=2),
    Check(
        "load",
        load,
        "requests at once are all answered, each with its own answer",
        needs=("chat",),
        per_model=True,
        exhaustive=False,
        depth=2,
    ),
    Check("topology", topology, "workers and replicas generate, and run what was planned", needs=(), depth=1),
)
# what `wait` waits for; an engine that has just died may still list its models
READY: tuple[Check, ...] = tuple(
    check for check in CHECKS if check.name in ("resolve", "connect", "tls", "http", "alive", "models")
)


def choose(options: Options) -> tuple[Check, ...]:
    """The checks of a profile, or the selected ones with those they need, less the skipped ones; in table order.

    A limit of speed brings `stream`, which measures it. Raises StackgenError for a name that no check has, with the
    nearest one, where all that was selected is skipped, and where a limit could not be looked at.
    """
    known = {check.name: check for check in CHECKS}
    for name in (*options.select, *options.skip):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise StackgenError(f"unknown check {name!r}", f"{hint}`stackgen check --list` prints all")
    limited = bool(options.max_ttft or options.min_tokens_per_second)
    if limited and "stream" in options.skip:
        raise StackgenError("--max-ttft and --min-tokens-per-second are looked at by `stream`, which is skipped",
                            "leave it in, or leave the limits out")  # fmt: skip
    if set(options.select or known) <= set(options.skip):
        raise StackgenError("all checks that were chosen are skipped", "`stackgen check --list` prints what there is")
    if options.select:
        chosen = set(options.select) | ({"stream"} if limited else set())
        while more := {need for name in chosen for need in known[name].needs} - chosen:
            chosen |= more
        # what completions need is asked for by the list of models
        chosen |= {"models"} if any(known[name].per_model for name in chosen) else set()
    else:
        chosen = {
            check.name for check in CHECKS if check.depth <= options.depth or (limited and check.name == "stream")
        }
    return tuple(check for check in CHECKS if check.name in chosen and check.name not in options.skip)
