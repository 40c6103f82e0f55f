"""Runs `stackgen.check` with the dialects of all engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stackgen.check import check
from stackgen.check.options import Options
from stackgen.check.report import EndpointReport, Report
from stackgen.check.target import Target
from stackgen.plan import Plan
from stackgen.providers.endpoints import dialects, targets_from_plan

__all__ = ["check_plan", "run_check"]


def run_check(
    targets: Sequence[Target],
    options: Options | None = None,
    wait: float = 0.0,
    on_progress: Callable[[str, str, str], None] | None = None,
    on_endpoint: Callable[[EndpointReport], None] | None = None,
) -> Report:
    """Checks all `targets` and returns one report; see `stackgen.check.check` for the arguments."""
    return check(targets, options, wait=wait, on_progress=on_progress, on_endpoint=on_endpoint, dialects=dialects())


def check_plan(plan: Plan, folder: Path, progress: Callable[[str, str], None], wait: float) -> Report:
    """Checks all endpoints of a started stack, waiting up to `wait` seconds for them to become ready.

    `progress(service, phase)` is called before and after the check, for each endpoint.
    """
    for endpoint in plan.endpoints:
        progress(endpoint.service, "requesting a completion")
    report = run_check(targets_from_plan(plan, folder), Options(timeout=60.0), wait)
    # one report covers the whole stack, so every service shows the verdict of this report
    for endpoint in plan.endpoints:
        progress(endpoint.service, "answered" if report.ok else "failed the check")
    return report
