"""Runs `stackgen.check` with the dialects of all engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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
    # stackgen.check does not import the engines, so it gets their dialects as an argument
    return check(targets, options, wait=wait, on_progress=on_progress, on_endpoint=on_endpoint, dialects=dialects())


def check_plan(
    plan: Plan,
    folder: Path,
    progress: Callable[[str, str], None],
    wait: float,
    base_url: str | None = None,
    reword: Callable[[str], str] | None = None,
) -> Report:
    """Checks all endpoints of a started stack, waiting up to `wait` seconds for them to become ready.

    `base_url` replaces the URL of the endpoints, for a stack that this machine reaches at another address. `reword`
    changes commands in hints.

    `progress(service, phase)` is called before and after the check, for each endpoint. Those of other machines may be
    missing: they are in the report only if they answer.
    """
    here = replace(plan, endpoints=tuple(one for one in plan.endpoints if not one.remote))
    for endpoint in here.endpoints:
        progress(endpoint.service, "requesting a completion")
    targets = targets_from_plan(here, folder)
    targets = [replace(one, base_url=base_url or one.base_url, reword=reword) for one in targets]
    report = run_check(targets, Options(timeout=60.0), wait)
    # one report covers the whole stack, so every service shows the verdict of this report
    for endpoint in here.endpoints:
        progress(endpoint.service, "answered" if report.ok else "failed the check")
    elsewhere = replace(plan, endpoints=tuple(one for one in plan.endpoints if one.remote))
    if elsewhere.endpoints:
        more = run_check(targets_from_plan(elsewhere, folder), Options(timeout=60.0), 0)
        found = tuple(one for one in more.endpoints if one.ok)
        report = replace(report, endpoints=(*report.endpoints, *found), seconds=report.seconds + more.seconds)
    return report
