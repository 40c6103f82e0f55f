"""The server is guarded: requests without the right key are refused, and no path leads around the key."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from stackgen.check.faults import Fault
from stackgen.check.verdict import Context, Verdict, failed, passed, warned

__all__ = ["auth"]


def _tiny_chat(model: str) -> dict[str, Any]:
    """A chat request that costs one token."""
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


# a port that is closed, or that a firewall drops, must not hold the check up
PORT_SECONDS = 1.0
PRIVATE_HINT = "FastChat's controller and workers have no authentication: publish no port of theirs"
KEY_HINT = "is it the key of the running server's .env? a change needs a restart"
NO_KEY_HINT = "give it by --api-key or .env"
UNGUARDED_HINT = "start it with its key set (vLLM: VLLM_API_KEY; FastChat: --api-keys)"

# the header's value for each kind of wrong credential; a real key never has these forms
WRONG: tuple[tuple[str, str | None], ...] = (
    ("no key", None),
    ("a wrong key", "Bearer stackgen-check-wrong-key"),
    ("a Basic login", "Basic c3RhY2tnZW46d3Jvbmc="),
    ("an empty key", "Bearer"),
)

# Paths that only read or compute, and a body that makes them do it for one token. Everything else is asked by GET.
BODIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "/invocations": _tiny_chat,
    "/api/v1/chat/completions": _tiny_chat,
    "/api/v1/token_check": lambda model: {"prompts": [{"model": model, "prompt": "hi", "max_tokens": 1}]},
    "/completion": lambda _: {"prompt": "hi", "n_predict": 1},
    "/completions": lambda model: {"model": model, "prompt": "hi", "max_tokens": 1},
    "/chat/completions": _tiny_chat,
    "/tokenize": lambda model: {"model": model, "prompt": "hi", "content": "hi"},
    "/detokenize": lambda model: {"model": model, "tokens": [1]},
    "/apply-template": lambda _: {"messages": [{"role": "user", "content": "hi"}]},
}
# paths that give away what the key protects; the others of a dialect tell about the server
GENERATES = frozenset({"/invocations", "/api/v1/chat/completions", "/completion", "/completions", "/chat/completions"})

# Path segments of requests that change a server's state (vLLM's and FastChat's routes): a
# dialect may name such a path, and a check must not pause, unload or rewire what it looks at.
CHANGING = frozenset({
    "abort_requests", "collective_rpc", "init_weights_update_group", "load_lora_adapter", "pause",
    "receive_heart_beat", "refresh_all_workers", "register_worker", "reset_mm_cache", "reset_prefix_cache", "resume",
    "scale_elastic_ep", "sleep", "start_profile", "stop_profile", "unload_lora_adapter", "update_weights",
    "wake_up",
})  # fmt: skip


def auth(context: Context, _model: str) -> Verdict:
    """Each kind of wrong credential is refused, the right key is taken, and the dialect's open paths are closed."""
    target = context.session.target
    if private := _private_ports(context):
        return failed(f"answers without any key: {', '.join(private)}", PRIVATE_HINT)
    if target.api_key is None:
        return _no_key(context)
    accepted, odd = _refusals(context)
    # on loopback too: a key is set, so somebody relies on it
    if accepted:
        return failed(f"the server answers to {', '.join(accepted)}", UNGUARDED_HINT, "; ".join(odd))
    reply = context.session.get(f"{target.base_url}/models")
    if reply.status in (401, 403):
        return failed("the server refuses the key", KEY_HINT, context.excerpt(reply))
    # 404 or 500 to a request without a key is no refusal: the guard may not have been asked at all
    if any(not note.endswith(("401", "403")) for note in odd):
        return failed("a wrong key is not refused as it should be", "look at the server's log", "; ".join(odd))
    opened, unclear, untried = _open_paths(context)
    evidence = "; ".join([*odd, *unclear, *untried])
    if opened:
        generating = [path for path in opened if path in GENERATES]
        message = f"answers without the key: {', '.join(opened)}" + (" (a way around the key)" if generating else "")
        hint = "let only /v1 through: a proxy with an allow-list in front"
        if target.exposed:
            return failed(message, hint, evidence)
        return warned(message, f"on this machine alone that is bearable; before others may reach it, {hint}", evidence)
    if unclear:
        return warned("refused on /v1, but some paths can't be judged", "look at the server's log", evidence)
    if odd:
        statuses = " or ".join(map(str, context.dialect.auth_statuses))
        return warned(f"refused, but not with {statuses}", "clients may not know it for a key problem", evidence)
    return passed("no key, a wrong one, Basic and an empty one are refused", evidence)


def _no_key(context: Context) -> Verdict:
    target = context.session.target
    reply = context.session.get(f"{target.base_url}/models", None)
    if reply.status in (401, 403):
        return failed("the server wants a key, and none is given", NO_KEY_HINT, context.excerpt(reply))
    message = "the server has no key: whoever reaches it may use it"
    if target.exposed:
        return failed(message, "set a key before anything but this machine can reach it")
    return warned(message, "bearable while only this machine can reach it")


def _refusals(context: Context) -> tuple[list[str], list[str]]:
    """The wrong credentials that were accepted, and those refused with another status than the dialect's."""
    accepted, odd = [], []
    # a probe every few seconds needs not try every form
    wrong = WRONG if context.options.depth else WRONG[:2]
    probes = [(name, header, False) for name, header in wrong] + [("a chat without a key", None, True)]
    for name, header, posts in probes:
        if posts:
            # some gateways guard the list and not the work, or the other way round
            reply = context.session.post(f"{context.url}/chat/completions", _tiny_chat(context.any_model), header)
        else:
            reply = context.session.get(f"{context.url}/models", header)
        # a redirect is no answer, and no refusal either: it falls through to `odd`
        if reply.status < 300:
            accepted.append(name)
        elif reply.status not in context.dialect.auth_statuses:
            odd.append(f"{name} gives {reply.status}")
    return accepted, odd


def _open_paths(context: Context) -> tuple[list[str], list[str], list[str]]:
    """The dialect's open paths that answer without a key, and notes: could not be told, were not tried."""
    opened: list[str] = []
    unclear: list[str] = []
    untried: list[str] = []
    for path in context.dialect.open_paths:
        if not context.options.depth and path not in GENERATES:
            continue
        if path in GENERATES and context.silent:
            untried.append(f"{path} not tried, as the model does not answer")
            continue
        if CHANGING & set(path.split("?")[0].strip("/").split("/")):
            untried.append(f"{path} not tried, as it may change the server's state")
            continue
        url, body = context.session.target.root + path, BODIES.get(path)
        try:
            if body is None:
                reply = context.session.get(url, None)
            else:
                reply = context.session.post(url, body(context.any_model), None)
        except Fault as fault:
            unclear.append(f"{path}: {fault.message}")
            continue
        # 400 and 422 are the path's own answer to the body: the request got past the guard
        if reply.status < 300 or reply.status in (400, 422):
            opened.append(path)
        # it may have got past the guard and failed there, or failed before it
        elif reply.status >= 500:
            unclear.append(f"{path} gives {reply.status}")
    return opened, unclear, untried


def _private_ports(context: Context) -> list[str]:
    """Services of the dialect's stack that answer at the endpoint's address though nobody but the stack may reach them.

    Only where the address is this machine's or the server is of that dialect for sure: the ports are tried in passing.
    """
    target, found = context.session.target, []
    for port, path in context.dialect.private_ports:
        if port == target.port:
            continue
        host = f"[{target.host}]" if ":" in target.host else target.host
        try:
            with socket.create_connection((target.host, port), PORT_SECONDS):
                pass
            reply = context.session.post(f"http://{host}:{port}{path}", {}, None)
        except (OSError, Fault):
            continue
        # something else may listen there; FastChat's services answer these paths with JSON
        if reply.status == 200 and isinstance(reply.json(), dict):
            found.append(f"{host}:{port}")
    return found
