"""Verifies endpoints from outside, over HTTP: reachable, guarded, right model, documented structure, complete streams.

The HTTP client and pydantic are imported by the first call of `check`: importing this package is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stackgen.check.options import Options
    from stackgen.check.report import EndpointReport, Report
    from stackgen.check.target import Target
    from stackgen.plan import Dialect

__all__ = ["check"]


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
