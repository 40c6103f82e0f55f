"""Requests and tokens of each key, from the metrics of a running gateway."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass

from stackgen.errors import StartError
from stackgen.plan import Plan
from stackgen.runtimes.compose.gateway import running_gateway
from stackgen.runtimes.compose.haproxy_api import LOGS_HINT

__all__ = ["KeyUsage", "read_usage"]

SAMPLE = re.compile(r'(?m)^stackgen_gateway_key_(\w+)\{key="([^"]+)"\} (\d+)$')
METRICS = {
    "requests_total": "requests", "errors_total": "errors", "failures_total": "failures",
    "prompt_tokens_total": "prompt_tokens", "completion_tokens_total": "completion_tokens",
    "tokens_today": "tokens_today",
}  # fmt: skip
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """The counts of one key. None: not counted. `errors` were rejected (4xx), `failures` failed (5xx)."""

    requests: int | None = None
    errors: int | None = None
    failures: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens_today: int | None = None

    def to_json(self) -> dict[str, int | None]:
        """Returns plain data for `--json`."""
        return asdict(self)


def read_usage(plan: Plan) -> dict[str, KeyUsage] | None:
    """Returns the counts of each key in gateway.keys, and of `default`. None if the gateway is not running.

    Raises StartError if the gateway does not answer.
    """
    gateway = running_gateway(plan.name)
    if gateway is None:
        return None
    for _ in range(ATTEMPTS):
        # `docker exec` can lose the first part of the output (haproxy_api.py)
        if (text := gateway.fetch_key_metrics()).startswith("HTTP/1.") and " 200 " in text.split("\n", 1)[0]:
            break
        time.sleep(0.2)
    else:
        raise StartError("the gateway did not return its metrics", LOGS_HINT)
    found: dict[str, dict[str, int]] = {}
    for metric, key, value in SAMPLE.findall(text):
        if metric in METRICS:
            found.setdefault(key, {})[METRICS[metric]] = int(value)
    return {key: KeyUsage(**counts) for key, counts in found.items()}
