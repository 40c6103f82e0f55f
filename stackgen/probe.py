"""Runs the check with the engines' dialects: the one place where both are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stackgen.check import check
from stackgen.check.options import Options
from stackgen.check.report import EndpointReport, Report
from stackgen.check.target import Target
from stackgen.endpoints import dialects

__all__ = ["run_check"]


def run_check(
    targets: Sequence[Target],
    options: Options | None = None,
    wait: float = 0.0,
    on_progress: Callable[[str, str, str], None] | None = None,
    on_endpoint: Callable[[EndpointReport], None] | None = None,
) -> Report:
    """The report on all `targets`; see `stackgen.check.check`."""
    return check(targets, options, wait=wait, on_progress=on_progress, on_endpoint=on_endpoint, dialects=dialects())
