"""Containers of a stack under test by their names, because a call of `docker compose` takes up to a second."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable

__all__ = ["address", "docker", "fetch", "pause", "read_metric", "wait_until"]


def docker(*args: str) -> str:
    """Runs a Docker command, and returns its standard output and error in one."""
    done = subprocess.run(["docker", *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    return done.stdout


def pause(container: str) -> None:
    """Runs `docker pause`, with retries: with cgroup v1, freezing a busy container sometimes fails."""
    for _ in range(20):
        if subprocess.run(["docker", "pause", container], capture_output=True).returncode == 0:
            return
        time.sleep(1)
    docker("pause", container)


def address(container: str, network: str = "default") -> str:
    """Returns the container's address in the stack's `network`."""
    networks = json.loads(docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", container))
    (found,) = (one["IPAddress"] for name, one in networks.items() if name.endswith(f"_{network}"))
    return str(found)


def fetch(container: str, port: int, path: str) -> str:
    """Requests a path of a port that the container does not publish."""
    with urllib.request.urlopen(f"http://{address(container)}:{port}{path}", timeout=20) as response:
        text: bytes = response.read()
    return text.decode()


def read_metric(container: str, name: str) -> float:
    """Returns the sum of the series of an engine whose names start with `name`."""
    text = fetch(container, 8000, "/metrics")
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def wait_until(check: Callable[[], bool], seconds: float, what: Callable[[], object] | str) -> None:
    """Calls `check` until it returns true. Fails with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.1)
