"""Run `docker compose`, and report its failures in terms of what the user can fix."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from stackgen.errors import MachineError, StackgenError, StartError
from stackgen.plan import EnvRef, Plan
from stackgen.render.read import read_regular
from stackgen.stack.envfile import GENERATED_SECRETS, read_env

__all__ = [
    "START_DOCKER", "compose_command", "compose_error", "down", "has_compose", "logs", "override_arguments", "run",
    "validate",
]  # fmt: skip

START_DOCKER = "start the Docker engine, or add your user to the group `docker`"


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
    args += override_arguments(folder)
    return [*args, "--env-file", str(env_file)] if env_file else args


def override_arguments(folder: Path) -> list[str]:
    """Returns the flag for the override file that Compose reads if no file is named; empty without one.

    Names and order: compose-spec/compose-go 2, cli/options.go, `DefaultOverrideFileNames`.
    """
    names = ("compose.override.yml", "compose.override.yaml", "docker-compose.override.yml",
             "docker-compose.override.yaml")  # fmt: skip
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    return ["-f", str(found)] if found else []


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
        raise MachineError("the Docker engine does not answer", START_DOCKER)
    raise StackgenError(f"docker compose: {message}")


def validate(plan: Plan, text: str, folder: Path) -> None:
    """Lets the real Compose parse the Compose file `text`. Raises StackgenError if Compose rejects it."""
    # `${KEY:?}` fails without a value, and before the first `up` there may be no key yet
    names = {value.name for service in plan.services for _, value in service.environment if isinstance(value, EnvRef)}
    env = dict(os.environ) | dict.fromkeys(names, "checked")
    # a new stack has no folder yet
    base = folder if folder.is_dir() else Path.cwd()
    run(["docker", "compose", "-f", "-", "--project-directory", str(base), "config", "--quiet"], input=text, env=env)


def down(folder: Path, volumes: bool = False, shared: Mapping[str, str] | None = None) -> None:
    """Stops and removes containers and networks; the stack's own volumes only if `volumes` is set.

    `shared` are the volumes (key -> name) that must stay, although a file of an earlier version declares them as its
    own.
    """
    args, text = compose_command(folder), None
    if volumes and shared:
        args += ["-f", "-"]
        text = json.dumps({"volumes": {key: {"name": name, "external": True} for key, name in shared.items()}})
    # orphans are services of an earlier stack.yaml, under the same project name
    args += ["down", "--remove-orphans", *(["--volumes"] if volumes else [])]
    run(args, input=text, env=_compose_env(folder))


def logs(
    folder: Path, services: tuple[str, ...], follow: bool, tail: str, on_line: Callable[[str, str], None] | None = None
) -> int:
    """Runs `docker compose logs` in this terminal and returns its exit code. Raises MachineError without Docker.

    With `on_line`, passes it the container (`SERVICE-1`) and the text of each line, instead of printing the line.
    """
    args = [*compose_command(folder), "logs", "--tail", tail, *(["--follow"] if follow else []), *services]
    try:
        if on_line is None:
            return subprocess.run(args, env=_compose_env(folder)).returncode
        # docker/compose v2.40, cmd/formatter/logs.go: the name, padded to a common width, and ` | `
        with subprocess.Popen([*args, "--no-color"], env=_compose_env(folder), stdout=subprocess.PIPE) as process:
            for line in process.stdout or ():
                name, _, text = line.decode("utf-8", "replace").rstrip("\r\n").partition("| ")
                on_line(name.rstrip(), text)
        return process.returncode
    except OSError:
        raise MachineError("docker is not installed", "install Docker Engine with the compose plugin") from None


def _compose_env(folder: Path) -> dict[str, str]:
    # Compose refuses to read a file whose ${KEY:?} is missing, but stopping a stack needs no key
    try:
        names = re.findall(r"\$\{([A-Za-z_]\w*):\?", read_regular(folder / "compose.yaml").decode("utf-8", "replace"))
    except OSError:
        names = []
    return dict.fromkeys(names, "-") | read_env(folder) | dict(os.environ)


def compose_error(output: str) -> StackgenError:
    """Returns the error for a failed `docker compose` call. `output` is what the call printed, also in the error."""
    # the last lines describe the failure; before them, there is one line of progress for each service
    lines = [line for line in output.strip().splitlines() if line.strip()]
    error = _classify_error("".join(f"\n  | {line}" for line in lines[-6:]), output.lower())
    error.output = output
    return error


def _classify_error(last_lines: str, text: str) -> StackgenError:
    if "port is already allocated" in text or "address already in use" in text:
        return StartError(
            f"a port is already in use{last_lines}",
            "stop the program that listens on the port (`ss -ltnp` shows it), or set another `port:`",
        )
    if "could not select device driver" in text:
        return MachineError(
            f"Docker can't give containers access to GPUs{last_lines}",
            "install the NVIDIA container toolkit, or set `gpu_driver: cdi`",
        )
    if "required variable" in text or "is missing a value" in text:
        names = re.findall(r"required variable (\w+)", text)
        own = not names or names[0].upper() in GENERATED_SECRETS
        hint = "run `stackgen render`, which writes a .env with a new key" if own else f"set {names[0].upper()} in .env"
        return StackgenError(f"a key is missing in .env{last_lines}", hint)
    if "external volume" in text and "not found" in text:
        return StackgenError(
            f"a volume that all stacks share does not exist{last_lines}", "run `stackgen render`, which creates the "
                                                                          "volume"
        )
    if "cannot connect to the docker daemon" in text:
        return MachineError("the Docker engine does not answer", START_DOCKER)
    if any(part in text for part in ("pull access denied", "manifest unknown", "no such host", "failed to resolve")):
        return MachineError(
            f"an image can't be pulled{last_lines}",
            "check the image's name and this machine's connection to the registry. To use another image, set `image:`",
        )
    return StartError(
        f"docker compose could not start the stack{last_lines}",
        "run `stackgen status` and `stackgen logs` for details",
    )
