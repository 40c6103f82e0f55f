"""Runs the check with the engines' dialects: the one place where both are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stackgen.check import check
from stackgen.check.options import Options
from stackgen.check.report import EndpointReport, Report
from stackgen.check.target import Target
from stackgen.plan import Plan
from stackgen.providers.endpoints import dialects, from_plan

__all__ = ["check_plan", "run_check"]


def run_check(
    targets: Sequence[Target],
    options: Options | None = None,
    wait: float = 0.0,
    on_progress: Callable[[str, str, str], None] | None = None,
    on_endpoint: Callable[[EndpointReport], None] | None = None,
) -> Report:
    """The report on all `targets`; see `stackgen.check.check`."""
    return check(targets, options, wait=wait, on_progress=on_progress, on_endpoint=on_endpoint, dialects=dialects())


def check_plan(plan: Plan, folder: Path, progress: Callable[[str, str], None], wait: float) -> Report:
    """The report on all endpoints of a started stack; `progress(service, phase)` shows it, `wait` is seconds."""
    for endpoint in plan.endpoints:
        progress(endpoint.service, "ask for a completion")
    report = run_check(from_plan(plan, folder), Options(timeout=60.0), wait)
    for endpoint in plan.endpoints:
        progress(endpoint.service, "answered" if report.ok else "does not answer as it should")
    return report
