"""Where this machine has an HTTP proxy: the environment, and Docker's client.

Docker's client passes `proxies` of its config.json to every container and build that it creates. Source:
docs.docker.com, "Use a proxy server with the Docker CLI". The daemon's own proxy applies to pulls only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["CLIENT_CONFIG", "has_daemon_proxy", "read_proxy_facts"]

NAMES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
CLIENT_CONFIG = "config.json of Docker's client"


def has_daemon_proxy(info: dict[str, Any]) -> bool:
    """Whether the daemon uses a proxy, from `docker info`."""
    # Docker Desktop always reports its own proxy, http.docker.internal:3128
    return any("docker.internal" not in one for one in (info.get("HttpProxy"), info.get("HttpsProxy")) if one)


def read_proxy_facts() -> dict[str, Any]:
    """The fact `proxies` of `Host`. Only the places, because a proxy's URL may contain a password."""
    found = [name for name in NAMES if os.environ.get(name)]
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker", "config.json")
    try:
        settings = json.loads(path.read_text("utf-8"))["proxies"]
        if any(one.get("httpProxy") or one.get("httpsProxy") for one in settings.values()):
            found.append(CLIENT_CONFIG)
    # most machines have no such file, or no `proxies` in it
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {"proxies": tuple(found)}
