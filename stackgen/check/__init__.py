"""Checks endpoints over HTTP, as a client does: connection, authentication, models, bodies and streams.

Importing this package is fast: only the first call of `check` imports the HTTP client and pydantic.
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
    """Checks all targets concurrently and returns a report with the endpoints in the order of `targets`.

    - `options`: which checks run, and their limits.
    - `wait`: how long to wait (s) until an endpoint is alive and lists its models.
    - `on_progress(target name, check, message)` and `on_endpoint(report)` are called from one thread at a time.
    - `dialects`: the dialects of the engines, by name.

    An unhealthy or unreachable server is a result, not an exception. Raises StackgenError for invalid options.
    """
    # heavy: they import pydantic
    from stackgen.check.options import Options
    from stackgen.check.runner import run
    from stackgen.errors import StackgenError

    # written so that NaN fails too
    if not wait >= 0:
        raise StackgenError(f"wait must be at least 0 s, got {wait}")
    return run(targets, options or Options(), wait, on_progress, on_endpoint, dialects or {})
