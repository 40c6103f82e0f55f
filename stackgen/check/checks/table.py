"""The table of checks in the order they run, and the checks `alive` and `models`.

A new check is a function and a row in `CHECKS`.
"""

from __future__ import annotations

import difflib
from typing import Any

from stackgen.check.checks.apis import apis
from stackgen.check.checks.auth import auth
from stackgen.check.checks.chat import chat
from stackgen.check.checks.chat_stream import stream
from stackgen.check.checks.errors import errors
from stackgen.check.checks.features import FEATURES
from stackgen.check.checks.load import load
from stackgen.check.checks.model_names import did_you_mean
from stackgen.check.checks.network import connect, http, resolve, tls
from stackgen.check.checks.services import containers, topology
from stackgen.check.checks.verdict import Check, Context, Verdict, fail, skip, succeed, warn
from stackgen.check.dialects import TOGETHER
from stackgen.check.options import Options
from stackgen.check.transport.openai_schema import ModelList, card_names, load_state, parse
from stackgen.check.transport.session import Reply, error_message
from stackgen.errors import StackgenError

__all__ = ["CHECKS", "READY", "alive", "list_models", "models", "select_checks"]

KEY_HINT = "use the key from the running server's .env; a changed key takes effect only when the server restarts"
LOGS_HINT = "see the server's log: `docker compose logs`"


def alive(context: Context, _model: str) -> Verdict:
    """The server's own liveness path answers 200."""
    path = context.dialect.liveness_path
    if path is None:
        return skip(
            f"{context.dialect.name} has no liveness path; the checks `models` and `chat` show whether the server is "
            "alive"
        )
    reply = context.session.get(context.session.target.root + path)
    if reply.status == 200:
        return succeed(f"{path} answers 200")
    # behind a gateway that forwards only /v1, the server can still be healthy
    if reply.status in (401, 403, 404, 405):
        hint = "a gateway in front of the server may hide this path"
        return warn(f"{path} is not offered here", hint=hint, evidence=context.excerpt(reply))
    hint = f"the engine has died or is still loading; {LOGS_HINT}"
    return fail(f"{path} answers {reply.status}", hint=hint, evidence=context.excerpt(reply))


def models(context: Context, _model: str) -> Verdict:
    """The server lists at least one model, and it lists all expected models under exactly their served names."""
    reply = list_models(context)
    names = context.listed
    if names is None:
        return _fail_no_list(context, reply)
    # FastChat without a registered worker, and a gateway without a replica, answer 200 with an empty list
    wanted = context.session.target.models
    if not names:
        hint = f"no replica or worker is up: it is loading, has failed, or is drained; {LOGS_HINT}"
        return fail("the server lists no models", hint=hint, evidence=context.excerpt(reply))
    missing = [name for name in wanted if name not in names]
    if missing:
        hint = f"{missing[0]}: {did_you_mean(missing[0], names)}"
        evidence = f"listed: {context.session.redact.excerpt(', '.join(names))}"
        return fail(f"the server does not list {', '.join(missing)}", hint=hint, evidence=evidence)
    shown = wanted or names[:8]
    message = f"the server lists {', '.join(shown)}"
    message += f" ({len(names)} models in total)" if len(names) > len(shown) else ""
    # clients need only the ids, so a problem in another field is just a warning
    problems = _list_problems(context, reply)
    if problems:
        evidence = context.session.redact.excerpt("; ".join(problems))
        hint = "clients that parse the model list strictly may fail"
        return warn(f"{message}, but {problems[0]}", hint=hint, evidence=evidence)
    return succeed(message)


def list_models(context: Context) -> Reply:
    """Sends GET /models with the key. Sets `listing`, and `listed` and `chat_models` if the body is a list.

    Raises Fault. If an earlier call failed, its Fault is raised again, because another request could take another
    timeout.
    """
    if context.listing_fault:
        raise context.listing_fault
    reply = context.session.get(f"{context.url}/models")
    body = reply.json()
    # Together sends a bare array
    cards = body.get("data") if isinstance(body, dict) else body
    context.listing, context.listed, context.chat_models, context.unloaded = reply, None, (), {}
    if reply.status == 200 and isinstance(cards, list):
        listed, chats = list[str](), list[str]()
        for card in cards:
            names = card_names(card) if isinstance(card, dict) else ()
            listed += names
            if names and (state := load_state(card)):
                context.unloaded.update(dict.fromkeys(names, state))
            # Together also lists image and speech models; `type` shows the kind of a model
            chats += names if names and card.get("type") in (None, "model", "chat") else ()
        context.listed, context.chat_models = tuple(listed), tuple(chats)
        context.unloaded.update(_ask_llama_swap(context, cards, listed))
    return reply


def _ask_llama_swap(context: Context, cards: list[Any], listed: list[str]) -> dict[str, str]:
    """The models that llama-swap would load first. Its `/running` lists the loaded models."""
    # an older llama-swap lists models without their state (mostlygeek/llama-swap, proxy/proxymanager.go)
    owners = {str(card.get("owned_by")) for card in cards if isinstance(card, dict)}
    if owners != {"llama-swap"} or context.unloaded:
        return {}
    body = context.session.get(f"{context.session.target.root}/running").json()
    running = body.get("running") if isinstance(body, dict) else None
    if not isinstance(running, list):
        return {}
    ready = {str(one.get("model")) for one in running if isinstance(one, dict) and one.get("state") == "ready"}
    return {name: "unloaded" for name in listed if name not in ready}


def _fail_no_list(context: Context, reply: Reply) -> Verdict:
    evidence = context.excerpt(reply)
    if reply.status in (401, 403):
        target = context.session.target
        if target.api_key is None:
            message = "the server requires a key, but none was given"
            return fail(message, hint=target.no_key_hint, evidence=evidence)
        return fail("the server refuses the key", hint=KEY_HINT, evidence=evidence)
    # `http` saw no redirect without a key, so the server redirects only requests with the key
    if location := context.redirect_target(reply):
        message = f"if a request contains the key, the server redirects the request to {location}"
        return fail(message, hint="use the URL that the server redirects to", evidence=evidence)
    if reply.status == 404:
        hint = "check the base URL: it usually ends in /v1"
        return fail("/models is not found", hint=hint, evidence=evidence)
    # llama.cpp reports a model that is still loading in this error
    error = context.session.redact.excerpt(error_message(reply), 120)
    message = f"expected a list of models, got {reply.summary}" + (f": {error}" if error else "")
    return fail(message, hint=LOGS_HINT, evidence=evidence)


def _list_problems(context: Context, reply: Reply) -> tuple[str, ...]:
    body = reply.json()
    if isinstance(body, list):
        # Together documents a bare array, on which models.list() of the SDK fails
        return (
            ()
            if context.dialect.name == TOGETHER.name
            else ("the model list is a JSON array, not an object with `object` and `data`",)
        )
    parsed, problems = parse(ModelList, body)
    return () if parsed else problems


# The checks in the order they run. `auth` comes after the completions because `auth` generates text too. An engine that
# dies of its first request must die in `chat`, because the message of `chat` contains the reason.
CHECKS: tuple[Check, ...] = (
    Check("containers", run=containers, about="the stack's containers are running", needs=()),
    Check("resolve", run=resolve, about="the host name resolves", needs=()),
    Check("connect", run=connect, about="the port accepts TCP connections", needs=("resolve",)),
    Check(
        "tls",
        run=tls,
        about="the certificate is trusted, matches the host and does not expire soon",
        needs=("connect",),
    ),
    Check("http", run=http, about="the base URL answers HTTP", needs=("resolve", "connect", "tls")),
    Check("alive", run=alive, about="the server's liveness path answers 200"),
    Check("models", run=models, about="the server lists the expected models with exactly the expected names"),
    Check("chat", run=chat, about="the requested model returns a completion as documented", per_model=True),
    Check(
        "stream", run=stream, about="a streamed completion is complete, in order and on time", per_model=True, depth=1
    ),
    Check("auth", run=auth, about="wrong keys are refused, and no path bypasses the key"),
    *FEATURES,
    Check("apis", run=apis, about="which APIs and forms of requests work with each model", per_model=True, depth=2),
    Check(
        "errors",
        run=errors,
        about="invalid requests get a clear error, and the server keeps working",
        needs=("chat",),
        depth=2,
    ),
    Check(
        "load",
        run=load,
        about="all concurrent requests are answered, each with its own answer",
        needs=("chat",),
        per_model=True,
        exhaustive=False,
        depth=2,
    ),
    Check("topology", run=topology, about="workers and replicas generate text and run as planned", needs=(), depth=1),
)
# the checks that `wait` repeats, with `alive`, because an engine that just died may still list its models
READY: tuple[Check, ...] = tuple(
    check for check in CHECKS if check.name in ("resolve", "connect", "tls", "http", "alive", "models")
)


def select_checks(options: Options) -> tuple[Check, ...]:
    """Returns the checks of a profile, or the selected checks and the checks that these need, in table order.

    Skipped checks are left out. A speed limit adds `stream`, which measures the speed. Raises StackgenError for an
    unknown name, if all selected checks are skipped, and if `stream` is skipped although there is a speed limit.
    """
    known = {check.name: check for check in CHECKS}
    for name in (*options.select, *options.skip):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise StackgenError(f"unknown check {name!r}", hint=f"{hint}`stackgen check --list` lists all checks")
    limited = bool(options.max_ttft or options.min_tokens_per_second)
    if limited and "stream" in options.skip:
        raise StackgenError(
            "--max-ttft and --min-tokens-per-second need the check `stream`, which is skipped",
            hint="remove the limits, or don't skip `stream`",
        )
    if set(options.select or known) <= set(options.skip):
        raise StackgenError("all selected checks are skipped", hint="`stackgen check --list` lists all checks")
    if options.select:
        selected = set(options.select) | ({"stream"} if limited else set())
        while more := {need for name in selected for need in known[name].needs} - selected:
            selected |= more
        # checks per model take the names from the model list
        selected |= {"models"} if any(known[name].per_model for name in selected) else set()
    else:
        selected = {
            check.name for check in CHECKS if check.depth <= options.depth or (limited and check.name == "stream")
        }
    return tuple(check for check in CHECKS if check.name in selected and check.name not in options.skip)
