"""Show the phases of a start on stderr: live on a terminal, one line per change with `plain`, otherwise nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stackgen.plan import Plan

__all__ = ["show_progress"]


@contextmanager
def show_progress(mode: str, plan: Plan) -> Iterator[Callable[[str, str], None]]:
    """Yields `progress(service, phase)`, which shows the phase of a service. `mode`: auto, plain or none."""
    # a log file or a pipe gets progress lines only with the mode `plain`
    if mode == "auto" and not sys.stderr.isatty():
        mode = "none"
    start = time.monotonic()
    if mode == "none":
        yield lambda service, phase: None
    elif mode == "plain":
        width = max(len(service.name) for service in plan.services)

        def print_line(service: str, phase: str) -> None:
            # stdout is for data
            print(f"[{time.monotonic() - start:5.0f} s] {service:{width}}  {phase}", file=sys.stderr, flush=True)

        yield print_line
    else:
        with _live_table(plan, start) as progress:
            yield progress


@contextmanager
def _live_table(plan: Plan, start: float) -> Iterator[Callable[[str, str], None]]:
    # only a terminal needs rich, and its import is slow
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    phases = {service.name: ("waiting", start) for service in plan.services}

    def build_table() -> Table:
        grid = Table.grid(padding=(0, 2))
        for name, (phase, since) in phases.items():
            mark = {"ready": "[green]●[/]", "answered": "[green]✔[/]", "complete": "[green]✔[/]"}.get(
                phase, "[yellow]…[/]"
            )
            mark = "[red]✘[/]" if phase.startswith(("failed", "start failed")) else mark
            grid.add_row(mark, name, phase, f"[dim]{time.monotonic() - since:.0f} s[/]")
        return grid

    # built at each refresh, so that the seconds also count between two phases
    with Live(get_renderable=build_table, console=Console(stderr=True), refresh_per_second=4):

        def update_phase(service: str, phase: str) -> None:
            phases[service] = (phase, time.monotonic())

        yield update_phase
