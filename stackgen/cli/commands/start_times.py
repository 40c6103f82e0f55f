"""What `stackgen up` prints about the time that a start took."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from stackgen.cli.commands.output import note
from stackgen.cli.commands.table import format_table
from stackgen.stack.start_times import IDLE, StartClock, StartTimes, compare_with_last_start

__all__ = ["report_start"]

# seconds of a phase, or of its change, that deserve a row; `--json` has all phases
SHOWN = 1.0


def report_start(args: Namespace, clock: StartClock, folder: Path) -> dict[str, Any]:
    """Prints the phases of a start next to the last start, unless --json. Returns the field `start` of the JSON."""
    times = compare_with_last_start(clock, folder)
    for line in () if args.json or times is None else _lines(times):
        note(line)
    return {"start": times.to_json() if times else None}


def _lines(times: StartTimes) -> list[str]:
    compared = f" (last start: {times.last_seconds:.1f} s)" if times.last_seconds is not None else ""
    rows = []
    for one in times.services:
        for phase, seconds in one.phases.items():
            before = one.last.get(phase)
            # the time that a service waits for others is in their rows
            is_long = max(seconds, before or 0.0) >= SHOWN
            if phase not in IDLE and is_long:
                rows.append((one.service, phase, f"{seconds:.1f} s", "-" if before is None else f"{before:.1f} s"))
        # a warm start may lack a phase, such as the download or the compilation
        rows += [(one.service, phase, "-", f"{before:.1f} s") for phase, before in one.last.items()
                 if phase not in one.phases and phase not in IDLE and before >= SHOWN]  # fmt: skip
    return [f"started in {times.seconds:.1f} s{compared}",
            *(f"  {line}" for line in format_table(("SERVICE", "PHASE", "NOW", "LAST START"), rows))]  # fmt: skip
