"""What the latest rounds found, shared by the threads that check and those that answer."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from stackgen.check.report import EndpointReport
from stackgen.check.target import Target

__all__ = ["HISTORY", "Round", "Seen", "State", "round_of"]

# rounds that the status page draws: half an hour at the default interval
HISTORY = 60


@dataclass(frozen=True, slots=True)
class Round:
    """One look at an endpoint: whether it was up, and its slowest model's time to first token (s), if one came."""

    up: bool
    ttft: float | None


@dataclass(frozen=True, slots=True)
class Seen:
    """An endpoint as it was seen last. `checked` is in seconds since 1970; None, as `report`: not yet."""

    name: str
    base_url: str
    report: EndpointReport | None = None
    checked: float | None = None
    runs: int = 0
    history: tuple[Round, ...] = ()


class State:
    """The latest report of every endpoint. Safe to use from many threads; `snapshot` never changes afterwards."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._lock = threading.Lock()
        self._seen = {target.name: Seen(target.name, target.base_url) for target in targets}
        self._history: dict[str, deque[Round]] = {target.name: deque(maxlen=HISTORY) for target in targets}
        # one exporter's numbers must not pass for those of the one that ran before it
        self._version, self._begun = 0, f"{time.time_ns():x}"

    def record(self, report: EndpointReport, checked: float | None = None) -> None:
        """Takes the report of an endpoint that was just checked (at `checked`, seconds since 1970; default: now)."""
        with self._lock:
            history = self._history[report.name]
            history.append(round_of(report))
            self._version += 1
            before = self._seen[report.name]
            self._seen[report.name] = Seen(
                before.name,
                before.base_url,
                report,
                time.time() if checked is None else checked,
                before.runs + 1,
                tuple(history),
            )

    def snapshot(self) -> tuple[Seen, ...]:
        """All endpoints in their order."""
        with self._lock:
            return tuple(self._seen.values())

    def get(self, name: str) -> Seen | None:
        """The endpoint of that name."""
        with self._lock:
            return self._seen.get(name)

    @property
    def version(self) -> str:
        """Another text after each report: who has seen this one has seen all."""
        with self._lock:
            return f"{self._begun}-{self._version}"


def round_of(report: EndpointReport) -> Round:
    """What the history keeps of a report."""
    found = [result.figures["ttft_seconds"] for result in report.results if "ttft_seconds" in result.figures]
    return Round(report.ok, max(found, default=None))
