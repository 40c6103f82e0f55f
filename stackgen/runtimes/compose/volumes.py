"""Volumes that all stacks share, for weights and compile caches: create them, find their users, remove them.

The Compose file declares them `external`, so `docker compose down --volumes` keeps them (docs/decisions/storage.md).
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stackgen.errors import MachineError, StackgenError
from stackgen.plan import Plan
from stackgen.render.read import read_regular
from stackgen.runtimes.compose.command import START_DOCKER
from stackgen.stack.yaml_text import YAML_ERRORS, read_value

__all__ = [
    "SharedVolume", "create_shared_volumes", "create_volumes", "find_code_users", "find_own_volumes", "find_shared_keys",
    "list_shared_volumes", "remove_shared_volume",
]  # fmt: skip

LABEL = "stackgen.shared"
PROJECT = "com.docker.compose.project"
TIMEOUT = 30


@dataclass(frozen=True, slots=True)
class SharedVolume:
    """A volume that stackgen shares between stacks.

    `users` maps each stack that has a container with this volume, also a stopped one, to its folder; a container
    without a stack has the key `container NAME` and the folder "".
    """

    name: str
    users: dict[str, str] = field(default_factory=dict)


def create_shared_volumes(plan: Plan, timeout: int = TIMEOUT) -> None:
    """Creates the shared volumes that do not exist yet. Raises MachineError if Docker takes longer than `timeout` s."""
    create_volumes(plan.shared_volumes, timeout)


def create_volumes(names: Sequence[str], timeout: int = TIMEOUT) -> None:
    """Creates the volumes `names` as those that all stacks share, unless they exist."""
    for name in names:
        # Docker returns an existing volume unchanged, so weights of earlier versions are kept
        _docker("volume", "create", "--label", f"{LABEL}=true", name, timeout=timeout)


def list_shared_volumes() -> list[SharedVolume]:
    """Returns the shared volumes of this machine, with their users. Raises MachineError if Docker does not answer."""
    names = sorted(name for name, is_shared in _list_volumes() if is_shared)
    return [SharedVolume(name, _find_users(name)) for name in names]


def remove_shared_volume(name: str) -> None:
    """Removes a volume with everything in it. Raises StackgenError if a container uses it."""
    _docker("volume", "rm", name)


def find_own_volumes(project: str) -> set[str]:
    """Returns the names of the volumes that Compose has created for `project`, without the shared ones."""
    return {name for name, is_shared in _list_volumes(f"label={PROJECT}={project}") if not is_shared}


def find_shared_keys(folder: Path) -> dict[str, str]:
    """Returns the shared volumes in `folder/compose.yaml`, as key -> name, also in a file of an earlier version.

    Up to 0.2.0, stackgen declared them as volumes of the stack. Returns {} if the file can't be read.
    """
    try:
        data = read_value(read_regular(folder / "compose.yaml").decode("utf-8", "replace"))
        volumes = data["volumes"].items()
        found = {key: (value or {}).get("name", key) for key, value in volumes if _is_shared_key(key)}
        return found | {key: value.get("name", key) for key, value in volumes if value and value.get("external")}
    # Compose reports what is wrong with the file
    except (OSError, *YAML_ERRORS):
        return {}


def _is_shared_key(key: str) -> bool:
    # the keys of the weights and of vLLM's compile caches in every version's Compose file
    return key == "models" or (key.startswith("vllm-") and key.endswith("cache"))


def _list_volumes(*filters: str) -> list[tuple[str, bool]]:
    """The volumes on this machine, each as (name, whether stackgen shares it between stacks)."""
    labels = (LABEL, f"{PROJECT}", "com.docker.compose.volume")
    rows = _list(
        "volume", "ls", *(part for one in filters for part in ("--filter", one)), fields=("Name",), labels=labels
    )
    return [(name, _is_shared(name, label, project, key)) for name, label, project, key in rows]


def _is_shared(name: str, label: str, project: str, key: str) -> bool:
    # up to 0.2.0, Compose created these volumes; Compose's own default name shows a volume of another program
    created_by_compose = _is_shared_key(key) and name != f"{project}_{key}"
    return bool(label) or created_by_compose or (name.startswith("stackgen-") and _is_shared_key(name[9:]))


def _find_users(volume: str) -> dict[str, str]:
    # stopped containers too, because their stacks need the weights at the next start
    labels = (PROJECT, f"{PROJECT}.working_dir")
    rows = _list("ps", "--all", "--filter", f"volume={volume}", fields=("Names",), labels=labels)
    return {project or f"container {container}": folder for container, project, folder in rows}


def find_code_users(volume: str) -> dict[str, set[str]]:
    """The folders of compiled code that containers with the volume use, each with the stacks or containers.

    A container keeps its folder until it is replaced, also after a change of its stack file.
    """
    containers = _docker("ps", "--all", "--quiet", "--filter", f"volume={volume}").split()
    if not containers:
        return {}
    form = '{{index .Config.Labels "' + PROJECT + '"}}\t{{.Name}}\t{{range .Config.Env}}{{println .}}{{end}}\t'
    found: dict[str, set[str]] = {}
    for row in _docker("inspect", "--type", "container", "--format", form, *containers).split("\t\n"):
        project, name, environment = [*row.split("\t", 2), "", ""][:3]
        for line in environment.splitlines():
            if line.startswith("VLLM_CACHE_ROOT="):
                user = project if project and project != "<no value>" else f"container {name.lstrip('/')}"
                found.setdefault(line.rstrip("/").rpartition("/")[2], set()).add(user)
    return found


def _list(*args: str, fields: Sequence[str], labels: Sequence[str]) -> list[list[str]]:
    """The rows of a list of Docker: the values of `fields`, then of `labels`."""
    # not {{json .}}, which joins the labels with commas, and a folder's name may contain one
    columns = [f"{{{{.{name}}}}}" for name in fields] + [f'{{{{.Label "{name}"}}}}' for name in labels]
    return [line.split("\t") for line in _docker(*args, "--format", "\t".join(columns)).splitlines()]


def _docker(*args: str, timeout: int = TIMEOUT) -> str:
    what = f"`docker {' '.join(args[:2])}`"
    try:
        done = subprocess.run(["docker", *args], capture_output=True, text=True, timeout=timeout)
    except OSError:
        raise MachineError("docker is not installed", "install Docker Engine with the compose plugin") from None
    except subprocess.TimeoutExpired:
        raise MachineError(f"{what} did not answer within {timeout} s", START_DOCKER) from None
    if done.returncode == 0:
        return done.stdout
    message = (done.stderr.strip().splitlines() or ["without a message"])[-1]
    # the CLI has one message for an engine that is down, and one for a socket of another user
    if "Docker daemon" in message:
        raise MachineError(f"the Docker engine does not answer: {message}", START_DOCKER)
    raise StackgenError(f"{what} failed: {message}")
