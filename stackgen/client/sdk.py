"""OpenAI SDK clients configured for one target, and the SDK's errors translated into stackgen's.

The SDK is imported inside the functions that need it: the import takes half a second.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stackgen.check.checks.chat import is_unknown_model
from stackgen.check.checks.model_names import did_you_mean, resolve
from stackgen.check.checks.table import list_models
from stackgen.check.checks.verdict import Context
from stackgen.check.dialects import OPENAI, TOGETHER
from stackgen.check.limits import validate_seconds
from stackgen.check.options import Options
from stackgen.check.target import Target
from stackgen.check.transport.answer import refuses_few_tokens
from stackgen.check.transport.faults import Fault, classify
from stackgen.check.transport.http_client import CONNECT_SECONDS, set_server_name, tls_context
from stackgen.check.transport.redact import Redactor
from stackgen.check.transport.session import Reply, Session, content_type, error_message
from stackgen.client.call import LOGS_HINT
from stackgen.errors import StackgenError, StartError
from stackgen.lazy import LazyModule

if TYPE_CHECKING:
    import httpx2
    import openai
else:
    httpx2 = LazyModule("httpx2")
    openai = LazyModule("openai")

__all__ = ["KEY_REJECTED", "ModelList", "async_sdk", "fetch_models", "pick_model", "sync_sdk", "translate_error"]

# headers that every request needs: OPENAI_CUSTOM_HEADERS must not remove them
REQUIRED_HEADERS = {"host", "content-length", "content-type", "transfer-encoding", "connection"}
# what the server did, in the message of `key_error`
KEY_REJECTED = "rejected the API key"
FIELDS_HINT = "use the argument names of the OpenAI SDK's `chat.completions.create`; pass other fields in `extra_body`"


@dataclass(frozen=True, slots=True)
class ModelList:
    """The model names that a server lists.

    - `names`: in the server's order.
    - `chat`: the models that can chat, if the server lists the type of its models; else all models. Models that are
      loaded already come first.
    - `complete`: False for a cloud that also serves models that it doesn't list, such as a user's fine-tuned models.
    """

    names: tuple[str, ...]
    chat: tuple[str, ...]
    complete: bool = True


def sync_sdk(target: Target, timeout: float, retries: int = 0) -> openai.OpenAI:
    """The SDK's client for a target; the caller must close it. `timeout` is in seconds, for each read."""
    http = httpx2.Client(**_http(target, timeout))
    # the SDK needs some key; `_prepare` removes the placeholder from each request
    http.event_hooks = {"request": [lambda request: _prepare(request, target)]}
    return openai.OpenAI(base_url=target.base_url, api_key=target.api_key or "unused", http_client=http,
                         max_retries=retries, timeout=http.timeout)  # fmt: skip


def async_sdk(target: Target, timeout: float, retries: int = 0) -> openai.AsyncOpenAI:
    """`sync_sdk` for asyncio."""

    async def prepare(request: httpx2.Request) -> None:
        _prepare(request, target)

    http = httpx2.AsyncClient(**_http(target, timeout))
    http.event_hooks = {"request": [prepare]}
    return openai.AsyncOpenAI(base_url=target.base_url, api_key=target.api_key or "unused", http_client=http,
                              max_retries=retries, timeout=http.timeout)  # fmt: skip


def fetch_models(target: Target, timeout: float) -> ModelList | None:
    """The models that the server lists; None if the response is not a list of models.

    Raises StartError if the server is unreachable, StackgenError if it rejects the key.
    """
    validate_seconds("timeout", timeout)
    problem: StackgenError | None = None
    # not the SDK's `models.list()`, which fails on Together's bare array
    try:
        with Session(target, timeout) as session:
            context = Context(session, Options(timeout=timeout), target.dialect or OPENAI)
            reply = list_models(context)
    except Fault as fault:
        problem = StartError(fault.message, fault.hint)
    # outside the except block: a Fault is chained to the HTTP client's exception, which contains the key
    if problem:
        raise problem
    if reply.status in (401, 403):
        raise key_error(target)
    if context.listed is None:
        return None
    # llama.cpp lists the same name as an id and as an alias
    names = tuple(dict.fromkeys(context.listed))
    body = reply.json()
    entries = body if isinstance(body, list) else body.get("data")
    kinds = {
        entry["id"]: entry.get("type")
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    }
    # Together also lists image and speech models, with their kind in `type`
    chat = tuple(name for name in names if kinds.get(name) in (None, "model", "chat"))
    # a loaded model first: the default must not evict the model in use
    chat = tuple(sorted(chat, key=lambda name: name in context.unloaded))
    bare = isinstance(body, list) or (target.dialect or OPENAI).name == TOGETHER.name
    return ModelList(names, chat, complete=not bare)


def pick_model(target: Target, wanted: str | None, listed: ModelList | None) -> tuple[str, str]:
    """Returns the served model name to request, and a note if it differs from `wanted`. `listed`: None if unknown.

    Raises StackgenError, with the closest served name, for a name that is not served; StartError if there is no model.
    """
    if wanted is None:
        if not listed or not listed.names:
            raise StartError(
                f"{target.name} lists no models",
                "look for the cause in `docker compose logs`, or pass the model with --model",
            )
        return next(iter(listed.chat), listed.names[0]), ""
    if listed is None:
        return wanted, ""
    name, reason = resolve(wanted, listed.names)
    if reason:
        return name, Redactor(target.api_key)(f"{target.name} serves {name!r}, not {wanted!r}: {reason}")
    if listed.complete and listed.names and wanted not in listed.names:
        raise _unknown_model(target, wanted, listed.names)
    return wanted, ""


def translate_error(error: BaseException, target: Target, model: str, timeout: float) -> StackgenError:
    """Returns the stackgen error, without the key, for an error of the SDK or a request that the SDK can't build.

    Raise the stackgen error outside the except block: the SDK's exceptions contain the request with the key.
    """
    redact = Redactor(target.api_key)
    problem: StackgenError
    if isinstance(error, openai.APIStatusError):
        problem = _status_problem(target, model, error, timeout)
    elif isinstance(error, openai.APIConnectionError):
        fault = classify(error, target, timeout)
        problem = StartError(fault.message, fault.hint)
    elif isinstance(error, openai.APIError):
        # an error event in a stream, under status 200
        problem = StartError(f"the server aborted the answer: {redact.excerpt(error.message)}", LOGS_HINT)
    else:
        problem = StackgenError(f"invalid request: {redact.excerpt(str(error), 200)}", FIELDS_HINT)
    return type(problem)(redact(problem.message), redact(problem.hint))


def key_error(target: Target) -> StackgenError:
    """The error for a missing or rejected API key."""
    if target.api_key is None:
        return StackgenError(f"{target.name} requires an API key, but none was given", target.no_key_hint)
    return StackgenError(
        f"{target.name} {KEY_REJECTED}",
        "compare your key with the key in the server's .env; a changed key takes effect only when the server restarts",
    )


def _http(target: Target, timeout: float) -> dict[str, Any]:
    # the SDK's defaults (600 s, three attempts) would hide the failure
    return {
        "timeout": httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
        # as in the check's client: a proxy can't reach this machine's loopback interface
        "trust_env": not target.loopback,
        "verify": tls_context(target.ca_file) if target.base_url.startswith("https:") else False,
        # the key must go only to the given URL
        "follow_redirects": False,
    }


def _prepare(request: httpx2.Request, target: Target) -> None:
    """Removes the headers that the SDK adds from OPENAI_* variables, and sets the target's own key and server name."""
    set_server_name(request, target)
    # these variables are for OpenAI's servers; OPENAI_CUSTOM_HEADERS has `Name: value` lines
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()
    added = {line.partition(":")[0].strip().lower() for line in lines}
    for header in ("openai-organization", "openai-project", "authorization", *(added - REQUIRED_HEADERS)):
        request.headers.pop(header, None)
    if target.api_key:
        request.headers["Authorization"] = f"Bearer {target.api_key}"


def _unknown_model(target: Target, model: str, names: tuple[str, ...]) -> StackgenError:
    # redacted, because the names come from the server
    redact = Redactor(target.api_key)
    return StackgenError(
        redact(f"{target.name} does not serve the model {model!r}"), redact(did_you_mean(model, names))
    )


def _status_problem(target: Target, model: str, error: openai.APIStatusError, timeout: float) -> StackgenError:
    response = error.response
    reply = Reply(response.status_code, content_type(response), response.content)
    if reply.status == 401 or (reply.status == 403 and target.api_key is None):
        return key_error(target)
    # FastChat and unknown servers report a wrong model name with other error codes, so look the name up in the list
    names: tuple[str, ...] = ()
    if reply.status in (400, 404):
        try:
            listed = fetch_models(target, timeout)
            names = listed.names if listed else ()
        except StackgenError:
            names = ()
    unlisted = bool(names) and model not in names
    if reply.status in (400, 404) and (unlisted or is_unknown_model(target.dialect or OPENAI, reply)):
        return _unknown_model(target, model, names)
    reason = Redactor(target.api_key).excerpt(error_message(reply) or reply.body, 200)
    message = f"{target.name} returned {reply.summary}" + (f": {reason}" if reason else "")
    # StartError, exit code 1, for the server's failures; StackgenError, exit code 2, for the user's
    if reply.status == 429:
        return StartError(message, _wait_hint(response.headers))
    if reply.status >= 500:
        return StartError(message, LOGS_HINT)
    if refuses_few_tokens(reply.status, error_message(reply)):
        return StackgenError(message, BUDGET_HINT)
    return StackgenError(message, HINTS.get(reply.status, REJECTED_HINT))


def _wait_hint(headers: Any) -> str:
    # the second header is Together's; both count seconds
    wait = headers.get("retry-after") or headers.get("x-ratelimit-reset") or ""
    # cut, because a server can send a header of any length
    return "too many requests; " + (f"retry in {wait[:40]} s" if wait else "retry later, or send fewer requests")


BUDGET_HINT = "raise --max-tokens: the model needs more tokens, because it reasons before it answers"
REJECTED_HINT = (
    "the server rejected a value in the request. "
    "Possibly the tokens of the prompt plus --max-tokens exceed the model's context length"
)
HINTS = {
    402: "the account has no credit left",
    # Together sends 403 for a prompt that is too long
    403: "the key has no access to this model, "
    "or the tokens of the prompt plus --max-tokens exceed the model's context length",
    404: "check the base URL, which usually ends in /v1",
}
