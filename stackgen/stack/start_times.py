"""How long each phase of a start took, and how long it took at the last start of the same stack.

The record is a file in the stack's folder, which git ignores and only its owner can read.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from stackgen.render.read import read_regular
from stackgen.render.write import write_atomically

__all__ = ["RECORD", "ServiceTimes", "StartClock", "StartTimes", "compare_with_last_start"]

RECORD = Path(".stackgen") / "last-start.json"
# a phase of these is no work of the service: it is done, or waits for others
ENDS = ("ready", "complete", "answered", "failed")
IDLE = ("waiting",)
# the check of a service that was running already
CHECK = "requesting a completion"

Seconds = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """The phases of one service in their order, in seconds. `last`: those of its last start; empty if unknown."""

    service: str
    phases: Seconds
    last: Seconds


@dataclass(frozen=True, slots=True)
class StartTimes:
    """A start in seconds: from the command to the first answer of each model, and by service and phase.

    `last_seconds` is None without a record, and if another set of services started then.
    """

    seconds: float
    services: tuple[ServiceTimes, ...]
    last_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The field `start` of `stackgen up --json`."""
        services = [
            {"service": one.service,
             "phases": [{"phase": name, "seconds": seconds, "last_seconds": one.last.get(name)}
                        for name, seconds in one.phases.items()]}
            for one in self.services
        ]  # fmt: skip
        return {"seconds": self.seconds, "last_seconds": self.last_seconds, "services": services}


class StartClock:
    """Measures how long services stay in each phase, from the calls of `progress`. Used by one thread."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._current: dict[str, tuple[str, float]] = {}
        self._phases: dict[str, dict[str, float]] = {}

    def watch(self, progress: Callable[[str, str], None]) -> Callable[[str, str], None]:
        """A `progress` that measures, and calls the given one."""

        def measure(service: str, phase: str) -> None:
            self._enter(service, _name_phase(phase))
            progress(service, phase)

        return measure

    def _enter(self, service: str, phase: str) -> None:
        now = time.monotonic()
        before, since = self._current.get(service, ("", now))
        if before and before not in ENDS:
            phases = self._phases.setdefault(service, {})
            phases[before] = phases.get(before, 0.0) + now - since
        self._current[service] = (phase, now)

    def read(self) -> tuple[float, dict[str, dict[str, float]]]:
        """Seconds since the clock was created; and seconds by service and phase, only of services that started."""
        phases = {
            service: {name: round(seconds, 1) for name, seconds in found.items()}
            for service, found in self._phases.items()
            if found.keys() - {*IDLE, CHECK}
        }
        return round(time.monotonic() - self._start, 1), phases


def _name_phase(phase: str) -> str:
    """The phase without what changes, for example `downloading` for `downloading org/m: 1.0 MB of 2.0 MB`."""
    if phase.startswith("start failed, attempt"):
        return "failed attempts"
    word = re.split(r":| \d+/\d+| \(", phase, maxsplit=1)[0].strip()
    return next((one for one in (*ENDS, *IDLE, "downloading") if word.split(" ")[0] == one), word)


def compare_with_last_start(clock: StartClock, folder: Path) -> StartTimes | None:
    """The times of a start that has succeeded, next to those of the last one, which they replace in the record.

    None if nothing was started. The times of services that did not start stay in the record.
    """
    seconds, phases = clock.read()
    if not phases:
        return None
    record = _read(folder / RECORD)
    services = tuple(ServiceTimes(name, found, record["services"].get(name, {})) for name, found in phases.items())
    last = record["seconds"] if record["started"] == sorted(phases) else None
    data = {
        "schema": 1, "at": datetime.now(timezone.utc).isoformat(timespec="seconds"), "seconds": seconds,
        "started": sorted(phases), "services": record["services"] | phases,
    }  # fmt: skip
    # the stack runs, so a folder that can't be written must not look like a failed start
    with suppress(OSError):
        write_atomically(folder / RECORD, json.dumps(data, indent=2) + "\n", 0o600)
    return StartTimes(seconds, services, last)


def _read(path: Path) -> dict[str, Any]:
    """The record, without what is damaged."""
    empty: dict[str, Any] = {"seconds": None, "started": [], "services": {}}
    try:
        data = json.loads(read_regular(path))
        services = {
            name: {phase: float(seconds) for phase, seconds in phases.items()}
            for name, phases in data["services"].items()
        }
        return {"seconds": float(data["seconds"]), "started": list(data["started"]), "services": services}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return empty
