"""Runs `stackgen check` on a stack that has a fault."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.live.stacks import LiveStack

__all__ = ["TIMEOUT", "run_check", "wait_until_healthy"]

# seconds that a request to a paused or wedged service waits; a working one answers within one
TIMEOUT = 5


def run_check(stack: LiveStack, *args: str, code: int) -> tuple[dict[str, dict[str, Any]], float]:
    """Runs a check. Returns its results by name (the first failed one, if there are several) and its duration."""
    started = time.monotonic()
    done = stack.run_stackgen("check", str(stack.folder), "--json", "--request-timeout", str(TIMEOUT), *args)
    took = time.monotonic() - started
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, dict[str, Any]] = {}
    for result in json.loads(done.stdout)["endpoints"][0]["results"]:
        if result["name"] not in found or result["status"] == "fail":
            found[result["name"]] = result
    return found, took


def wait_until_healthy(stack: LiveStack) -> None:
    """Waits until a quick check and each worker's probe pass again."""
    end = time.monotonic() + 120
    args = ("check", str(stack.folder), "--select", "models,chat,topology", "--request-timeout", str(TIMEOUT))
    while (done := stack.run_stackgen(*args)).returncode:
        assert time.monotonic() < end, done.stdout
        time.sleep(0.5)
