"""The Docker SDK for Python, imported on first use."""

from __future__ import annotations

from typing import Any

__all__ = ["sdk"]


def sdk() -> Any:
    """Returns the module `docker` with `docker.errors` loaded; typed as Any, because it ships no types."""
    # docker and requests take 0.1 s to import, and a check of a URL needs neither
    import docker
    import docker.errors

    return docker
