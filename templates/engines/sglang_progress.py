"""The progress of an SGLang server, for watch.py: counters of the scheduler, and a request for one token.

The scheduler waits for requests in a loop that never sleeps, so its processes always compute. For that reason, a
scheduler that hangs counts as one that computes, and gets 40 x the timeout (watch.py, PATIENCE). SGLang's own watchdog
(`--watchdog-timeout`, 300 s) ends a server whose forward pass takes longer.
The counters come from observability/metrics_collector.py of SGLang 0.5.23.
"""

import sglang_health

PREFIXES = tuple(
    f"sglang:{name}{{"
    for name in ("realtime_tokens_total", "prompt_tokens_total", "generation_tokens_total", "num_used_tokens",
                 "num_running_reqs", "num_queue_reqs")
)  # fmt: skip


class Engine:
    """An SGLang server at `base`."""

    slack = 1
    has_counters = True

    def __init__(self, base):
        self.base, self.lines, self.is_paused = base, (), False

    def read_counters(self, seconds):
        """The metrics that move with each step; None if the web server doesn't answer."""
        try:
            text = sglang_health.call(self.base, "/metrics", timeout=seconds)
        except OSError:
            return None
        self.lines = tuple(line for line in text.splitlines() if line.startswith(PREFIXES))
        # without counters, nothing is known
        self.is_paused = not self.lines
        return self.lines

    def generate(self, seconds):
        """Requests one token."""
        sglang_health.generate(self.base, seconds)

    def _sum(self, name):
        return sum(float(line.rpartition(" ")[2]) for line in self.lines if line.startswith(f"sglang:{name}{{"))

    def describe(self):
        """How many requests the engine had when it last sent statistics."""
        running, waiting = self._sum("num_running_reqs"), self._sum("num_queue_reqs")
        return f"{running:.0f} requests running and {waiting:.0f} waiting"

    def evidence(self):
        """The last metrics."""
        yield from self.lines
