"""Show the phases of a start, or the bytes of a transfer, on stderr: live on a terminal, as lines, or not at all.

A phase may contain a line of an engine's log. Therefore, the secrets of the stack are replaced here as well.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stackgen.cli.scrub import scrub
from stackgen.lazy import LazyModule
from stackgen.plan import Plan

if TYPE_CHECKING:
    from rich import console as rich_console
    from rich import filesize as rich_filesize
    from rich import live as rich_live
    from rich import progress as rich_progress
    from rich import table as rich_table
    from rich import text as rich_text
    from rich.progress import TaskID
else:
    rich_console = LazyModule("rich.console")
    rich_filesize = LazyModule("rich.filesize")
    rich_live = LazyModule("rich.live")
    rich_progress = LazyModule("rich.progress")
    rich_table = LazyModule("rich.table")
    rich_text = LazyModule("rich.text")

__all__ = ["show_bytes", "show_progress"]

# seconds between two lines of `plain`
LINE_INTERVAL = 5.0


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
            line = f"[{time.monotonic() - start:5.0f} s] {service:{width}}  {phase}"
            # stdout is for data
            print(scrub(line), file=sys.stderr, flush=True)

        yield print_line
    else:
        with _live_table(plan, start) as progress:
            yield progress


@contextmanager
def _live_table(plan: Plan, start: float) -> Iterator[Callable[[str, str], None]]:
    phases = {service.name: ("waiting", start) for service in plan.services}

    def build_table() -> rich_table.Table:
        grid = rich_table.Table.grid(padding=(0, 2))
        for name, (phase, since) in phases.items():
            mark = {"ready": "[green]●[/]", "answered": "[green]✔[/]", "complete": "[green]✔[/]"}.get(
                phase, "[yellow]…[/]"
            )
            mark = "[red]✘[/]" if phase.startswith(("failed", "start failed")) else mark
            # Text: rich would take brackets for markup, also those of `[key]`
            grid.add_row(
                mark,
                rich_text.Text(scrub(name)),
                rich_text.Text(scrub(phase)),
                f"[dim]{time.monotonic() - since:.0f} s[/]",
            )
        return grid

    # built at each refresh, so that the seconds also count between two phases
    with rich_live.Live(get_renderable=build_table, console=rich_console.Console(stderr=True), refresh_per_second=4):

        def update_phase(service: str, phase: str) -> None:
            phases[service] = (phase, time.monotonic())

        yield update_phase


@contextmanager
def show_bytes(mode: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yields `progress(what, done, total)` for transfers, in bytes. `total` is 0 as long as it is unknown.

    `mode` is auto, plain or none. Totals below 1000 are counts of steps, such as images that are built.
    """
    if mode == "auto" and not sys.stderr.isatty():
        mode = "none"
    if mode == "none":
        yield lambda what, done, total: None
    elif mode == "plain":
        yield _byte_lines()
    else:
        with _byte_bars() as progress:
            yield progress


def _byte_lines() -> Callable[[str, int, int], None]:
    start, shown, ended = time.monotonic(), dict[str, float](), set[str]()

    def print_line(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        # a total that is only an estimate is reached more than once
        is_end = done == total and what not in ended
        if is_end:
            ended.add(what)
        # one line every few seconds, and the first and the last one of each transfer
        if what in shown and not is_end and now - shown[what] < LINE_INTERVAL:
            return
        shown[what] = now
        unit = " bytes" if total >= 1000 else ""
        amount = f"  {done:,}/{total:,}{unit}" if total else ""
        print(scrub(f"[{now - start:5.0f} s] {what}{amount}"), file=sys.stderr, flush=True)

    return print_line


@contextmanager
def _byte_bars() -> Iterator[Callable[[str, int, int], None]]:
    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.TextColumn("{task.fields[amount]}"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=rich_console.Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            amount = (
                f"{rich_filesize.decimal(done)} / {rich_filesize.decimal(total)}"
                if total >= 1000
                else f"{done}/{total}"
                if total
                else ""
            )
            if what not in tasks:
                tasks[what] = bars.add_task(scrub(what), total=total or None, amount=amount)
            bars.update(tasks[what], completed=done, total=total or None, amount=amount)

        yield update
