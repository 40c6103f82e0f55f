"""Proves from outside that endpoints work: the only package that speaks HTTP.

    check(targets)          -> Report       reachable, guarded, right model, documented structure, streams that end
    ask(target, question)   -> Answer       one question through the OpenAI SDK

The HTTP client, pydantic and the SDK are imported when one of the two is called: importing this package is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stackgen.check.ask import Answer
    from stackgen.check.report import Report
    from stackgen.check.target import Target
    from stackgen.plan import Dialect

__all__ = ["ask", "check"]


def check(
    targets: Sequence[Target],
    *,
    timeout: float = 30.0,
    wait: float = 0.0,
    on_progress: Callable[[str, str, str], None] | None = None,
    dialects: Mapping[str, Dialect] | None = None,
    max_models: int = 8,
    max_tokens: int = 32,
) -> Report:
    """Checks all targets at the same time and reports on them in their order.

    `timeout` (s) bounds each silence of a server, `wait` (s) how long to wait until it lists its models;
    `on_progress(target name, check, message)` is called from one thread at a time. `dialects` are the engines'
    own, by name; at most `max_models` models of a target are asked, for `max_tokens` tokens each.
    A server that is unhealthy or away is a result and no exception; StackgenError is raised for numbers that
    make no sense.
    """
    from stackgen.check.runner import run
    from stackgen.check.verdict import Options
    from stackgen.errors import StackgenError

    if not (timeout > 0 and wait >= 0 and max_models > 0 and max_tokens > 0):
        raise StackgenError("timeout, max_models and max_tokens must be above 0, and wait not below it")
    return run(targets, Options(timeout, max_models, max_tokens), wait, on_progress, dialects or {})


def ask(
    target: Target,
    question: str,
    model: str | None = None,
    *,
    system: str = "You are a helpful assistant",
    temperature: float = 0.0,
    max_tokens: int = 100,
    stream: bool = False,
    timeout: float = 60.0,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """The answer of `model` (default: the target's first, else the first listed) to one question.

    With `stream`, `on_text` gets each piece as it comes. Raises StartError (exit code 1) when the server is away or
    fails, StackgenError (2) when the key, the model's name or a value is wrong; neither holds the key.
    """
    from stackgen.check.ask import ask as ask_server

    return ask_server(target, question, model, system=system, temperature=temperature, max_tokens=max_tokens,
                      stream=stream, timeout=timeout, on_text=on_text)  # fmt: skip
