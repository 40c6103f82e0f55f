"""Phases of a start, shown on stderr: live on a terminal, one line a change where asked for, silent elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stackgen.plan import Plan

__all__ = ["shown"]


@contextmanager
def shown(kind: str, plan: Plan) -> Iterator[Callable[[str, str], None]]:
    """A function `progress(service, phase)` that shows what is going on. `kind`: auto, plain or none."""
    if kind == "auto" and not sys.stderr.isatty():
        kind = "none"
    start = time.monotonic()
    if kind == "none":
        yield lambda service, phase: None
    elif kind == "plain":
        width = max(len(service.name) for service in plan.services)

        def line(service: str, phase: str) -> None:
            print(f"[{time.monotonic() - start:5.0f} s] {service:{width}}  {phase}", file=sys.stderr, flush=True)

        yield line
    else:
        with _live(plan, start) as progress:
            yield progress


@contextmanager
def _live(plan: Plan, start: float) -> Iterator[Callable[[str, str], None]]:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    phases = {service.name: ("wait", start) for service in plan.services}

    def table() -> Table:
        grid = Table.grid(padding=(0, 2))
        for name, (phase, since) in phases.items():
            mark = {"ready": "[green]●[/]", "answered": "[green]✔[/]", "complete": "[green]✔[/]"}.get(
                phase, "[yellow]…[/]"
            )
            mark = "[red]✘[/]" if phase.startswith(("failed", "start failed")) else mark
            grid.add_row(mark, name, phase, f"[dim]{time.monotonic() - since:.0f} s[/]")
        return grid

    with Live(get_renderable=table, console=Console(stderr=True), refresh_per_second=4):

        def progress(service: str, phase: str) -> None:
            phases[service] = (phase, time.monotonic())

        yield progress
