"""Checks every endpoint at its interval, each for itself: one that is slow holds nobody else up."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Sequence

from stackgen.check.checks.table import CHECKS, choose
from stackgen.check.limits import seconds
from stackgen.check.options import Options
from stackgen.check.report import EndpointReport, Result
from stackgen.check.target import Target
from stackgen.check.transport.transcript import LEAST_CHUNKS
from stackgen.exporter.state import State
from stackgen.providers.probe import run_check

__all__ = ["Checker", "monitoring"]

# of one token no speed can be told, and it may have no letter; the first chunk has none, an engine may hold back some
# more, and enough must be left to see whether a proxy gathers them; still more would burden the servers
TOKENS = 2 * LEAST_CHUNKS
# a server that always takes longer than the interval still gets that long to breathe (s)
BREATH = 1.0
# how many time-outs in a row a check may meet before the checker counts as stuck
PATIENCE = 10


def monitoring(timeout: float = 60.0, *, observed: bool = False) -> Options:
    """The checks of `quick` and one short stream, for its time to first token.

    `timeout` is in seconds; `observed` adds the check of containers, for targets that know their stack.
    """
    names = [check.name for check in CHECKS if check.depth == 0 and (observed or check.name != "containers")]
    return Options(profile="default", timeout=timeout, max_tokens=TOKENS, select=(*names, "stream"))


class Checker:
    """Threads that check `targets` every `interval` seconds and record what they find.

    The looks at one endpoint never overlap: its next begins `interval` after the last began, or a moment after it
    ended. Raises StackgenError for options and intervals that make no sense.
    """

    def __init__(self, targets: Sequence[Target], options: Options, interval: float, state: State) -> None:
        seconds("interval", interval)
        choose(options)
        self._targets, self._options, self._interval, self._state = list(targets), options, interval, state
        self._changed = threading.Condition()
        self._stopped = False
        # when each endpoint is due, on the monotonic clock; it leaves the heap while it is looked at
        self._heap: list[tuple[float, int]] = []
        self._due: list[float] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begins the first look at every endpoint."""
        now = time.monotonic()
        self._due = [now] * len(self._targets)
        self._heap = [(now, index) for index in range(len(self._targets))]
        for number in range(min(len(self._targets), self._options.workers)):
            # daemons: a server that is silent must not keep the exporter from ending
            thread = threading.Thread(target=self._work, name=f"stackgen-exporter-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, wait: float = 0.0) -> bool:
        """Begins no new look; waits up to `wait` seconds for those that run. True when none is left."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        deadline = time.monotonic() + wait
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def trouble(self) -> str:
        """Why what is shown may be old; empty while rounds complete in time."""
        if any(not thread.is_alive() for thread in self._threads) or not self._threads:
            return "a checker thread has ended"
        limit = self._interval + PATIENCE * self._options.timeout
        now = time.monotonic()
        late = [target.name for target, due in zip(self._targets, self._due, strict=True) if now - due > limit]
        more = f" and {len(late) - 1} more" if len(late) > 1 else ""
        return f"{late[0]}{more} due for over {limit:.0f} s" if late else ""

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and (not self._heap or self._heap[0][0] > time.monotonic()):
                    self._changed.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                if self._stopped:
                    return
                _, index = heapq.heappop(self._heap)
            begun = time.monotonic()
            self._state.record(self._look(self._targets[index]))
            with self._changed:
                self._due[index] = max(begun + self._interval, time.monotonic() + min(self._interval, BREATH))
                heapq.heappush(self._heap, (self._due[index], index))
                self._changed.notify()

    def _look(self, target: Target) -> EndpointReport:
        try:
            return run_check([target], self._options).endpoints[0]
        except Exception as error:
            # the text of an error nobody foresaw may hold anything, a key as well: its type must do
            result = Result("check", "fail", None, f"the check itself broke: {type(error).__name__}",
                            "a mistake in stackgen: `stackgen check --debug` shows more")  # fmt: skip
            return EndpointReport(target.name, target.base_url, "", (result,))
