"""`stackgen status`: the state of every service. Exit code 1: a service is not healthy."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict

from stackgen.cli.commands.output import print_data
from stackgen.cli.commands.runtime import find_runtime, stack_folder
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.process.lifecycle import process_status
from stackgen.stack.folder import open_stack

__all__ = ["status"]


def status(args: Namespace) -> int:
    """Runs `stackgen status`: prints one line per service. Returns 1 unless all of them are healthy."""
    folder = stack_folder(args.stack)
    if find_runtime(args, folder) == "process":
        states = process_status(folder)
    else:
        states = compose.status(open_stack(args.stack).plan)
    rows = [(s.service, s.state + (f" ({s.exit_code})" if s.exit_code is not None else ""), s.health or "-",
             f"{s.restarts} restarts" if s.restarts else "", " ".join(s.ports)) for s in states]  # fmt: skip
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    print_data(args, {"services": [asdict(state) for state in states]}, lines)
    # health "" means that the service has no health check; a download is complete once it has exited
    healthy = (("running", "healthy"), ("running", ""))
    return (
        0 if all((s.state, s.health) in healthy or (s.role == "download" and s.exit_code == 0) for s in states) else 1
    )
