"""Proves from outside that endpoints work: the only package that speaks HTTP.

    check(targets)          -> Report       reachable, guarded, right model, documented structure, streams that end
    ask(target, question)   -> Answer       one question through the OpenAI SDK

The HTTP client, pydantic and the SDK are imported when one of the two is called: importing this package is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stackgen.check.options import Options
    from stackgen.check.question import Answer
    from stackgen.check.report import EndpointReport, Report
    from stackgen.check.target import Target
    from stackgen.plan import Dialect

__all__ = ["ask", "check"]


def check(
    targets: Sequence[Target],
    options: Options | None = None,
    *,
    wait: float = 0.0,
    on_progress: Callable[[str, str, str], None] | None = None,
    on_endpoint: Callable[[EndpointReport], None] | None = None,
    dialects: Mapping[str, Dialect] | None = None,
) -> Report:
    """Checks all targets, many at the same time, and reports on them in their order.

    `options` say how deep; `wait` (s) how long to wait until an endpoint is alive and lists its
    models.
    `on_progress(target name, check, message)` and `on_endpoint(its report)` are called from one thread at a time.
    `dialects` are the engines' own, by name. A server that is unhealthy or away is a result and no exception;
    StackgenError is raised for options that make no sense.
    """
    from stackgen.check.options import Options
    from stackgen.check.runner import run
    from stackgen.errors import StackgenError

    if not wait >= 0:
        raise StackgenError(f"wait must not be below 0, and is {wait}")
    return run(targets, options or Options(), wait, on_progress, on_endpoint, dialects or {})


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
    from stackgen.check.question import ask as ask_server

    return ask_server(target, question, model, system=system, temperature=temperature, max_tokens=max_tokens,
                      stream=stream, timeout=timeout, on_text=on_text)  # fmt: skip
