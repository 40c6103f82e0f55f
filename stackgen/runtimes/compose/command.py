"""The `docker compose` command: found, called, and its failures told in the user's terms."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from stackgen.errors import MachineError, StackgenError
from stackgen.plan import EnvRef, Plan

__all__ = ["compose_command", "has_compose", "run", "validate"]


@cache
def has_compose() -> bool:
    """Whether `docker compose` answers; no engine is needed for that."""
    try:
        return subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def compose_command(folder: Path, env_file: Path | None = None) -> list[str]:
    """The words that address the stack in `folder`."""
    words = ["docker", "compose", "-f", str(folder / "compose.yaml"), "--project-directory", str(folder)]
    return [*words, "--env-file", str(env_file)] if env_file else words


def run(words: Sequence[str], *, input: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """Standard output of a `docker compose` call. Raises MachineError where Docker is missing, StackgenError else."""
    try:
        done = subprocess.run(list(words), input=input, env=env, capture_output=True, text=True)
    except OSError:
        raise MachineError("docker is not installed", "install Docker Engine with the compose plugin") from None
    if done.returncode == 0:
        return done.stdout
    message = done.stderr.strip() or done.stdout.strip()
    if "is not a docker command" in message or "unknown shorthand flag: 'f'" in message:
        raise MachineError("docker compose is missing", "install the docker compose plugin, version 2.24 or newer")
    if "Cannot connect to the Docker daemon" in message:
        raise MachineError("the Docker engine does not answer", "start it, or join the docker group")
    raise StackgenError(f"docker compose: {message}")


def validate(plan: Plan, text: str, folder: Path) -> None:
    """Asks the real Compose whether it takes `text`; the keys are stood in for, as their values don't matter."""
    names = {value.name for service in plan.services for _, value in service.environment if isinstance(value, EnvRef)}
    env = dict(os.environ) | dict.fromkeys(names, "checked")
    base = folder if folder.is_dir() else Path.cwd()
    run(["docker", "compose", "-f", "-", "--project-directory", str(base), "config", "--quiet"], input=text, env=env)
