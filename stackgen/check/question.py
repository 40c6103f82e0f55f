"""One question through the OpenAI SDK, as a user's own program would ask it, with errors that say what to do.

The module is not called `ask`: importing it would hide the function `stackgen.check.ask`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stackgen.check.sdk import UNREADABLE, Answer, Call, listing, model_for, problem_of, sync_sdk
from stackgen.check.target import Target
from stackgen.errors import StackgenError

if TYPE_CHECKING:
    import openai

__all__ = ["Answer", "ask", "named", "sent"]


def ask(
    target: Target,
    question: str,
    model: str | None,
    *,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    stream: bool,
    timeout: float,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """See `stackgen.check.ask`."""
    name, note = named(target, model, timeout)
    with sync_sdk(target, timeout) as client:
        call = Call(target, name, note, question, system, temperature=temperature, max_tokens=max_tokens)
        return sent(client, call, target, timeout, stream=stream, on_text=on_text)


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


def sent(
    client: openai.OpenAI,
    call: Call,
    target: Target,
    timeout: float,
    *,
    stream: bool = False,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """The answer to `call`; raises StackgenError without the key."""
    import openai

    problem: StackgenError | None = None
    try:
        if not stream:
            return call.whole(client.chat.completions.create(**call.request, stream=False))
        with client.chat.completions.create(**call.streamed) as chunks:
            for chunk in chunks:
                piece = call.take(chunk)
                if piece and on_text:
                    on_text(piece)
        return call.told()
    except (openai.APIError, *UNREADABLE) as error:
        problem = problem_of(error, target, call.request["model"], timeout)
    # outside the except block: the SDK's exceptions hold the request, and with it the key
    raise problem
