"""Requests and tokens of each key, from the metrics of a running gateway."""

from __future__ import annotations

import time

from stackgen.errors import StartError
from stackgen.plan import Plan
from stackgen.runtimes.compose.gateway import running_gateway
from stackgen.runtimes.compose.haproxy_api import LOGS_HINT
from stackgen.stack.key_counts import KeyUsage, is_complete, parse_counts

__all__ = ["read_usage"]

ATTEMPTS = 5


def read_usage(plan: Plan) -> dict[str, KeyUsage] | None:
    """Returns the counts of each key in gateway.keys, and of `default`. None if the gateway is not running.

    Raises StartError if the gateway does not answer.
    """
    gateway = running_gateway(plan.name)
    if gateway is None:
        return None
    for _ in range(ATTEMPTS):
        # `docker exec` can lose the first part of the output (haproxy_api.py)
        if is_complete(text := gateway.fetch_key_metrics()):
            return parse_counts(text)
        time.sleep(0.2)
    raise StartError("the gateway did not return its metrics", LOGS_HINT)
