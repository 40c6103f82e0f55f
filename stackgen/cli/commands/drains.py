"""Report drained replicas, and enable those that a killed command has left drained."""

from __future__ import annotations

from pathlib import Path

from stackgen.cli.commands.output import note
from stackgen.plan import Plan
from stackgen.runtimes.compose.drains import Drain
from stackgen.runtimes.compose.recovery import enable_left_over, recover_drains

__all__ = ["end_left_over_drains", "report_drains"]


def report_drains(plan: Plan, folder: Path) -> list[Drain]:
    """Returns the drained replicas, and prints a note for each. Enables them if their command was killed.

    Raises StartError if the gateway does not answer.
    """
    drains, enabled = recover_drains(plan, folder)
    for drain in drains:
        if drain in enabled:
            _report_enabled(drain)
        else:
            note(f"{drain.replica} gets no requests from the gateway: {drain.describe()}")
    return drains


def end_left_over_drains(folder: Path, command: str) -> None:
    """Enables the replicas that a killed command has left drained, and prints a note for each. Never fails."""
    for drain in enable_left_over(folder, command):
        _report_enabled(drain)


def _report_enabled(drain: Drain) -> None:
    note(
        f"{drain.replica} was still {drain.describe()}. This command has ended, so the replica gets requests from "
        "the gateway again"
    )
