"""What runs, held against what is rendered: which services Compose would make anew, and the files that made the old.

Compose writes a hash of a service's definition on its container, and makes it anew where `docker compose config --hash`
says another (docker/compose v2.40, pkg/compose/convergence.go and hash.go; `build`, `depends_on` and the pull policy
don't count). The image is compared besides, as a tag can have moved.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen.errors import StackgenError
from stackgen.plan import Plan
from stackgen.render.write import LOCK, write_atomically
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.command import run
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.lifecycle import _client as connect
from stackgen.runtimes.rollout.gpu_handover import engine_of, gpu_ids
from stackgen.stack.envfile import API_KEY
from stackgen.targets.compose import COMPOSE_FILE

__all__ = [
    "Container", "Files", "containers", "differing", "holding", "one_at_a_time", "previous_files", "remember",
    "restore",
]  # fmt: skip

APPLIED = ".stackgen.applied.json"
PREFIX = "com.docker.compose."

# text of each file by its path in the stack's folder; None: there was none
Files = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Container:
    """A service's container: Compose's hash of its definition, its image, and the GPUs it was given."""

    service: str
    id: str
    hash: str
    image: str
    running: bool
    complete: bool
    gpus: frozenset[str]
    environment: tuple[str, ...]


def containers(name: str) -> dict[str, Container]:
    """Those of the stack `name` by service. Raises MachineError where the Docker engine does not answer."""
    api, found = connect().api, {}
    for one in api.containers(all=True, filters={"label": [f"{PREFIX}project={name}", f"{PREFIX}oneoff=False"]}):
        try:
            data = api.inspect_container(one["Id"])
        except sdk().errors.NotFound:
            continue
        service, state = one["Labels"].get(f"{PREFIX}service", ""), data["State"]
        found[service] = Container(
            service, one["Id"], one["Labels"].get(f"{PREFIX}config-hash", ""), data["Image"],
            state["Status"] == "running", state["Status"] == "exited" and state["ExitCode"] == 0,
            _gpus(data), tuple(data["Config"].get("Env") or ()),
        )  # fmt: skip
    return found


def holding(running: Mapping[str, Container]) -> dict[str, frozenset[str]]:
    """The GPUs that engines hold now, by service."""
    return {name: one.gpus for name, one in running.items() if one.running and engine_of(name)}


def differing(plan: Plan, folder: Path, text: str, running: Mapping[str, Container]) -> list[str]:
    """The services of `running` that the Compose file `text` would make anew, in the order of the plan."""
    wanted = _hashes(folder, text)
    if SERVICE in wanted and SERVICE in running:
        # keys.map has taken the place of .env's key, so a new one there is no reason for a new gateway
        wanted[SERVICE] = _hashes(folder, text, _own_key(running[SERVICE])).get(SERVICE, "")
    images = _images(plan)
    return [
        service.name
        for service in plan.services
        if (one := running.get(service.name))
        and (one.hash != wanted.get(service.name, one.hash) or one.image != images.get(service.image, one.image))
    ]


def previous_files(
    folder: Path, before: Files, changed: Sequence[str], running: Mapping[str, Container]
) -> Files | None:
    """The files that the containers `changed` were made from: `before` (those on disk), or those last applied.

    None where neither are: rendered and started by hand, say.
    """
    applied = _applied(folder)
    for files in (before, applied):
        text = files.get(COMPOSE_FILE) or (_text(folder / COMPOSE_FILE) if files is before else None)
        if text is None:
            continue
        # a key in .env may be newer than the containers that hold it
        keys = [_own_key(running[SERVICE])] if SERVICE in running else []
        hashes = [_hashes(folder, text, key) for key in (*keys, {})]
        if all(any(one.get(name) == running[name].hash for one in hashes) for name in changed):
            return files
    return None


def remember(folder: Path) -> None:
    """Keeps the rendered files, now that they are known to work: a later update can go back to them."""
    lines = (_text(folder / LOCK) or "").splitlines()
    paths = [LOCK, *(line.partition("  ")[2] for line in lines)]
    files = {path: text for path in paths if (text := _text(folder / path)) is not None}
    if files:
        write_atomically(folder / APPLIED, json.dumps(files), mode=0o600)


def restore(folder: Path, files: Files) -> None:
    """Puts `files` back."""
    for path, text in files.items():
        if text is None:
            (folder / path).unlink(missing_ok=True)
        else:
            mode = (folder / path).stat().st_mode & 0o777 if (folder / path).exists() else 0o644
            write_atomically(folder / path, text, mode)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Two updates at once would undo each other's work: the second is refused."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackgenError("another `stackgen update` or `scale` works on this stack", "wait for it") from None
        yield
    finally:
        os.close(handle)


def _gpus(data: dict[str, Any]) -> frozenset[str]:
    host = data["HostConfig"]
    given = [gpu_ids(one.get("DeviceIDs") or (), one.get("Count") or 0) for one in host.get("DeviceRequests") or ()]
    # AMD's are devices that every container gets all of; a variable tells which it uses
    amd = any(one.get("PathInContainer") == "/dev/kfd" for one in host.get("Devices") or ())
    visible = dict(line.partition("=")[::2] for line in data["Config"].get("Env") or ()).get("ROCR_VISIBLE_DEVICES")
    if amd:
        given.append(gpu_ids(visible.split(",")) if visible else gpu_ids((), -1))
    return frozenset().union(*given)


def _own_key(gateway: Container) -> dict[str, str]:
    return dict(line.split("=", 1) for line in gateway.environment if line.startswith(f"{API_KEY}="))


def _hashes(folder: Path, text: str, env: Mapping[str, str] | None = None) -> dict[str, str]:
    words = ["docker", "compose", "-f", "-", "--project-directory", str(folder), "config", "--hash", "*"]
    said = run(words, input=text, env={**os.environ, **(env or {})})
    return dict(line.split() for line in said.splitlines() if len(line.split()) == 2)


def _images(plan: Plan) -> dict[str, str]:
    """The ids of the plan's images that are on this machine."""
    wanted = {service.image for service in plan.services}
    found: list[dict[str, Any]] = connect().api.images()
    return {tag: image["Id"] for image in found for tag in image["RepoTags"] or () if tag in wanted}


def _applied(folder: Path) -> dict[str, str | None]:
    try:
        data = json.loads((folder / APPLIED).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
