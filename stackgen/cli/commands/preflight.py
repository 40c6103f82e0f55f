"""What `up` verifies before it pulls an image: the checks of doctor whose failure makes the start impossible."""

from __future__ import annotations

from stackgen.doctor.collect import collect_start_inputs
from stackgen.doctor.table import exit_code, find_start_failures
from stackgen.errors import MachineError, StartError
from stackgen.runtimes.observation.machine import collect_host_facts
from stackgen.stack.folder import Stack

__all__ = ["require_startable"]

# seconds; a fact that takes longer is unknown, and stops no start
LIMIT = 1.0


def require_startable(stack: Stack) -> None:
    """Raises MachineError or StartError, as the exit code of doctor, if the stack certainly can't start here."""
    findings = find_start_failures(collect_start_inputs(collect_host_facts(stack, LIMIT), stack))
    if not findings:
        return
    lines = ["the stack can't start. Nothing was downloaded or started:"]
    for one in findings:
        lines.append(f"  ✗ {one.id} {one.place}{': ' if one.place else ''}{one.message}")
        lines += [f"      {label}: {text}" for label, text in (("seen", one.evidence), ("fix", one.fix)) if text]
    error = MachineError if exit_code(findings) == 3 else StartError
    raise error(
        "\n".join(lines), "`stackgen doctor` runs all checks; `stackgen up --skip-doctor` starts without checks"
    )
