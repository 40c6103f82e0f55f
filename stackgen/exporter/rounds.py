"""Checks every endpoint at an interval. Endpoints are scheduled independently: a slow one doesn't delay the others."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from stackgen.check.checks.table import CHECKS, select_checks
from stackgen.check.limits import validate_seconds
from stackgen.check.options import Options
from stackgen.check.report import EndpointReport, Result
from stackgen.check.target import Target
from stackgen.check.transport.transcript import MIN_CHUNKS
from stackgen.exporter.apis import ApiRounds
from stackgen.exporter.state import State
from stackgen.providers.probe import run_check

__all__ = ["Checker", "monitoring_options"]

# One token gives no rate and may be less than a character. The first chunk has no text, and engines may hold back
# chunks. The remaining chunks must still reveal a buffering proxy. More tokens would only add load to the servers.
STREAM_TOKENS = 2 * MIN_CHUNKS
# seconds between two rounds of an endpoint whose rounds take longer than the interval
MIN_PAUSE = 1.0
# an endpoint is overdue if its round takes longer than the interval plus this many timeouts
OVERDUE_TIMEOUTS = 10


def monitoring_options(timeout: float = 60.0, *, observed: bool = False) -> Options:
    """Options for the checks of the `quick` profile plus one short stream per model, to measure its TTFT.

    `timeout` is in seconds. `observed` adds the `containers` check, for targets whose stack is known.
    """
    names = [check.name for check in CHECKS if check.depth == 0 and (observed or check.name != "containers")]
    return Options(profile="default", timeout=timeout, max_tokens=STREAM_TOKENS, select=(*names, "stream"), light=True)


class Checker:
    """Threads that check each of `targets` every `interval` seconds and record the reports in `state`.

    Rounds of one endpoint never overlap: the next one starts `interval` after the start of the last one, or
    `MIN_PAUSE` after its end if that is later. Raises StackgenError for invalid options and intervals.
    """

    def __init__(self, targets: Sequence[Target], options: Options, interval: float, state: State) -> None:
        validate_seconds("interval", interval)
        select_checks(options)
        self._targets, self._options, self._interval, self._state = list(targets), options, interval, state
        self._apis = ApiRounds(len(self._targets), options)
        self._changed = threading.Condition()
        self._stopped = False
        # (due time on the monotonic clock, index of the target); an endpoint leaves the heap while it is checked
        self._heap: list[tuple[float, int]] = []
        self._due: list[float] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Starts the threads; the first round of every endpoint is due at once."""
        now = time.monotonic()
        self._due = [now] * len(self._targets)
        self._heap = [(now, index) for index in range(len(self._targets))]
        for number in range(min(len(self._targets), self._options.workers)):
            # daemon threads: a check that waits for a silent server must not keep the process alive
            thread = threading.Thread(target=self._work, name=f"stackgen-exporter-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, wait: float = 0.0) -> bool:
        """Starts no more rounds and waits up to `wait` seconds for running rounds. True if no round is left."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        deadline = time.monotonic() + wait
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def stall_reason(self) -> str:
        """Why the recorded reports may be out of date; empty while rounds complete in time."""
        if any(not thread.is_alive() for thread in self._threads) or not self._threads:
            return "a checker thread has stopped"
        limit = self._interval + OVERDUE_TIMEOUTS * self._options.timeout
        now = time.monotonic()
        # `_due` is read without the lock: a value of the previous round only delays the verdict
        overdue = [target.name for target, due in zip(self._targets, self._due, strict=True) if now - due > limit]
        more = f" and {len(overdue) - 1} more" if len(overdue) > 1 else ""
        return f"checks are overdue by more than {limit:.0f} s for endpoint {overdue[0]}{more}" if overdue else ""

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and (not self._heap or self._heap[0][0] > time.monotonic()):
                    self._changed.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                if self._stopped:
                    return
                _, index = heapq.heappop(self._heap)
            started, target = time.monotonic(), self._targets[index]
            report = self._check(target)
            self._state.record(replace(report, apis=report.apis or self._apis.latest(index, report)))
            # after the report is recorded, so that the probes don't delay it
            self._apis.probe(index, target, report)
            with self._changed:
                pause = min(self._interval, MIN_PAUSE)
                self._due[index] = max(started + self._interval, time.monotonic() + pause)
                heapq.heappush(self._heap, (self._due[index], index))
                self._changed.notify()

    def _check(self, target: Target) -> EndpointReport:
        try:
            return run_check([target], self._options).endpoints[0]
        except Exception as error:
            # only the type is reported: the message of an unforeseen exception may contain the key
            result = Result(
                "check",
                status="fail",
                seconds=None,
                message=f"the check itself crashed: {type(error).__name__}",
                hint="this is a bug in stackgen: `stackgen check --debug` shows details of the crash",
            )
            return EndpointReport(target.name, base_url=target.base_url, dialect="", results=(result,))
