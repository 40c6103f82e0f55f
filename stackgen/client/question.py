"""Sends one question through the OpenAI SDK, as a user's own program does; errors contain a hint.

This module is not called `ask`, because an import of the module would then hide the function `stackgen.client.ask`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from stackgen.check.limits import validate_seconds
from stackgen.check.target import Target
from stackgen.client.call import Answer, Call, malformed_response, request_fields
from stackgen.client.sdk import fetch_models, pick_model, sync_sdk, translate_error
from stackgen.errors import StackgenError
from stackgen.lazy import LazyModule

if TYPE_CHECKING:
    import openai
else:
    openai = LazyModule("openai")

__all__ = ["Answer", "ask", "complete", "resolve_model", "stream_text"]


def ask(
    target: Target,
    question: str,
    model: str | None = None,
    *,
    system: str | None = "You are a helpful assistant",
    temperature: float | None = 0.0,
    max_tokens: int | None = 100,
    stream: bool = False,
    timeout: float = 60.0,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Returns the answer of `model` to one question.

    The default `model` is the target's first model, else the first model that the server lists.

    `timeout` is in seconds, for each read. With `stream`, `on_text` is called with each piece of text as it arrives.
    Raises StartError (exit code 1) if the server is unreachable or fails, StackgenError (2) if the key, the model name
    or a value is wrong. Neither contains the key.
    """
    validate_seconds("timeout", timeout)
    # validated before the request to /models, because invalid fields are invalid for every model
    options = request_fields({"temperature": temperature, "max_tokens": max_tokens})
    name, note = resolve_model(target, model, timeout)
    with sync_sdk(target, timeout) as client:
        call = Call(target, model=name, note=note, prompt=question, system=system, options=options)
        if not stream:
            return complete(client, call, target, timeout)
        # closing: an exception in `on_text` must end the request too
        with closing(stream_text(client, call, target, timeout)) as pieces:
            for text in pieces:
                if on_text:
                    on_text(text)
        return call.finish_stream()


def resolve_model(target: Target, model: str | None, timeout: float) -> tuple[str, str]:
    """Returns the served model name to request from `target`, and a note if this name differs from `model`.

    The default is the target's first model, else the first model that the server lists. If the server's list can't be
    read, `model` is returned unchanged. Raises StackgenError as `fetch_models` and `pick_model` do.
    """
    # no lookup: these names come from the stack file or the user
    if model is None and target.models:
        return target.models[0], ""
    listed, problem = None, None
    try:
        listed = fetch_models(target, timeout)
    except StackgenError as error:
        problem = error
    # without the list, a given name may still work, but there is no default
    if problem and model is None:
        raise problem
    return pick_model(target, model, listed)


def complete(client: openai.OpenAI, call: Call, target: Target, timeout: float) -> Answer:
    """Sends `call` and returns the whole answer. Raises StackgenError without the key."""
    return call.read_completion(_send(client, {**call.request, "stream": False}, call, target, timeout))


def stream_text(client: openai.OpenAI, call: Call, target: Target, timeout: float) -> Generator[str, None, None]:
    """Sends `call` as a stream and yields its text; `call` collects the answer.

    Raises StackgenError without the key, also after the last text.
    """
    raw = _send(client, call.stream_request, call, target, timeout)
    problem: StackgenError | None = None
    # the caller's code runs outside of this block, so any failure in the block is the server's fault
    try:
        with raw.parse() as chunks:
            for chunk in chunks:
                if text := call.add_chunk(chunk):
                    yield text
        call.finish_stream(raw.headers.get("content-type", ""))
    except StackgenError as error:
        problem = error
    except openai.APIError as error:
        problem = translate_error(error, target, call.model, timeout)
    except Exception:
        # the SDK doesn't validate chunks, so a malformed chunk can raise any exception
        problem = malformed_response()
    # outside the except block: the SDK's exceptions contain the request with the key
    if problem:
        raise problem


def _send(client: openai.OpenAI, request: dict[str, Any], call: Call, target: Target, timeout: float) -> Any:
    """The raw response. It is not parsed here, so an invalid argument isn't reported as a malformed response."""
    try:
        return client.chat.completions.with_raw_response.create(**request)
    except Exception as error:
        problem = translate_error(error, target, call.model, timeout)
    # outside the except block, so the SDK's exception is not chained to it
    raise problem
