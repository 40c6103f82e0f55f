"""Compare what runs with what is rendered, and keep the files that created the running containers.

Compose stores a hash of each service's definition on its container, and recreates the container if
`docker compose config --hash` differs (docker/compose v2.40, pkg/compose/convergence.go and hash.go; `build`,
`depends_on` and the pull policy don't count). The image id is compared as well, because a tag can move.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen.plan import Plan
from stackgen.render.read import read_regular
from stackgen.render.write import LOCK, write_atomically
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.command import override_arguments, run
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.lifecycle import connect
from stackgen.runtimes.rollout.gpu_handover import engine_of, gpu_ids
from stackgen.stack.envfile import API_KEY
from stackgen.targets.compose import COMPOSE_FILE

__all__ = [
    "Container", "Files", "find_changed_services", "find_containers", "find_previous_files", "gpus_in_use",
    "restore_files", "save_applied_files",
]  # fmt: skip

# a `render` before the update overwrites the files that created the containers; a rollback finds these files here
APPLIED_FILE = ".stackgen.applied.json"
LABEL_PREFIX = "com.docker.compose."

# text of each file by its path in the stack's folder; None: the file did not exist
Files = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Container:
    """A service's container: Compose's hash of its definition, its image id, and the ids of its GPUs.

    `completed`: it exited with 0. `environment` contains `NAME=value` entries.
    """

    service: str
    id: str
    hash: str
    image: str
    running: bool
    completed: bool
    gpus: frozenset[str]
    environment: tuple[str, ...]


def find_containers(name: str) -> dict[str, Container]:
    """Returns the containers of the stack `name` by service. Raises MachineError if Docker does not answer."""
    api, found = connect().api, {}
    # a one-off container (`docker compose run`) is not a replica
    labels = [f"{LABEL_PREFIX}project={name}", f"{LABEL_PREFIX}oneoff=False"]
    for row in api.containers(all=True, filters={"label": labels}):
        try:
            data = api.inspect_container(row["Id"])
        # the container was removed between the two calls
        except sdk().errors.NotFound:
            continue
        service, state = row["Labels"].get(f"{LABEL_PREFIX}service", ""), data["State"]
        found[service] = Container(
            service=service,
            id=row["Id"],
            hash=row["Labels"].get(f"{LABEL_PREFIX}config-hash", ""),
            image=data["Image"],
            running=state["Status"] == "running",
            completed=state["Status"] == "exited" and state["ExitCode"] == 0,
            gpus=_container_gpus(data),
            environment=tuple(data["Config"].get("Env") or ()),
        )
    return found


def gpus_in_use(running: Mapping[str, Container]) -> dict[str, frozenset[str]]:
    """Returns the ids of the GPUs that running engines use, by service."""
    return {name: container.gpus for name, container in running.items() if container.running and engine_of(name)}


def find_changed_services(plan: Plan, folder: Path, text: str, running: Mapping[str, Container]) -> list[str]:
    """Returns the services of `running` that the Compose file `text` would recreate, in the order of the plan."""
    wanted = _config_hashes(folder, text)
    if SERVICE in wanted and SERVICE in running:
        # keys.map replaces the key in the gateway's environment, so a rotated key must not recreate the gateway
        wanted[SERVICE] = _config_hashes(folder, text, _env_key(running[SERVICE])).get(SERVICE, "")
    images = _image_ids(plan)
    return [
        service.name
        for service in plan.services
        if (now := running.get(service.name))
        # an image that is not on this machine yet can't be compared
        and (now.hash != wanted.get(service.name, now.hash) or now.image != images.get(service.image, now.image))
    ]


def find_previous_files(
    folder: Path, before: Files, changed: Sequence[str], running: Mapping[str, Container]
) -> Files | None:
    """Returns the files that created the containers `changed`: `before` (those on disk), or those last applied.

    None if neither matches, for example if the stack was rendered and started by hand.
    """
    applied = _load_applied_files(folder)
    for files in (before, applied):
        text = files.get(COMPOSE_FILE) or (_read_text(folder / COMPOSE_FILE) if files is before else None)
        if text is None:
            continue
        # .env may contain a newer key than the containers
        keys = [_env_key(running[SERVICE])] if SERVICE in running else []
        hashes = [_config_hashes(folder, text, key) for key in (*keys, {})]
        if all(any(one.get(name) == running[name].hash for one in hashes) for name in changed):
            return files
    return None


def save_applied_files(folder: Path) -> None:
    """Saves the rendered files once they are known to work, so that a later update can roll back to them."""
    lines = (_read_text(folder / LOCK) or "").splitlines()
    # the lock file lists every rendered file
    paths = [LOCK, *(line.partition("  ")[2] for line in lines if not line.startswith("#"))]
    files = {path: text for path in paths if (text := _read_text(folder / path)) is not None}
    if files:
        write_atomically(folder / APPLIED_FILE, json.dumps(files), mode=0o600)


def restore_files(folder: Path, files: Files) -> None:
    """Writes `files` back, and removes those that are None. Modes are kept."""
    for path, text in files.items():
        if text is None:
            (folder / path).unlink(missing_ok=True)
        else:
            # the user may have restricted the mode of stack.yaml
            mode = (folder / path).stat().st_mode & 0o777 if (folder / path).exists() else 0o644
            write_atomically(folder / path, text, mode)


def _container_gpus(data: dict[str, Any]) -> frozenset[str]:
    host = data["HostConfig"]
    gpus = [gpu_ids(one.get("DeviceIDs") or (), one.get("Count") or 0) for one in host.get("DeviceRequests") or ()]
    # every container gets all AMD devices; an environment variable selects the GPUs
    has_amd = any(one.get("PathInContainer") == "/dev/kfd" for one in host.get("Devices") or ())
    visible = dict(line.partition("=")[::2] for line in data["Config"].get("Env") or ()).get("ROCR_VISIBLE_DEVICES")
    if has_amd:
        gpus.append(gpu_ids(visible.split(",")) if visible else gpu_ids((), -1))
    return frozenset().union(*gpus)


def _env_key(gateway: Container) -> dict[str, str]:
    """The key that the gateway was started with, as an environment."""
    return dict(line.split("=", 1) for line in gateway.environment if line.startswith(f"{API_KEY}="))


def _config_hashes(folder: Path, text: str, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Compose's hash of each service in `text`; `env` overrides the environment, which overrides .env."""
    start = ["docker", "compose", "-f", "-", *override_arguments(folder), "--project-directory", str(folder)]
    args = [*start, "config", "--hash", "*"]
    output = run(args, input=text, env={**os.environ, **(env or {})})
    return dict(line.split() for line in output.splitlines() if len(line.split()) == 2)


def _image_ids(plan: Plan) -> dict[str, str]:
    """The ids of the plan's images that are on this machine, by tag."""
    wanted = {service.image for service in plan.services}
    images: list[dict[str, Any]] = connect().api.images()
    return {tag: image["Id"] for image in images for tag in image["RepoTags"] or () if tag in wanted}


def _load_applied_files(folder: Path) -> dict[str, str | None]:
    # only a rollback needs these files, so a broken file is no error
    try:
        data = json.loads(read_regular(folder / APPLIED_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _read_text(path: Path) -> str | None:
    try:
        return read_regular(path).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
