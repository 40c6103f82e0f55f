"""One question through the OpenAI SDK, as a user's own program would ask it, with errors that say what to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stackgen.check.dialects import OPENAI
from stackgen.check.faults import Fault, classify
from stackgen.check.names import did_you_mean
from stackgen.check.options import Options
from stackgen.check.redact import Redactor
from stackgen.check.session import Reply, Session, content_type, error_message, http_client
from stackgen.check.target import Target
from stackgen.check.verdict import Context
from stackgen.errors import StackgenError, StartError

if TYPE_CHECKING:
    import httpx2
    import openai

__all__ = ["Answer", "ask"]

LOGS_HINT = "look at the server's log: `docker compose logs`"


@dataclass(frozen=True, slots=True)
class Answer:
    """`text` as the model wrote it; `seconds` for the whole request; `usage` in tokens, None where none came."""

    text: str
    model: str
    seconds: float
    usage: dict[str, int] | None


def ask(
    target: Target,
    question: str,
    model: str | None,
    *,
    system: str,
    temperature: float,
    max_tokens: int,
    stream: bool,
    timeout: float,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """See `stackgen.check.ask`."""
    # half a second: nothing but this function pays for it
    import openai

    name = model or next(iter(target.models), None) or _first_listed(target, timeout)
    started = time.monotonic()
    redact, problem = Redactor(target.api_key), None
    with http_client(target, timeout) as http:
        http.event_hooks = {"request": [lambda request: _own_headers(request, target.api_key)]}
        # the SDK waits 600 s and tries three times by default, which hides what is wrong
        client = openai.OpenAI(base_url=target.base_url, api_key=target.api_key or "unused", http_client=http,
                               max_retries=0, timeout=http.timeout)  # fmt: skip
        request: dict[str, Any] = {
            "model": name,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        try:
            text, used, usage = _streamed(client, request, on_text) if stream else _whole(client, request)
        except openai.APIStatusError as error:
            problem = _status_problem(target, name, error, timeout)
        except openai.APIConnectionError as error:
            fault = classify(error, target, timeout)
            problem = StartError(fault.message, fault.hint)
        except openai.APIError as error:
            # an error event in a stream, under status 200
            problem = StartError(f"the server broke off: {redact.excerpt(error.message)}", LOGS_HINT)
        # the SDK doesn't validate: a body of another shape shows as None or a missing index where it is used
        except (ValueError, AttributeError, TypeError, IndexError):
            problem = StartError("the server's answer has not the documented structure", "`stackgen check` says where")
    # outside the except blocks: the SDK's exceptions hold the request, and with it the key
    if problem:
        raise type(problem)(redact(problem.message), redact(problem.hint))
    return Answer(text, used or name, round(time.monotonic() - started, 4), usage)


def _whole(client: openai.OpenAI, request: dict[str, Any]) -> tuple[str, str, dict[str, int] | None]:
    completion = client.chat.completions.create(**request, stream=False)
    return completion.choices[0].message.content or "", completion.model, _usage(completion.usage)


def _streamed(
    client: openai.OpenAI, request: dict[str, Any], on_text: Callable[[str], None] | None
) -> tuple[str, str, dict[str, int] | None]:
    parts: list[str] = []
    model, usage = "", None
    with client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}) as chunks:
        for chunk in chunks:
            # the chunk with the usage has no choices, and chunks before it have no usage
            model, usage = model or chunk.model, _usage(chunk.usage) or usage
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                parts.append(piece)
                if on_text:
                    on_text(piece)
    return "".join(parts), model, usage


def _usage(usage: Any) -> dict[str, int] | None:
    if usage is None:
        return None
    return {name: int(getattr(usage, name)) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


def _own_headers(request: httpx2.Request, key: str | None) -> None:
    """Takes out what the SDK adds from OPENAI_* variables, which are meant for another server, and sets our key."""
    for header in ("OpenAI-Organization", "OpenAI-Project", "Authorization"):
        request.headers.pop(header, None)
    if key:
        request.headers["Authorization"] = f"Bearer {key}"


def _first_listed(target: Target, timeout: float) -> str:
    problem: StackgenError | None = None
    # raised below, not in the handler: a Fault hangs on the client's exception, which holds the key
    try:
        names, reply = _listed(target, timeout)
    except Fault as fault:
        problem = StartError(fault.message, fault.hint)
    if problem:
        raise problem
    if reply.status in (401, 403):
        raise _key_problem(target)
    if not names:
        raise StartError(f"{target.name} lists no model", "name one by --model, or look at `docker compose logs`")
    return names[0]


def _listed(target: Target, timeout: float) -> tuple[tuple[str, ...], Reply]:
    from stackgen.check.checks import list_models

    with Session(target, timeout) as session:
        # not the SDK's models.list(): Together's bare array breaks it
        context = Context(session, Options(timeout=timeout), target.dialect or OPENAI)
        reply = list_models(context)
        return context.listed or (), reply


def _status_problem(target: Target, model: str, error: openai.APIStatusError, timeout: float) -> StackgenError:
    from stackgen.check.chat import is_unknown_model

    response = error.response
    reply = Reply(response.status_code, content_type(response), response.content)
    if reply.status in (401, 403):
        return _key_problem(target)
    # FastChat and servers of unknown dialect tell a wrong name by other codes: the list tells it for all
    names: tuple[str, ...] = ()
    if reply.status in (400, 404):
        try:
            names, _ = _listed(target, timeout)
        except Fault:
            names = ()
    unlisted = bool(names) and model not in names
    if reply.status in (400, 404) and (unlisted or is_unknown_model(target.dialect or OPENAI, reply)):
        return StackgenError(f"{target.name} serves no model {model!r}", did_you_mean(model, names))
    said = Redactor(target.api_key).excerpt(error_message(reply) or reply.body, 200)
    message = f"{target.name} answers {reply.what}" + (f": {said}" if said else "")
    # what the server got wrong is exit code 1, what the user asked for is 2
    if reply.status >= 500:
        return StartError(message, LOGS_HINT)
    if reply.status == 404:
        return StackgenError(message, "is the base URL right? it usually ends in /v1")
    return StackgenError(message, "the server refuses a value of the request; a long question or --max-tokens may be"
                         " more than the model's context")  # fmt: skip


def _key_problem(target: Target) -> StackgenError:
    if target.api_key is None:
        return StackgenError(f"{target.name} wants an API key, and none is given", "give it by --api-key or .env")
    return StackgenError(f"{target.name} refuses the API key",
                         "is it the key of the running server's .env? a change needs a restart")  # fmt: skip
