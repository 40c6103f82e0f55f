"""The versions of stackgen, Docker Engine and Compose."""

from __future__ import annotations

import json
import subprocess

from stackgen import __version__

__all__ = ["collect_versions"]


def collect_versions() -> dict[str, str]:
    """The versions of stackgen, Docker Engine and Compose, for a report. Programs that don't answer are left out."""
    found = {"stackgen": __version__}
    for name, command in (("docker", ("docker", "version", "--format", "{{json .}}")),
                        ("compose", ("docker", "compose", "version", "--short"))):  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            continue
        version = done.stdout.strip()
        if name == "docker" and version:
            parsed = json.loads(version)
            # Server is null if the engine does not answer
            version = str((parsed.get("Server") or parsed.get("Client") or {}).get("Version", ""))
        if version:
            found[name] = version
    return found
