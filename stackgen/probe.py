"""Runs the check with the engines' dialects: the one place where both are known."""

from __future__ import annotations

from collections.abc import Sequence

from stackgen.check import check
from stackgen.check.report import Report
from stackgen.check.target import Target
from stackgen.endpoints import dialects

__all__ = ["run_check"]


def run_check(targets: Sequence[Target], timeout: float, wait: float = 0.0) -> Report:
    """The report on all `targets`; `timeout` (s) for each request, `wait` (s) for readiness."""
    return check(targets, timeout=timeout, wait=wait, dialects=dialects())
