"""Queries of a running Prometheus."""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Prometheus", "wait_for_value"]


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus on a port of this machine."""

    port: int

    def get(self, path: str, **args: str) -> Any:
        """Returns the data of a request to the HTTP API, /api/v1/`path`."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(args)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            data = json.load(response)
        assert data["status"] == "success", data
        return data["data"]

    def query(self, query: str) -> list[dict[str, Any]]:
        """Returns the series of a PromQL query."""
        found: list[dict[str, Any]] = self.get("query", query=query)["result"]
        return found


def wait_for_value(get: Callable[[], Any], seconds: float, message: Callable[[], Any] | str = "") -> Any:
    """Calls `get` until it returns something truthy, and returns that. Fails with `message` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := get()):
        assert time.monotonic() < deadline, message() if callable(message) else message
        time.sleep(0.3)
    return found
