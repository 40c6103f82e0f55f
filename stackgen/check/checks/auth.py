"""The server is guarded: requests without the right key are refused, and no path leads around the key."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stackgen.check.checks.verdict import Context, Verdict, failed, passed, warned
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.redact import as_basic
from stackgen.check.transport.session import Reply
from stackgen.plan.clouds import CLOUDS

__all__ = ["auth"]


def _tiny_chat(model: str) -> dict[str, Any]:
    """A chat request that costs one token."""
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


# a port that is closed, or that a firewall drops, must not hold the check up
PORT_SECONDS = 1.0
PRIVATE_HINT = "FastChat's controller and workers have no authentication: publish no port of theirs"
KEY_HINT = "is it the key of the running server's .env? a change needs a restart"
UNGUARDED_HINT = "start it with its key set (vLLM: VLLM_API_KEY; FastChat: --api-keys)"

AS_BASIC = "the key as a Basic login"
BASIC_HINT = "clients send a Bearer key; nobody without the key gets in by it"


def _wrong(key: str) -> tuple[tuple[str, str, str | None], ...]:
    """Each kind of wrong credential: its name, the words for a request with it, and the header's value.

    The key itself as a Basic login goes to nobody but its own server.
    """
    return (
        ("no key", "without a key", None),
        ("a wrong key", "with a wrong key", "Bearer stackgen-check-wrong-key"),
        ("a Basic login", "with a Basic login", "Basic c3RhY2tnZW46d3Jvbmc="),
        (AS_BASIC, "with the key as Basic", f"Basic {as_basic(key)}"),
        ("an empty key", "with an empty key", "Bearer"),
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
    # recorded from vLLM 0.32.0: it answers with a score for each item
    "/generative_scoring": lambda model: {"model": model, "query": "hi", "items": ["hi"], "label_token_ids": [1, 2]},
    "/score": lambda model: {"model": model, "text_1": "hi", "text_2": "hi"},
    "/rerank": lambda model: {"model": model, "query": "hi", "documents": ["hi"]},
    "/classify": lambda model: {"model": model, "input": "hi"},
    "/pooling": lambda model: {"model": model, "input": "hi"},
    "/apply-template": lambda _: {"messages": [{"role": "user", "content": "hi"}]},
}
# paths that give away what the key protects; the others of a dialect tell about the server
GENERATES = frozenset({
    "/invocations", "/generative_scoring", "/api/v1/chat/completions", "/completion", "/completions",
    "/chat/completions",
})  # fmt: skip

# Path segments of requests that change a server's state (vLLM's and FastChat's routes, all by POST): a check must not
# pause, unload or rewire what it looks at. They are asked by GET, which FastAPI refuses with 405 where the path is
# there and the guard let the request through, with 404 where it isn't.
CHANGING = frozenset({
    "abort_requests", "collective_rpc", "init_weights_update_group", "load_lora_adapter", "pause",
    "receive_heart_beat", "refresh_all_workers", "register_worker", "reset_mm_cache", "reset_prefix_cache", "resume",
    "scale_elastic_ep", "sleep", "start_profile", "stop_profile", "unload_lora_adapter", "update_weights",
    "wake_up",
})  # fmt: skip
# no harm, and nothing that a GET would show either
POST_ONLY = frozenset({"/v2/rerank", "/inference/v1/generate"})
NO_PATH = "/stackgen-check-no-such-path"
# paths of one server are asked so many at a time
AT_ONCE = 8


def auth(context: Context, _model: str) -> Verdict:
    """Each kind of wrong credential is refused, the right key is taken, and the dialect's open paths are closed."""
    target = context.session.target
    if private := _private_ports(context):
        return failed(f"answers without any key: {', '.join(private)}", PRIVATE_HINT)
    if target.api_key is None:
        return _no_key(context)
    accepted, odd, basic = _refusals(context, target.api_key)
    # on loopback too: a key is set, so somebody relies on it
    if accepted:
        return failed(f"the server answers to {', '.join(accepted)}", UNGUARDED_HINT, "; ".join(odd))
    # `models` has asked with the key
    reply = context.listing or context.session.get(f"{target.base_url}/models")
    if reply.status in (401, 403):
        return failed("the server refuses the key", KEY_HINT, context.excerpt(reply))
    # 404 or 500 to a request without a key is no refusal: the guard may not have been asked at all
    if any(not note.endswith(("401", "403")) for note in odd):
        return failed("a wrong key is not refused as it should be", "look at the server's log", "; ".join(odd))
    opened, unclear = _open_paths(context)
    evidence = "; ".join([*odd, *unclear.told])
    if opened:
        generating = [path for path in opened if path in GENERATES]
        message = f"answers without the key: {', '.join(opened)}" + (" (a way around the key)" if generating else "")
        hint = "let only /v1 through: a proxy with an allow-list in front"
        if target.exposed:
            return failed(message, hint, evidence)
        return warned(message, f"on this machine alone that is bearable; before others may reach it, {hint}", evidence)
    if unclear.troubled:
        return warned("refused on /v1, but some paths can't be judged", "look at the server's log", evidence)
    if odd:
        statuses = " or ".join(map(str, context.dialect.auth_statuses))
        return warned(f"refused, but not with {statuses}", "clients may not know it for a key problem", evidence)
    if basic:
        return warned(f"the server takes {AS_BASIC} as well", BASIC_HINT, evidence)
    return passed("no key, a wrong one, Basic and an empty one are refused", evidence)


def _no_key(context: Context) -> Verdict:
    target = context.session.target
    listing = context.session.get(f"{target.base_url}/models", None)
    if listing.status in (401, 403):
        return failed("the server wants a key, and none is given", target.no_key_hint, context.excerpt(listing))
    # `chat` may have shown already that it works without one
    if not context.texts:
        reply = context.session.post(f"{context.url}/chat/completions", _tiny_chat(context.any_model), None)
        if reply.status in (401, 403):
            seen = "the list of models is open" if listing.status == 200 else f"/models gives {listing.status}"
            return failed(f"{seen}, and a chat wants a key, which is not given", target.no_key_hint,
                          context.excerpt(reply))  # fmt: skip
        if reply.status != 200:
            told = f"/models gives {listing.status}, and a chat {reply.status}"
            return warned(f"whether the server has a key can't be told: {told}", "is the base URL right?",
                          context.excerpt(reply))  # fmt: skip
    message = "the server has no key: whoever reaches it may use it"
    if target.exposed:
        return failed(message, "set a key before anything but this machine can reach it")
    return warned(message, "bearable while only this machine can reach it")


def _refusals(context: Context, key: str) -> tuple[list[str], list[str], bool]:
    """The wrong credentials that were accepted, those refused with another status than the dialect's, and whether the
    key is taken as a Basic login too.
    """
    accepted, odd, basic = [], [], False
    # a probe every few seconds needs not try every form
    chat = _tiny_chat(context.any_model)
    wrong = _wrong(key) if context.options.depth else _wrong(key)[:2]
    for name, words, header in wrong:
        # some gateways guard the list and not the work, or the other way round
        replies = (
            context.session.get(f"{context.url}/models", header),
            context.session.post(f"{context.url}/chat/completions", chat, header),
        )
        # a redirect is no answer, and no refusal either: it falls through to `odd`
        through = [reply.status < 300 for reply in replies]
        if name == AS_BASIC and any(through):
            basic = True
        elif all(through):
            accepted.append(name)
        elif any(through):
            accepted.append(f"{'a list of models' if through[0] else 'a chat'} {words}")
        for what, reply in zip((name, f"a chat {words}"), replies, strict=True):
            if reply.status >= 300 and reply.status not in context.dialect.auth_statuses:
                odd.append(f"{what} gives {reply.status}")
    return accepted, odd, basic


class _Unclear:
    """What could not be told of open paths: `told` in words, `troubled` where a path was asked and gave no answer."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.troubled = False


def _open_paths(context: Context) -> tuple[list[str], _Unclear]:
    """The dialect's open paths that answer without a key, in its order, and notes. All together take one time-out."""
    unclear, paths = _Unclear(), list[str]()
    target = context.session.target
    # of a cloud nothing but its documented API is anybody's business
    cloud = any(cloud.owns(target.host) for cloud in CLOUDS.values())
    for path in context.dialect.open_paths if not cloud else ():
        if not context.options.depth and path not in GENERATES:
            continue
        if path in GENERATES and context.silent:
            unclear.told.append(f"{path} not tried, as the model does not answer")
            continue
        paths.append(path)
    if not paths:
        return [], unclear
    model, deadline = context.any_model, time.monotonic() + context.options.timeout

    def ask(path: str) -> Reply | Fault:
        body, left = BODIES.get(path), deadline - time.monotonic()
        if left <= 0:
            return Fault("timeout", "not asked, as the others took all the time", "")
        try:
            if body is None or _changes(path):
                return context.session.get(target.root + path, None, left)
            return context.session.post(target.root + path, body(model), None, within=left)
        except Fault as fault:
            return fault

    # those that are a way around the key come first, should time run out
    order = sorted(paths, key=lambda path: path not in GENERATES)
    with ThreadPoolExecutor(min(AT_ONCE, len(order)), "stackgen-paths") as pool:
        # a server that refuses GET everywhere tells nothing by it
        by_method = pool.submit(ask, NO_PATH) if any(map(_by_method, order)) else None
        replies = dict(zip(order, pool.map(ask, order), strict=True))
        missing = by_method.result() if by_method else None
    no_path = missing.status if isinstance(missing, Reply) else 0
    opened = [path for path in paths if _is_open(path, replies[path], no_path, unclear)]
    return opened, unclear


def _is_open(path: str, reply: Reply | Fault, no_path: int, unclear: _Unclear) -> bool:
    """Whether the reply shows that the request got past the guard; `no_path` is the status of a path that isn't there.

    What can't be told is added to `unclear`.
    """
    if isinstance(reply, Fault):
        unclear.told.append(f"{path}: {reply.message}")
        unclear.troubled = True
        return False
    # it may have got past the guard and failed there, or failed before it
    if reply.status >= 500:
        unclear.told.append(f"{path} gives {reply.status}")
        unclear.troubled = True
        return False
    # 400 and 422 are the path's own answer to the body: the request got past the guard
    answered = reply.status < 300 or reply.status in (400, 422)
    if _by_method(path):
        return no_path == 404 and (answered or reply.status == 405)
    # a web page that is shown for any path gives away nothing
    return answered and (path not in GENERATES or isinstance(reply.json(), dict))


def _changes(path: str) -> bool:
    return bool(CHANGING & set(path.split("?")[0].strip("/").split("/")))


def _by_method(path: str) -> bool:
    return _changes(path) or path in POST_ONLY


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
            reply = context.session.post(f"http://{host}:{port}{path}", {}, None, within=2 * PORT_SECONDS)
        except (OSError, Fault):
            continue
        # something else may listen there; FastChat's services answer these paths with JSON
        if reply.status == 200 and isinstance(reply.json(), dict):
            found.append(f"{host}:{port}")
    return found
