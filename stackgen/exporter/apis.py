"""What works with each endpoint, for the exporter: probed once an hour, because each probe generates text.

The rounds of the profile `quick` only look at what changes from minute to minute. Which APIs a server has changes with
a restart, so a failed round makes the next good round probe again.
"""

from __future__ import annotations

import math
import time

from stackgen.check.checks.table import select_checks
from stackgen.check.options import Options
from stackgen.check.report import ApiSupport, EndpointReport
from stackgen.check.target import Target
from stackgen.providers.probe import run_check

__all__ = ["ApiRounds"]

# seconds between two probes of an endpoint, and the least time between them if the endpoint keeps failing
INTERVAL, MIN_INTERVAL = 3600.0, 300.0
# each model takes about ten requests of at most 128 tokens
MAX_MODELS = 4
# seconds for one probe of an endpoint, so that it doesn't hold up the endpoint's rounds
TIME_LIMIT = 60.0
CHECK = "apis"


class ApiRounds:
    """The latest probe of each endpoint, by its index. One thread at a time works on an endpoint, so there is no lock.

    Does nothing if `options` run or skip the check `apis`: then each report has the results, or nobody wants them.
    """

    def __init__(self, count: int, options: Options) -> None:
        own = CHECK in options.skip or any(check.name == CHECK for check in select_checks(options))
        limit = min(TIME_LIMIT, options.timeout * 2)
        self._options = Options(timeout=options.timeout, select=(CHECK,), light=True, max_models=MAX_MODELS,
                                time_limit=limit)  # fmt: skip
        self._found: list[tuple[ApiSupport, ...]] = [()] * count
        self._probed = [-math.inf] * count
        self._due = [math.inf if own else -math.inf] * count

    def latest(self, index: int, report: EndpointReport) -> tuple[ApiSupport, ...]:
        """What the last probe found; empty while the endpoint is down, because then nothing works."""
        return self._found[index] if report.ok else ()

    def probe(self, index: int, target: Target, report: EndpointReport) -> None:
        """Probes the endpoint if a probe is due and its latest round was good."""
        now = time.monotonic()
        if not report.ok:
            # the server may come back with other flags or another version
            self._found[index] = ()
            if self._due[index] < math.inf:
                self._due[index] = min(self._due[index], self._probed[index] + MIN_INTERVAL)
            return
        if now < self._due[index]:
            return
        self._probed[index], self._due[index] = now, now + INTERVAL
        try:
            self._found[index] = run_check([target], self._options).endpoints[0].apis
        except Exception:
            # the table is an extra: a fault in it must not end the thread that monitors the endpoint
            self._found[index] = ()
