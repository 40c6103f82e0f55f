"""The OpenAI SDK, set up for one target, and its errors in our terms: what `ask` and the clients share.

The SDK is imported by those who call: it takes half a second.
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
from stackgen.check.limits import seconds
from stackgen.check.options import Options
from stackgen.check.target import Target
from stackgen.check.transport.faults import Fault, classify
from stackgen.check.transport.redact import Redactor
from stackgen.check.transport.session import CONNECT_SECONDS, Reply, Session, content_type, error_message, tls_context
from stackgen.client.call import LOGS_HINT
from stackgen.errors import StackgenError, StartError

if TYPE_CHECKING:
    import httpx2
    import openai

__all__ = ["Listing", "async_sdk", "listing", "model_for", "problem_of", "sync_sdk"]

# without these a request is none
HTTP_HEADERS = {"host", "content-length", "content-type", "transfer-encoding", "connection"}
FIELDS_HINT = "fields are named as in the OpenAI SDK's `chat.completions.create`; its `extra_body` takes any other"


@dataclass(frozen=True, slots=True)
class Listing:
    """The names that a server lists, in its order; `chat` are those that can chat, where the server tells the kind.

    `complete` is false for a cloud that serves names beside those it lists (one's own fine-tuned models).
    """

    names: tuple[str, ...]
    chat: tuple[str, ...]
    complete: bool = True


def sync_sdk(target: Target, timeout: float, retries: int = 0) -> openai.OpenAI:
    """The SDK's client for a target; the caller closes it."""
    import httpx2
    import openai

    http = httpx2.Client(**_http(target, timeout))
    http.event_hooks = {"request": [lambda request: _own_headers(request, target.api_key)]}
    return openai.OpenAI(base_url=target.base_url, api_key=target.api_key or "unused", http_client=http,
                         max_retries=retries, timeout=http.timeout)  # fmt: skip


def async_sdk(target: Target, timeout: float, retries: int = 0) -> openai.AsyncOpenAI:
    """As `sync_sdk`, for asyncio."""
    import httpx2
    import openai

    async def own_headers(request: httpx2.Request) -> None:
        _own_headers(request, target.api_key)

    http = httpx2.AsyncClient(**_http(target, timeout))
    http.event_hooks = {"request": [own_headers]}
    return openai.AsyncOpenAI(base_url=target.base_url, api_key=target.api_key or "unused", http_client=http,
                              max_retries=retries, timeout=http.timeout)  # fmt: skip


def listing(target: Target, timeout: float) -> Listing | None:
    """What the server lists; None where no list can be had. Raises StackgenError where it wants another key.

    Not the SDK's `models.list()`: Together's bare array breaks it.
    """
    seconds("timeout", timeout)
    problem: StackgenError | None = None
    # raised below, not in the handler: a Fault hangs on the client's exception, which holds the key
    try:
        with Session(target, timeout) as session:
            context = Context(session, Options(timeout=timeout), target.dialect or OPENAI)
            reply = list_models(context)
    except Fault as fault:
        problem = StartError(fault.message, fault.hint)
    if problem:
        raise problem
    if reply.status in (401, 403):
        raise key_problem(target)
    if context.listed is None:
        return None
    # llama.cpp repeats a name among its aliases
    names = tuple(dict.fromkeys(context.listed))
    body = reply.json()
    cards = body if isinstance(body, list) else body.get("data")
    kinds = {
        card["id"]: card.get("type") for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)
    }
    # Together lists image and speech models too, and tells by `type`
    chat = tuple(name for name in names if kinds.get(name) in (None, "model", "chat"))
    bare = isinstance(body, list) or (target.dialect or OPENAI).name == TOGETHER.name
    return Listing(names, chat, complete=not bare)


def model_for(target: Target, wanted: str | None, listed: Listing | None) -> tuple[str, str]:
    """The name to ask for, and a note where it is another than `wanted`; `listed` is None where nobody knows.

    Raises StackgenError for a name that is not served, with the nearest that is; StartError where nothing is served.
    """
    if wanted is None:
        if not listed or not listed.names:
            raise StartError(f"{target.name} lists no model", "name one by --model, or look at `docker compose logs`")
        return next(iter(listed.chat), listed.names[0]), ""
    if listed is None:
        return wanted, ""
    name, reason = resolve(wanted, listed.names)
    if reason:
        return name, Redactor(target.api_key)(f"{target.name} serves {name!r}, not {wanted!r}: {reason}")
    if listed.complete and listed.names and wanted not in listed.names:
        raise _unknown(target, wanted, listed.names)
    return wanted, ""


def problem_of(error: BaseException, target: Target, model: str, timeout: float) -> StackgenError:
    """The error for people behind one of the SDK's, or behind what it says of a request that it can't make; no key.

    To be raised outside the except block: the SDK's exceptions hold the request, and with it the key.
    """
    import openai

    redact = Redactor(target.api_key)
    problem: StackgenError
    if isinstance(error, openai.APIStatusError):
        problem = _status_problem(target, model, error, timeout)
    elif isinstance(error, openai.APIConnectionError):
        fault = classify(error, target, timeout)
        problem = StartError(fault.message, fault.hint)
    elif isinstance(error, openai.APIError):
        # an error event in a stream, under status 200
        problem = StartError(f"the server broke off: {redact.excerpt(error.message)}", LOGS_HINT)
    else:
        problem = StackgenError(f"the request can't be made: {redact.excerpt(str(error), 200)}", FIELDS_HINT)
    return type(problem)(redact(problem.message), redact(problem.hint))


def key_problem(target: Target) -> StackgenError:
    """The error of a server that wants a key, or another one."""
    if target.api_key is None:
        return StackgenError(f"{target.name} wants an API key, and none is given", target.no_key_hint)
    return StackgenError(f"{target.name} refuses the API key",
                         "is it the key of the running server's .env? a change needs a restart")  # fmt: skip


def _http(target: Target, timeout: float) -> dict[str, Any]:
    import httpx2

    # the SDK waits 600 s and tries three times by default, which hides what is wrong
    return {
        "timeout": httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
        # as the check's own client: no proxy reaches this machine's loopback
        "trust_env": not target.loopback,
        "verify": tls_context(target.ca_file) if target.base_url.startswith("https:") else False,
        "follow_redirects": False,
    }


def _own_headers(request: httpx2.Request, key: str | None) -> None:
    """Takes out what the SDK adds from OPENAI_* variables, which are meant for another server, and sets our key."""
    # the SDK reads `Name: value` lines from this one
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()
    added = {line.partition(":")[0].strip().lower() for line in lines}
    for header in ("openai-organization", "openai-project", "authorization", *(added - HTTP_HEADERS)):
        request.headers.pop(header, None)
    if key:
        request.headers["Authorization"] = f"Bearer {key}"


def _unknown(target: Target, model: str, names: tuple[str, ...]) -> StackgenError:
    # the names are a server's
    redact = Redactor(target.api_key)
    return StackgenError(redact(f"{target.name} serves no model {model!r}"), redact(did_you_mean(model, names)))


def _status_problem(target: Target, model: str, error: openai.APIStatusError, timeout: float) -> StackgenError:
    response = error.response
    reply = Reply(response.status_code, content_type(response), response.content)
    if reply.status == 401 or (reply.status == 403 and target.api_key is None):
        return key_problem(target)
    # FastChat and servers of unknown dialect tell a wrong name by other codes: the list tells it for all
    names: tuple[str, ...] = ()
    if reply.status in (400, 404):
        try:
            listed = listing(target, timeout)
            names = listed.names if listed else ()
        except StackgenError:
            names = ()
    unlisted = bool(names) and model not in names
    if reply.status in (400, 404) and (unlisted or is_unknown_model(target.dialect or OPENAI, reply)):
        return _unknown(target, model, names)
    said = Redactor(target.api_key).excerpt(error_message(reply) or reply.body, 200)
    message = f"{target.name} answers {reply.what}" + (f": {said}" if said else "")
    # what the server got wrong is exit code 1, what the user asked for is 2
    if reply.status == 429:
        return StartError(message, _wait_hint(response.headers))
    if reply.status >= 500:
        return StartError(message, LOGS_HINT)
    return StackgenError(message, HINTS.get(reply.status, REFUSED_HINT))


def _wait_hint(headers: Any) -> str:
    # Together's own header is the second; both are seconds
    wait = headers.get("retry-after") or headers.get("x-ratelimit-reset") or ""
    return f"too many requests: ask again in {wait[:40]} s" if wait else "too many requests: ask again later, or slower"


REFUSED_HINT = (
    "the server refuses a value of the request; a long question or --max-tokens may be more than the model's context"
)
HINTS = {
    402: "the account has no credit left",
    # Together sends it for a question that is too long
    403: "the key is not allowed this model, or question and --max-tokens are more than the model's context",
    404: "is the base URL right? it usually ends in /v1",
}
