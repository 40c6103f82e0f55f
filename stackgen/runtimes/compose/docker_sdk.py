"""The Docker SDK for Python, imported on first use."""

from __future__ import annotations

import os
import socket
from typing import Any

__all__ = ["check_socket", "sdk"]


def check_socket(timeout: float) -> None:
    """Raises OSError if the engine's local socket refuses a connection, or does not accept one within `timeout` s."""
    # called before the SDK, which would leak its half-open socket after a refusal
    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(host.removeprefix("unix://"))


def sdk() -> Any:
    """Returns the module `docker` with `docker.errors` loaded; typed as Any, because it ships no types."""
    # docker and requests take 0.1 s to import, and a check of a URL needs neither
    import docker
    import docker.errors

    return docker
