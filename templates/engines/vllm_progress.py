"""The progress of a vLLM server, for watch.py: counters of the engine's process, and a request for one token.

After each step, the engine's process sends statistics to the web server. If a step computes only a part of a prompt, it
yields no token: `vllm:kv_cache_usage_perc` rises, but the token counters don't. All metrics below change only when
statistics arrive (vllm/v1/metrics/loggers.py, `PrometheusStatLogger.record`, and vllm/v1/core/sched/scheduler.py,
`make_stats`, of 0.32.0).
"""

import vllm_health

PREFIXES = tuple(
    f"vllm:{name}{{"
    for name in (
        "iteration_tokens_total_count", "generation_tokens_total", "prompt_tokens_total", "kv_cache_usage_perc",
        "prefix_cache_queries_total", "num_preemptions_total", "num_requests_running", "num_requests_waiting",
    )
)  # fmt: skip
AWAKE = 'sleep_state="awake"'


class Engine:
    """A vLLM server at `base`."""

    # an engine that is asleep gets the timeout x slack. vLLM's web server reads the engine's tokens even if the client
    # does not, so only a hang puts the engine to sleep
    slack = 1
    has_counters = True

    def __init__(self, base):
        self.base, self.lines, self.model, self.is_paused = base, (), None, False

    def read_counters(self, seconds):
        """The metrics that move with each step; None if the web server doesn't answer."""
        try:
            text = vllm_health.call(self.base, "/metrics", timeout=seconds)
        except OSError:
            return None
        lines = text.splitlines()
        self.lines = tuple(line for line in lines if line.startswith(PREFIXES))
        # a model in sleep mode answers no requests; without counters (--disable-log-stats), its state is unknown
        sleeps = any(AWAKE in line and line.endswith(" 0.0") for line in lines)
        self.is_paused = sleeps or not self.lines
        return self.lines

    def generate(self, seconds):
        """Requests one token."""
        if self.model is None:
            self.model = vllm_health.first_model(self.base, seconds)
        vllm_health.generate(self.base, self.model, seconds)

    def _sum(self, name):
        return sum(float(line.rpartition(" ")[2]) for line in self.lines if line.startswith(f"vllm:{name}{{"))

    def describe(self):
        """How many requests the engine had when it last sent statistics."""
        running, waiting = self._sum("num_requests_running"), self._sum("num_requests_waiting")
        return f"{running:.0f} requests running and {waiting:.0f} waiting"

    def evidence(self):
        """The last metrics."""
        yield from self.lines
