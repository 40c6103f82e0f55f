"""Run `docker compose`, and report its failures in terms of what the user can fix."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from stackgen.errors import MachineError, StackgenError, StartError
from stackgen.plan import EnvRef, Plan

__all__ = ["compose_command", "compose_error", "has_compose", "run", "validate"]


# cached, because each call starts a process and an installation does not change while a command runs
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
    # without the plugin, docker parses `compose -f` as a flag of its own
    if "is not a docker command" in message or "unknown shorthand flag: 'f'" in message:
        raise MachineError("docker compose is missing", "install the docker compose plugin, version 2.24 or newer")
    if "Cannot connect to the Docker daemon" in message:
        raise MachineError("the Docker engine does not answer", "start the engine, or join the docker group")
    raise StackgenError(f"docker compose: {message}")


def validate(plan: Plan, text: str, folder: Path) -> None:
    """Lets the real Compose parse the Compose file `text`. Raises StackgenError if Compose rejects it."""
    # `${KEY:?}` fails without a value, and before the first `up` there may be no key yet
    names = {value.name for service in plan.services for _, value in service.environment if isinstance(value, EnvRef)}
    env = dict(os.environ) | dict.fromkeys(names, "checked")
    # a new stack has no folder yet
    base = folder if folder.is_dir() else Path.cwd()
    run(["docker", "compose", "-f", "-", "--project-directory", str(base), "config", "--quiet"], input=text, env=env)


def compose_error(output: str) -> StackgenError:
    """Returns the error for a failed `docker compose` call. `output` is all that the call printed, also in the error."""
    # the last lines describe the failure; before them, there is one line of progress for each service
    lines = [line for line in output.strip().splitlines() if line.strip()]
    error = _classify_error("\n".join(f"  | {line}" for line in lines[-6:]), output.lower())
    error.output = output
    return error


def _classify_error(last_lines: str, text: str) -> StackgenError:
    if "port is already allocated" in text or "address already in use" in text:
        return StartError(
            f"a port is already in use\n{last_lines}",
            "stop the program that listens on the port (`ss -ltnp` shows it), or set another `port:`",
        )
    if "could not select device driver" in text:
        return MachineError(
            f"Docker can't give containers access to GPUs\n{last_lines}",
            "install the NVIDIA container toolkit, or set gpu_driver: cdi",
        )
    if "required variable" in text or "is missing a value" in text:
        return StackgenError(f"a key is missing in .env\n{last_lines}", "`stackgen init` writes a .env with a new key")
    if "cannot connect to the docker daemon" in text:
        return MachineError("the Docker engine does not answer", "start the engine, or join the docker group")
    if any(part in text for part in ("pull access denied", "manifest unknown", "no such host", "failed to resolve")):
        return MachineError(
            f"an image can't be pulled\n{last_lines}",
            "check the image's name and that this machine can reach the registry, or set `image:`",
        )
    return StartError(
        f"docker compose could not start the stack\n{last_lines}",
        "run `stackgen status` and `stackgen logs` for details",
    )
