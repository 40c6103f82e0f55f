"""The latest report of every endpoint, shared by the threads that run checks and the threads that serve HTTP."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from stackgen.check.report import EndpointReport
from stackgen.check.target import Target

__all__ = ["HISTORY", "EndpointState", "Round", "State", "summarize_round"]

# rounds shown on the status page: half an hour at the default interval
HISTORY = 60


@dataclass(frozen=True, slots=True)
class Round:
    """One check of an endpoint: whether it was up, and the TTFT of its slowest model in seconds, if measured."""

    up: bool
    ttft: float | None


@dataclass(frozen=True, slots=True)
class EndpointState:
    """The latest state of an endpoint.

    `checked` is the end of the latest round in seconds since the epoch. `report` and `checked` are None before the
    first round.
    """

    name: str
    base_url: str
    report: EndpointReport | None = None
    checked: float | None = None
    runs: int = 0
    history: tuple[Round, ...] = ()


class State:
    """The latest report of every endpoint. Thread-safe; a snapshot is never modified afterwards."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._lock = threading.Lock()
        self._endpoints = {target.name: EndpointState(target.name, target.base_url) for target in targets}
        # bounded, because an exporter runs indefinitely
        self._history: dict[str, deque[Round]] = {target.name: deque(maxlen=HISTORY) for target in targets}
        # the start time makes the versions differ from the versions of a previous process
        self._version, self._started = 0, f"{time.time_ns():x}"

    def record(self, report: EndpointReport, checked: float | None = None) -> None:
        """Stores the report of an endpoint.

        `checked` is the end of its round in seconds since the epoch; the default is now.
        """
        with self._lock:
            history = self._history[report.name]
            history.append(summarize_round(report))
            self._version += 1
            before = self._endpoints[report.name]
            # a new object, so snapshots that were handed out stay as they are
            self._endpoints[report.name] = EndpointState(
                name=before.name,
                base_url=before.base_url,
                report=report,
                checked=time.time() if checked is None else checked,
                runs=before.runs + 1,
                history=tuple(history),
            )

    def snapshot(self) -> tuple[EndpointState, ...]:
        """The state of all endpoints, in the order of the targets."""
        # a tuple of frozen objects, so readers need no lock
        with self._lock:
            return tuple(self._endpoints.values())

    def get(self, name: str) -> EndpointState | None:
        """The state of the endpoint called `name`, if there is one."""
        with self._lock:
            return self._endpoints.get(name)

    @property
    def version(self) -> str:
        """A text that changes with each recorded report; the ETag of `/api/status` is made from it."""
        with self._lock:
            return f"{self._started}-{self._version}"


def summarize_round(report: EndpointReport) -> Round:
    """The part of a report that the history keeps."""
    ttfts = [result.figures["ttft_seconds"] for result in report.results if "ttft_seconds" in result.figures]
    # the slowest model counts, so that one slow model among many is visible
    return Round(report.ok, max(ttfts, default=None))
