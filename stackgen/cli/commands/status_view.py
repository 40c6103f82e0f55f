"""The live table of `stackgen status --watch` on a terminal: columns, colors, and how old the data is.

Imported only there, because rich is slow to import.
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from stackgen.cli.commands.table import size_text
from stackgen.cli.scrub import scrub
from stackgen.plan import Plan
from stackgen.runtimes.observation.follow import Look, ServiceLook

__all__ = ["build_view"]

# seconds without an answer after which the view says so
STALE = 5.0
COLORS = {"healthy": "green", "starting": "yellow", "unhealthy": "red"}


def build_view(look: Look | None, error: str, age: float, plan: Plan, folder: Path) -> RenderableType:
    """The whole screen: a header, the services, the GPUs, and the newest line of each log. `age` is in seconds."""
    urls = "  ".join(dict.fromkeys(one.base_url for one in plan.endpoints))
    head = Text(f"{plan.name}  {urls}", style="bold")
    head.append(f"  {folder.resolve()}  {time.strftime('%H:%M:%S')}", style="dim")
    parts: list[RenderableType] = [head, Text()]
    if error:
        parts.append(Text(scrub(error), style="red"))
    elif age > STALE:
        parts.append(Text(f"no answer for {age:.0f} s, so this view is out of date", style="yellow"))
    if look is None:
        return Group(*parts, Text("" if error else "looking …", style="dim"))
    parts.append(_services(look))
    if look.gateway_error:
        parts.append(Text(f"requests in flight are unknown: {scrub(look.gateway_error)}", style="yellow"))
    if look.gpus:
        parts += [Text(), _gpus(look)]
    parts += [Text(), Rule(Text("newest log lines", style="dim"), align="left", style="dim"), _lines(look)]
    return Group(*parts, Text("Ctrl-C ends the view; the stack keeps running", style="dim"))


def _services(look: Look) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("SERVICE", "STATE", "SINCE", "REQUESTS", "CPU", "MEMORY", "PORTS"):
        # a long name or port must not push the state off a narrow terminal
        table.add_column(name, no_wrap=True, justify="right" if name in ("REQUESTS", "CPU", "MEMORY") else "left")
    for one in look.services:
        table.add_row(
            Text(one.state.service), _state(one), Text(one.since, style="dim"),
            Text("-" if one.in_flight is None else str(one.in_flight)),
            Text("-" if one.cpu is None else f"{one.cpu:.0f} %"), Text(size_text(one.memory)),
            Text(" ".join(one.state.ports)),
        )  # fmt: skip
    return table


def _state(one: ServiceLook) -> Text:
    state = one.state
    if state.role == "download" and state.exit_code == 0:
        return Text("complete", style="green")
    text = state.health if state.state == "running" and state.health else state.state
    color = COLORS.get(text, "green" if text == "running" else "red")
    found = Text(text + (f" ({state.exit_code})" if state.exit_code is not None else ""), style=color)
    if state.restarts:
        found.append(f" restarts: {state.restarts}", style="yellow")
    if one.drained:
        found.append(" drained", style="yellow")
    if state.oom_killed:
        found.append(" out of memory", style="red")
    return found


def _gpus(look: Look) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("GPU", "NAME", "USED", "MEMORY"):
        table.add_column(name, no_wrap=True)
    for one in look.gpus:
        table.add_row(str(one.index), Text(one.name), size_text(one.memory_used), size_text(one.memory_total))
    return table


def _lines(look: Look) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    # without a minimum, rich shortens the names in favor of the lines
    table.add_column(no_wrap=True, min_width=max((len(one.state.service) for one in look.services), default=0))
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for one in look.services:
        if one.line:
            # a log may contain a key, and square brackets that rich would take for markup
            table.add_row(Text(one.state.service, style="dim"), Text(scrub(one.line)))
    return table
