"""Run `docker compose`, and report its failures in terms of what the user can fix."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from stackgen.errors import MachineError, StackgenError
from stackgen.plan import EnvRef, Plan

__all__ = ["compose_command", "has_compose", "run", "validate"]


# an installation does not change while a command runs, and each call costs a process
@cache
def has_compose() -> bool:
    """Whether `docker compose` is installed. Needs no running Docker engine."""
    try:
        return subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def compose_command(folder: Path, env_file: Path | None = None) -> list[str]:
    """Returns the arguments that address the stack in `folder`; append the subcommand."""
    args = ["docker", "compose", "-f", str(folder / "compose.yaml"), "--project-directory", str(folder)]
    return [*args, "--env-file", str(env_file)] if env_file else args


def run(args: Sequence[str], *, input: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """Returns the standard output of a `docker compose` call.

    Raises MachineError if Docker or its compose plugin is missing or the engine does not answer, StackgenError for any
    other failure.
    """
    try:
        done = subprocess.run(list(args), input=input, env=env, capture_output=True, text=True)
    except OSError:
        raise MachineError("docker is not installed", "install Docker Engine with the compose plugin") from None
    if done.returncode == 0:
        return done.stdout
    message = done.stderr.strip() or done.stdout.strip()
    # without the plugin, docker takes `compose -f` for a flag of its own
    if "is not a docker command" in message or "unknown shorthand flag: 'f'" in message:
        raise MachineError("docker compose is missing", "install the docker compose plugin, version 2.24 or newer")
    if "Cannot connect to the Docker daemon" in message:
        raise MachineError("the Docker engine does not answer", "start it, or join the docker group")
    raise StackgenError(f"docker compose: {message}")


def validate(plan: Plan, text: str, folder: Path) -> None:
    """Lets the real Compose parse the Compose file `text`. Raises StackgenError if Compose rejects it."""
    # `${KEY:?}` fails without a value, and before the first `up` there may be no key yet
    names = {value.name for service in plan.services for _, value in service.environment if isinstance(value, EnvRef)}
    env = dict(os.environ) | dict.fromkeys(names, "checked")
    # a new stack has no folder yet
    base = folder if folder.is_dir() else Path.cwd()
    run(["docker", "compose", "-f", "-", "--project-directory", str(base), "config", "--quiet"], input=text, env=env)
