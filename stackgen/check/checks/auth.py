"""Authentication: requests without the right key are refused, and no path bypasses the key."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stackgen.check.checks.verdict import Context, Verdict, fail, succeed, warn
from stackgen.check.transport.answer import refuses_few_tokens
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.redact import basic_credentials
from stackgen.check.transport.session import Reply, error_message
from stackgen.plan.clouds import CLOUDS

__all__ = ["auth"]


def _tiny_chat(model: str) -> dict[str, Any]:
    """Returns the body of a chat request that generates one token."""
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


# a closed port, or one that a firewall drops, must not delay the check
PORT_SECONDS = 1.0
PRIVATE_HINT = "FastChat's controller and workers have no authentication: do not publish their ports"
KEY_HINT = "use the key from the running server's .env; a changed key takes effect only when the server restarts"
UNGUARDED_HINT = "start the server with a key (vLLM: VLLM_API_KEY; FastChat: --api-keys)"

AS_BASIC = "the key as Basic auth"
BASIC_HINT = (
    "this is not an authentication bypass, because the server also requires the key for Basic auth. OpenAI clients"
    " send the key in the header `Authorization: Bearer KEY`"
)


def _wrong_credentials(key: str) -> tuple[tuple[str, str, str | None], ...]:
    """Each kind of wrong credential: its name, a phrase for messages, and the value of the Authorization header.

    One kind is the key itself as Basic auth. The check sends the key only to the server that the key belongs to.
    """
    return (
        ("no key", "without a key", None),
        ("a wrong key", "with a wrong key", "Bearer stackgen-check-wrong-key"),
        ("wrong Basic auth", "with wrong Basic auth", "Basic c3RhY2tnZW46d3Jvbmc="),
        (AS_BASIC, "with the key as Basic auth", f"Basic {basic_credentials(key)}"),
        ("an empty key", "with an empty key", "Bearer"),
    )


# Paths that only read or compute. Each body generates at most one token. The check sends GET to all other paths.
BODIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "/invocations": _tiny_chat,
    "/api/v1/chat/completions": _tiny_chat,
    "/completion": lambda _: {"prompt": "hi", "n_predict": 1},
    "/completions": lambda model: {"model": model, "prompt": "hi", "max_tokens": 1},
    "/chat/completions": _tiny_chat,
    "/tokenize": lambda model: {"model": model, "prompt": "hi", "content": "hi"},
    "/detokenize": lambda model: {"model": model, "tokens": [1]},
    # recorded from vLLM 0.32.0, which answers with a score for each item
    "/generative_scoring": lambda model: {"model": model, "query": "hi", "items": ["hi"], "label_token_ids": [1, 2]},
    "/score": lambda model: {"model": model, "text_1": "hi", "text_2": "hi"},
    "/rerank": lambda model: {"model": model, "query": "hi", "documents": ["hi"]},
    "/classify": lambda model: {"model": model, "input": "hi"},
    "/pooling": lambda model: {"model": model, "input": "hi"},
    "/apply-template": lambda _: {"messages": [{"role": "user", "content": "hi"}]},
}
# open paths that generate text bypass the key; the other open paths of a dialect only reveal facts about the server
GENERATING = frozenset({
    "/invocations", "/generative_scoring", "/api/v1/chat/completions", "/completion", "/completions",
    "/chat/completions",
})  # fmt: skip

# Path segments that change a server's state (vLLM and FastChat routes, all POST). The check must not pause or unload
# anything, so it sends GET. FastAPI returns 405 if the path exists and no authentication stopped the request, else 404.
STATE_CHANGING = frozenset({
    "abort_requests", "collective_rpc", "init_weights_update_group", "load_lora_adapter", "pause",
    "receive_heart_beat", "refresh_all_workers", "register_worker", "reset_mm_cache", "reset_prefix_cache", "resume",
    "scale_elastic_ep", "sleep", "start_profile", "stop_profile", "unload_lora_adapter", "update_weights",
    "wake_up",
})  # fmt: skip
# harmless paths that have no GET either, so a 405 is judged the same way
POST_ONLY = frozenset({"/v2/rerank", "/inference/v1/generate"})
NO_PATH = "/stackgen-check-no-such-path"
# open paths of one server are requested in parallel, so that all of them fit into one timeout
MAX_CONCURRENCY = 8


def auth(context: Context, _model: str) -> Verdict:
    """Wrong credentials are refused, the right key is accepted, and no path of the dialect answers without the key."""
    target = context.session.target
    if private := _open_private_ports(context):
        return fail(f"these addresses answer without authentication: {', '.join(private)}", hint=PRIVATE_HINT)
    if target.api_key is None:
        return _check_without_key(context)
    accepted, odd, basic = _try_wrong_credentials(context, target.api_key)
    # a failure on loopback too: somebody set a key and relies on it
    if accepted:
        return fail(f"the server accepts {', '.join(accepted)}", hint=UNGUARDED_HINT, evidence="; ".join(odd))
    # the check `models` has already sent the key
    reply = context.listing or context.session.get(f"{target.base_url}/models")
    if reply.status in (401, 403):
        return fail("the server refuses the key", hint=KEY_HINT, evidence=context.excerpt(reply))
    # 404 or 500 without a key is no refusal: the request may not have reached the authentication at all
    if any(not note.endswith(("401", "403")) for note in odd):
        return fail(
            "a request without the right key got a status other than 401 or 403",
            hint="see the server's log",
            evidence="; ".join(odd),
        )
    opened, inconclusive = _find_open_paths(context)
    evidence = "; ".join([*odd, *inconclusive.notes])
    if opened:
        bypass = any(path in GENERATING for path in opened)
        message = f"the server answers without the key: {', '.join(opened)}" + (
            " (authentication bypass)" if bypass else ""
        )
        hint = "put a proxy that forwards only /v1 in front of the server"
        if target.exposed:
            return fail(message, hint=hint, evidence=evidence)
        # on loopback, users of this machine are the only ones who can reach it
        acceptable = "paths without a key are acceptable as long as only this machine can reach the server"
        hint = f"{acceptable}. Before other machines can reach the server, {hint}"
        return warn(message, hint=hint, evidence=evidence)
    if inconclusive.has_errors:
        message = "/v1 refuses wrong keys, but some other paths could not be checked"
        return warn(message, hint="see the server's log", evidence=evidence)
    if odd:
        statuses = " or ".join(map(str, context.dialect.auth_statuses))
        message = f"the server refuses wrong keys, but not with status {statuses}"
        hint = f"some clients recognize a wrong key only if the status is {statuses}"
        return warn(message, hint=hint, evidence=evidence)
    if basic:
        return warn(f"the server also accepts {AS_BASIC}", hint=BASIC_HINT, evidence=evidence)
    *phrases, last = (phrase for _, phrase, _ in _credentials_to_try(context, target.api_key))
    return succeed(f"requests {', '.join(phrases)} and {last} are refused", evidence=evidence)


def _check_without_key(context: Context) -> Verdict:
    target = context.session.target
    listing = context.session.get(f"{target.base_url}/models", None)
    if listing.status in (401, 403):
        message = "the server requires a key, but none was given"
        return fail(message, hint=target.no_key_hint, evidence=context.excerpt(listing))
    # the check `chat` may have already shown that chat works without a key
    if not context.chat_answers and context.any_model == "unknown" and context.unloaded and listing.status == 200:
        message = "the model list is open; chat was not requested, because that would load a model"
        return warn(message, hint="run `stackgen check` without --quick to see whether chat needs a key")
    if not context.chat_answers:
        reply = context.session.post(f"{context.url}/chat/completions", _tiny_chat(context.any_model), None)
        if reply.status in (401, 403):
            models = "the model list is open" if listing.status == 200 else f"/models returns {listing.status}"
            message = f"{models}, but chat requires a key and no key was given"
            return fail(message, hint=target.no_key_hint, evidence=context.excerpt(reply))
        if reply.status != 200 and not refuses_few_tokens(reply.status, error_message(reply)):
            statuses = f"/models returns {listing.status}, chat returns {reply.status}"
            message = f"can't tell whether the server requires a key: {statuses}"
            return warn(message, hint="check the base URL", evidence=context.excerpt(reply))
    message = "the server has no key: anyone who can reach the server can use it"
    if target.exposed:
        return fail(message, hint="set a key before other machines can reach the server")
    hint = "a server without a key is acceptable as long as only this machine can reach the server"
    return warn(message, hint=hint)


def _credentials_to_try(context: Context, key: str) -> tuple[tuple[str, str, str | None], ...]:
    # a quick check may run every few seconds, so it tries only the first two kinds
    return _wrong_credentials(key) if context.options.depth else _wrong_credentials(key)[:2]


def _try_wrong_credentials(context: Context, key: str) -> tuple[list[str], list[str], bool]:
    """Returns the accepted credentials, notes about unexpected statuses, and whether the key works as Basic auth."""
    accepted, odd, basic = [], [], False
    chat = _tiny_chat(context.any_model)
    for name, phrase, header in _credentials_to_try(context, key):
        # some gateways protect only the model list, and some only the completions
        replies = (
            context.session.get(f"{context.url}/models", header),
            context.session.post(f"{context.url}/chat/completions", chat, header),
        )
        # a redirect is neither an answer nor a refusal, so `odd` reports it
        # a model refuses a short answer only after the request has passed the authentication
        through = [reply.status < 300 or refuses_few_tokens(reply.status, error_message(reply)) for reply in replies]
        if name == AS_BASIC and any(through):
            basic = True
        elif all(through):
            accepted.append(f"requests {phrase}")
        elif any(through):
            accepted.append(f"{'model list' if through[0] else 'chat'} requests {phrase}")
        for what, reply, passed in zip(("model list", "chat"), replies, through, strict=True):
            if not passed and reply.status not in context.dialect.auth_statuses:
                odd.append(f"a {what} request {phrase} returns {reply.status}")
    return accepted, odd, basic


class _Inconclusive:
    """Open paths without a clear result, one note each. `has_errors`: a path was requested and failed to answer."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.has_errors = False


def _find_open_paths(context: Context) -> tuple[list[str], _Inconclusive]:
    """The open paths that answer without a key, in the dialect's order. All of them together take one timeout."""
    inconclusive, paths = _Inconclusive(), list[str]()
    target = context.session.target
    # the check sends a cloud only requests of its documented API
    cloud = any(cloud.owns(target.host) for cloud in CLOUDS.values())
    for path in context.dialect.open_paths if not cloud else ():
        if not context.options.depth and path not in GENERATING:
            continue
        if path in GENERATING and context.timed_out_models:
            inconclusive.notes.append(f"{path} was not requested, because the model does not answer")
            continue
        paths.append(path)
    if not paths:
        return [], inconclusive
    model, deadline = context.any_model, time.monotonic() + context.session.timeout

    def request(path: str) -> Reply | Fault:
        body, left = BODIES.get(path), deadline - time.monotonic()
        if left <= 0:
            return Fault("timeout", "no time was left for a request", hint="")
        try:
            if body is None or _changes_state(path):
                return context.session.get(target.root + path, None, left)
            return context.session.post(target.root + path, body(model), None, max_seconds=left)
        except Fault as fault:
            return fault

    # the paths that would bypass the key come first, in case the time runs out
    order = sorted(paths, key=lambda path: path not in GENERATING)
    with ThreadPoolExecutor(min(MAX_CONCURRENCY, len(order)), "stackgen-paths") as pool:
        # if a server returns 405 even for an unknown path, a 405 proves nothing
        no_path_reply = pool.submit(request, NO_PATH) if any(map(_is_detected_by_405, order)) else None
        replies = dict(zip(order, pool.map(request, order), strict=True))
        missing = no_path_reply.result() if no_path_reply else None
    no_path = missing.status if isinstance(missing, Reply) else 0
    opened = [path for path in paths if _is_open(path, replies[path], no_path, inconclusive)]
    return opened, inconclusive


def _is_open(path: str, reply: Reply | Fault, no_path: int, inconclusive: _Inconclusive) -> bool:
    """Whether the reply shows that authentication let the request through; `no_path` is the status of an unknown path.

    Replies that prove nothing are added to `inconclusive`.
    """
    if isinstance(reply, Fault):
        inconclusive.notes.append(f"{path}: {reply.message}")
        inconclusive.has_errors = True
        return False
    # the request may have failed before authentication or after it
    if reply.status >= 500:
        inconclusive.notes.append(f"{path} returns {reply.status}")
        inconclusive.has_errors = True
        return False
    # with 400 and 422 the path itself judges the body, so authentication let the request through
    answered = reply.status < 300 or reply.status in (400, 422)
    if _is_detected_by_405(path):
        return no_path == 404 and (answered or reply.status == 405)
    # a web page that is shown for any path reveals nothing
    return answered and (path not in GENERATING or isinstance(reply.json(), dict))


def _changes_state(path: str) -> bool:
    return bool(STATE_CHANGING & set(path.split("?")[0].strip("/").split("/")))


def _is_detected_by_405(path: str) -> bool:
    return _changes_state(path) or path in POST_ONLY


def _open_private_ports(context: Context) -> list[str]:
    """Private services of the dialect's stack that answer at the endpoint's address, as `host:port`.

    Only the stack itself may reach them. Ports that don't answer within a second count as closed.
    """
    target, reachable = context.session.target, []
    for port, path in context.dialect.private_ports:
        if port == target.port:
            continue
        host = f"[{target.host}]" if ":" in target.host else target.host
        try:
            with socket.create_connection((target.host, port), PORT_SECONDS):
                pass
            reply = context.session.post(f"http://{host}:{port}{path}", {}, None, max_seconds=2 * PORT_SECONDS)
        except (OSError, Fault):
            continue
        # another program may listen there; FastChat's services answer these paths with JSON
        if reply.status == 200 and isinstance(reply.json(), dict):
            reachable.append(f"{host}:{port}")
    return reachable
