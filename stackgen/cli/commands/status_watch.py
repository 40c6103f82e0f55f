"""`stackgen status --watch`: the loop and its interval; without a terminal, it prints a line for each change."""

from __future__ import annotations

import json
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from stackgen.cli.commands.output import exit_interrupted, exit_now, print_line
from stackgen.cli.scrub import scrub_json
from stackgen.lazy import LazyModule
from stackgen.plan import Plan
from stackgen.runtimes.observation.follow import Follower, Look, ServiceLook

if TYPE_CHECKING:
    from rich import console as rich_console
    from rich import live as rich_live
else:
    rich_console = LazyModule("rich.console")
    rich_live = LazyModule("rich.live")

__all__ = ["StackFollower", "follow_stack", "watch_stack"]

# the shortest time between two looks: a look asks Docker several times for each service
MIN_INTERVAL = 0.5


class StackFollower(Protocol):
    """Looks at a stack; `source` names what an error is about."""

    @property
    def source(self) -> str: ...
    @property
    def plan(self) -> Plan: ...
    def look(self) -> Look:
        """The stack now. Raises StackgenError."""


class _Looks:
    """The newest look at the stack. A thread of its own looks, so that Ctrl-C works while Docker does not answer."""

    def __init__(self, follower: StackFollower, interval: float) -> None:
        self.look: Look | None = None
        self.error, self.at, self.count = "", time.monotonic(), 0
        self._follower, self._interval = follower, max(interval, MIN_INTERVAL)
        self.changed = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            started = time.monotonic()
            try:
                self.look, self.error = self._follower.look(), ""
            # the view must show an unexpected answer of Docker, and go on
            except Exception as error:
                self.error = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
            self.at, self.count = time.monotonic(), self.count + 1
            self.changed.set()
            time.sleep(max(MIN_INTERVAL, self._interval - (time.monotonic() - started)))


def watch_stack(args: Namespace, open_plan: Callable[[], Plan], folder: Path, processes: bool) -> int:
    """Follows the stack until Ctrl-C. Returns 0 if all services were up in the last look, otherwise 1."""
    return follow_stack(args, Follower(open_plan, folder, processes), folder)


def follow_stack(args: Namespace, follower: StackFollower, folder: Path) -> int:
    """As `watch_stack`, with a follower of any runtime."""
    looks = _Looks(follower, args.watch)
    try:
        if args.json:
            _print_changes(looks, _print_json)
        elif sys.stdout.isatty():
            _show_live(looks, follower, folder)
        else:
            _print_changes(looks, _line_printer(follower.source))
    except KeyboardInterrupt:
        if not looks.count:
            exit_interrupted()
        # Ctrl-C is the normal end of a watch; a request to Docker may still run in the thread
        exit_now(0 if looks.look and not looks.error and all(map(_is_up, looks.look.services)) else 1)


def _print_changes(looks: _Looks, show: Callable[[Look | None, str], None]) -> NoReturn:
    while True:
        # short waits, because a lock can't be interrupted by signals on every platform
        if looks.changed.wait(0.5):
            looks.changed.clear()
            show(looks.look, looks.error)


def _print_json(look: Look | None, error: str) -> None:
    services = [] if look is None else [_to_json(one) for one in look.services]
    gpus = [asdict(one) for one in look.gpus] if look else []
    data = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "services": services, "gpus": gpus, "error": error}
    print(json.dumps(scrub_json(data)), flush=True)


def _to_json(one: ServiceLook) -> dict[str, Any]:
    return {**asdict(one.state), "cpu": one.cpu, "memory": one.memory, "in_flight": one.in_flight,
            "drained": one.drained, "line": one.line}  # fmt: skip


def _line_printer(source: str) -> Callable[[Look | None, str], None]:
    """A function that prints a line for each service whose state has changed since its last call."""
    before: dict[str, str] = {}

    def show(look: Look | None, error: str) -> None:
        rows = {one.state.service: _state_text(one) for one in look.services} if look and not error else {}
        rows |= {source: error} if error else {}
        # a service that comes back after an error is printed again
        for name, text in rows.items():
            if before.get(name) != text:
                before[name] = text
                print_line(f"{time.strftime('%H:%M:%S')}  {name}  {text}")
        if not error:
            before.pop(source, None)

    return show


def _show_live(looks: _Looks, follower: StackFollower, folder: Path) -> NoReturn:
    # only a terminal needs rich, and its import is slow
    from stackgen.cli.commands.status_view import build_view

    # the alternate screen: at the end, the terminal shows what it showed before
    def view() -> Any:
        return build_view(looks.look, looks.error, time.monotonic() - looks.at, follower.plan, folder)

    # the alternate screen: at the end, the terminal shows what it showed before
    with rich_live.Live(get_renderable=view, console=rich_console.Console(), screen=True, refresh_per_second=2):
        while True:
            time.sleep(0.2)


def _is_up(one: ServiceLook) -> bool:
    state = one.state
    if state.role == "download":
        return state.state == "running" or state.exit_code == 0
    return state.state == "running" and state.health in ("healthy", "") and not one.drained


def _state_text(one: ServiceLook) -> str:
    state = one.state
    code = f" ({state.exit_code})" if state.exit_code is not None else ""
    health = state.health if state.state == "running" else ""
    restarts = f"{state.restarts} restarts" if state.restarts else ""
    drained = "drained: the gateway sends it no requests" if one.drained else ""
    return ", ".join(filter(None, (f"{state.state}{code}", health, restarts, drained, one.note)))
