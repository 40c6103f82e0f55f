"""One question through the OpenAI SDK, as a user's own program would ask it, with errors that say what to do.

The module is not called `ask`: importing it would hide the function `stackgen.client.ask`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from stackgen.check.limits import seconds
from stackgen.check.target import Target
from stackgen.client.call import Answer, Call, fields, unreadable
from stackgen.client.sdk import listing, model_for, problem_of, sync_sdk
from stackgen.errors import StackgenError

if TYPE_CHECKING:
    import openai

__all__ = ["Answer", "ask", "named", "pieces", "whole"]


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
    """The answer of `model` (default: the target's first, else the first listed) to one question.

    `timeout` is in seconds. With `stream`, `on_text` gets each piece as it arrives. Raises StartError (exit code 1)
    when the server is unreachable or fails, StackgenError (2) when the key, the model's name or a value is wrong;
    neither holds the key.
    """
    seconds("timeout", timeout)
    # before the server is asked for its names: what is wrong here is wrong for all of them
    options = fields({"temperature": temperature, "max_tokens": max_tokens})
    name, note = named(target, model, timeout)
    with sync_sdk(target, timeout) as client:
        call = Call(target, name, note, question, system, options)
        if not stream:
            return whole(client, call, target, timeout)
        with closing(pieces(client, call, target, timeout)) as found:
            for piece in found:
                if on_text:
                    on_text(piece)
        return call.told()


def named(target: Target, model: str | None, timeout: float) -> tuple[str, str]:
    """The name to ask `target` for, and a note where it is another than `model`.

    Without `model` it is the target's first, else the first that the server lists. Where no list can be had, `model`
    is asked for as it is.
    """
    if model is None and target.models:
        return target.models[0], ""
    listed, problem = None, None
    # raised below: what can't be had now is only a problem where no name is known
    try:
        listed = listing(target, timeout)
    except StackgenError as error:
        problem = error
    if problem and model is None:
        raise problem
    return model_for(target, model, listed)


def whole(client: openai.OpenAI, call: Call, target: Target, timeout: float) -> Answer:
    """The answer to `call`; raises StackgenError without the key."""
    return call.whole(_sent(client, {**call.request, "stream": False}, call, target, timeout))


def pieces(client: openai.OpenAI, call: Call, target: Target, timeout: float) -> Generator[str, None, None]:
    """The answer to `call` piece by piece, kept in it; raises StackgenError without the key, also at its end."""
    import openai

    raw = _sent(client, call.streamed, call, target, timeout)
    problem: StackgenError | None = None
    # what the caller does with a piece is outside: only the server can be to blame for what goes wrong in here
    try:
        with raw.parse() as chunks:
            for chunk in chunks:
                if piece := call.take(chunk):
                    yield piece
        call.told(raw.headers.get("content-type", ""))
    except StackgenError as error:
        problem = error
    except openai.APIError as error:
        problem = problem_of(error, target, call.model, timeout)
    except Exception:
        problem = unreadable()
    # outside the except block: the SDK's exceptions hold the request, and with it the key
    if problem:
        raise problem


def _sent(client: openai.OpenAI, request: dict[str, Any], call: Call, target: Target, timeout: float) -> Any:
    """The raw response: apart from reading it, so that a wrong argument is not taken for a wrong answer."""
    try:
        return client.chat.completions.with_raw_response.create(**request)
    except Exception as error:
        problem = problem_of(error, target, call.model, timeout)
    raise problem
