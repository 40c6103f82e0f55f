"""The stacks on this machine: those with containers or local processes, and those that this user has rendered.

Containers without a known folder are stackgen's if they have a mount at /stackgen, as every engine and gateway has.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stackgen.errors import MachineError, StackgenError
from stackgen.plan import GpuRequest
from stackgen.render.read import STACK_FILES
from stackgen.runtimes.compose.lifecycle import connect
from stackgen.runtimes.compose.project import PROJECT_LABEL
from stackgen.runtimes.process.lifecycle import process_status
from stackgen.runtimes.process.procfs import STATE_DIR, is_alive, read_state
from stackgen.stack.folder import Stack, open_stack
from stackgen.stack.registry import known_stacks
from stackgen.stack.uses import StackUse, find_use
from stackgen.targets.process import hub_dir

__all__ = ["Inventory", "ServiceRow", "StackEntry", "describe_gpus", "list_stacks", "search_stacks", "summarize"]

FOLDER_LABEL, SERVICE_LABEL = "com.docker.compose.project.working_dir", "com.docker.compose.service"
# Docker's own text in its list of containers: `Up 3 minutes (healthy)`, `Exited (137) 2 hours ago`
HEALTH = re.compile(r"\((?:health: )?(healthy|unhealthy|starting)\)")
EXIT = re.compile(r"^Exited \((\d+)\)")
# how deep `list FOLDER` looks below a folder, and folders that never contain stacks of their own
DEPTH, SKIPPED = 3, {"node_modules", "__pycache__", "models", "gateway", "monitoring", "scripts"}


# of a stack that keeps nothing on this machine
ELSEWHERE = StackUse("", "", frozenset())


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """A service: Docker's `state` or `absent`, its `health` ("" without a check), and its exit code."""

    service: str
    role: str
    state: str
    health: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class StackEntry:
    """A stack on this machine.

    - `state`: up, starting, unhealthy, stopped (its containers exist), down, or unknown.
    - `reason`: why the stack is not up, or why its stack file can't be read.
    - `use`: its store of weights; None if its stack file can't be read.
    - `caches`: the volumes of compiled code that it shares with other stacks.
    - `gpus`: the GPUs of each service that reserves some.
    """

    name: str
    folder: str
    runtime: str
    state: str
    services: tuple[ServiceRow, ...] = ()
    reason: str = ""
    urls: tuple[str, ...] = ()
    gpus: tuple[tuple[str, GpuRequest], ...] = ()
    use: StackUse | None = None
    own_volumes: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """All stacks, and why containers are missing from the list (`docker_error`, "" if Docker has answered)."""

    stacks: tuple[StackEntry, ...]
    docker_error: str = ""


def list_stacks(folders: Iterable[Path] = ()) -> Inventory:
    """All stacks on this machine, and those in `folders`, sorted by name."""
    error, rows = "", list[dict[str, Any]]()
    try:
        rows = connect().api.containers(all=True, filters={"label": [PROJECT_LABEL]})
    except MachineError as problem:
        error = problem.message
    supervised = {os.path.realpath(one) for one in _supervised()}
    known = dict.fromkeys([*(os.path.realpath(one) for one in (*known_stacks(), *folders)), *sorted(supervised)])
    projects: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        labels = row.get("Labels") or {}
        # a one-off container (`docker compose run`) is not a service's container
        if labels.get("com.docker.compose.oneoff") != "True":
            key = (labels.get(PROJECT_LABEL, ""), os.path.realpath(labels.get(FOLDER_LABEL) or "/"))
            projects.setdefault(key, []).append(row)
    found = []
    for (project, folder), group in projects.items():
        if folder in known or _is_ours(folder, group):
            known.pop(folder, None)
            found.append(_entry(Path(folder), project, group))
    found += [_entry(Path(folder), "", (), error, folder in supervised) for folder in known]
    return Inventory(tuple(sorted(found, key=lambda one: (one.name, one.folder))), error)


def search_stacks(folder: Path) -> Iterator[Path]:
    """The folders with a stack file at or below `folder`, at most `DEPTH` levels deep."""
    base = len(folder.resolve().parts)
    for place, names, files in os.walk(folder):
        depth = len(Path(place).resolve().parts) - base
        # hidden folders are state of stackgen and of other programs
        names[:] = sorted(one for one in names if depth < DEPTH and not one.startswith(".") and one not in SKIPPED)
        if any(one in files for one in STACK_FILES):
            yield Path(place)


def summarize(rows: Sequence[ServiceRow], supervised: bool = True) -> tuple[str, str]:
    """The state of a stack and the reason, from the states of its services."""
    bad = [row for row in rows if not _is_up(row)]
    if not bad and supervised:
        return "up", ""
    if all(row.state == "absent" for row in rows):
        return "down", ""
    # an exited download is complete, so it does not make a stopped stack half running
    if not any(row.state in ("running", "restarting", "paused", "waiting") for row in rows):
        return "stopped", ", ".join(f"{row.service} exited with {row.exit_code}" for row in bad if row.exit_code)
    text = ", ".join(f"{row.service} is {_describe(row)}" for row in bad)
    waits = all(row.health == "starting" or row.state in ("absent", "created", "waiting") for row in bad)
    # a container that Compose has not started yet waits for another one
    starts = waits and any(row.health == "starting" or row.state in ("created", "waiting") for row in bad)
    return ("starting" if starts else "unhealthy"), text or "its supervisor was killed"


def _is_up(row: ServiceRow) -> bool:
    if row.role == "download":
        return row.state == "running" or row.exit_code == 0
    return row.state == "running" and row.health in ("healthy", "")


def _describe(row: ServiceRow) -> str:
    if row.state == "running" and row.health:
        return row.health
    return row.state if row.exit_code is None else f"{row.state} ({row.exit_code})"


def describe_gpus(request: GpuRequest) -> str:
    """A reservation for a table: `0,1`, `all`, or `2 of any`."""
    if request.ids:
        return ",".join(one.rpartition("=")[2] for one in request.ids)
    # Docker gives the first GPUs for a count, the same ones to every container
    return "all" if request.count < 0 else f"first {request.count}"


def _entry(
    folder: Path, project: str, group: Sequence[dict[str, Any]], docker_error: str = "", is_supervised: bool = False
) -> StackEntry:
    stack, reason = _open(folder)
    name = stack.plan.name if stack else project or folder.name
    if stack is None:
        rows = tuple(_to_row(one, "") for one in group)
        state, runtime = summarize(rows)[0] if rows else "unknown", "compose" if rows else ""
        # another user's stack, whose folder this user can't read
        if not rows and is_supervised:
            state, runtime = "up", "process"
        return StackEntry(project or folder.name, str(folder), runtime, state, rows, reason)
    urls = tuple(dict.fromkeys(one.base_url for one in stack.plan.endpoints))
    if stack.site.is_cluster and not group:
        # neither its containers, nor its GPUs and weights are on this machine
        why = f"it is in a cluster, and `stackgen status {folder}` shows its state. {_reach(stack)}"
        return StackEntry(name, str(folder), "kubernetes", "unknown", (), why, urls, use=ELSEWHERE)
    gpus = tuple((one.name, one.gpus) for one in stack.plan.services if one.gpus)
    own = tuple(one for _, one in stack.plan.volumes if one not in stack.plan.shared_volumes)
    caches = tuple(one for one in stack.plan.shared_volumes if one != stack.spec.storage.volume)
    runtime, supervised = "compose", True
    by_service = {(one.get("Labels") or {}).get(SERVICE_LABEL, ""): one for one in group}
    rows = tuple(
        _to_row(by_service[one.name], one.role) if one.name in by_service else ServiceRow(one.name, one.role, "absent")
        for one in stack.plan.services
    )
    if not group and (processes := _process_rows(folder)) is not None:
        runtime, (rows, supervised) = "process", processes
    state, why = summarize(rows, supervised)
    use = find_use(stack)
    # local processes don't use the volume
    if runtime == "process" and use.volume:
        use = replace(use, volume="", path=str(hub_dir().resolve()))
        caches = ()
    # without an answer, the containers may well run
    if docker_error and runtime == "compose":
        state, why, rows = "unknown", docker_error, ()
    return StackEntry(name, str(folder), runtime if state != "down" else "", state, rows, why, urls, gpus,
                      use, own, caches)  # fmt: skip


def _open(folder: Path) -> tuple[Stack | None, str]:
    try:
        return open_stack(str(folder)), ""
    except StackgenError as error:
        # the message of several errors has one line for each, after a line with their number
        lines = [line.strip() for line in error.message.splitlines()]
        return None, ": ".join(lines[:2])
    except OSError as error:
        return None, f"{folder} can't be read: {error.strerror or error}"


def _to_row(row: dict[str, Any], role: str) -> ServiceRow:
    text = row.get("Status") or ""
    health, code = HEALTH.search(text), EXIT.match(text)
    service = (row.get("Labels") or {}).get(SERVICE_LABEL, "") or (row.get("Names") or ["?"])[0].lstrip("/")
    role = role or ("download" if service == "download" else "")
    return ServiceRow(
        service, role, row.get("State") or "", health[1] if health else "", int(code[1]) if code else None
    )


def _is_ours(folder: str, group: Sequence[dict[str, Any]]) -> bool:
    with suppress(OSError):
        if (Path(folder) / "stackgen.lock").exists():
            return True
    return any(mount.get("Destination") == "/stackgen" for row in group for mount in row.get("Mounts") or ())


def _process_rows(folder: Path) -> tuple[tuple[ServiceRow, ...], bool] | None:
    """The services that run as local processes, and whether their supervisor runs; None if none ever did."""
    if not (folder / STATE_DIR / "state.json").exists():
        return None
    try:
        supervised = is_alive(read_state(folder / STATE_DIR)["supervisor"])
        states = process_status(folder)
    except StackgenError:
        return None
    if not any(one.state in ("running", "restarting", "waiting") for one in states):
        return None
    return tuple(ServiceRow(s.service, s.role, s.state, s.health, s.exit_code) for s in states), supervised


def _supervised() -> Iterator[Path]:
    """The folders of stacks with a running supervisor, also of other users: its command names the folder."""
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        # a process may end at any time
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if b"stackgen.runtimes.process.supervisor" in words:
                place = words[words.index(b"stackgen.runtimes.process.supervisor") + 1].decode(errors="replace")
                yield Path(place).parent


def _reach(stack: Stack) -> str:
    """How a client outside the cluster reaches the gateway, whose URL has an address inside it."""
    spec, kubectl = stack.spec, f"kubectl -n {stack.spec.namespace}"
    kind = spec.cluster.service_type
    if kind != "ClusterIP":
        return f"`{kubectl} get service gateway` shows its address for clients ({kind})"
    # a normal user can't listen on a port below 1024
    local = spec.port if spec.port >= 1024 else 8000
    service, ports = "gateway", str(local) if local == spec.port else f"{local}:{spec.port}"
    # over HTTPS, only the name in the certificate works
    if spec.gateway and spec.gateway.tls:
        service, local, ports = "gateway-internal", 8001, "8001"
    return (
        f"From this machine, run `{kubectl} port-forward service/{service} {ports}`, and use "
        f"http://127.0.0.1:{local}/v1. For other clients, add an Ingress, or set `kubernetes.service_type`"
    )
