"""Who holds the GPUs of this machine: reservations of containers and stacks, and the processes that use memory.

A reservation is not exclusive: Docker gives a GPU to any number of containers. And a process can use a GPU without a
reservation. So both are reported, each from its own source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stackgen.diagnose.gpus import GpuDevice, GpuDeviceProcess, GpuState
from stackgen.errors import MachineError
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.lifecycle import connect
from stackgen.runtimes.compose.project import PROJECT_LABEL
from stackgen.runtimes.observation.amd_tools import read_amd_state
from stackgen.runtimes.observation.containers import parse_reservation
from stackgen.runtimes.observation.gpu_tools import Runner, read_gpu_state, run_tool
from stackgen.runtimes.observation.inventory import StackEntry, list_stacks

__all__ = ["GpuReport", "GpuRow", "Holder", "container_of", "find_holders"]

# cgroup v2 with systemd (`docker-ID.scope`), and cgroup v1 or cgroupfs (`/docker/ID`)
CONTAINER_ID = re.compile(r"(?:docker[-/]|/)([0-9a-f]{64})(?:\.scope)?(?:/|$)")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a GPU.

    `kind`: `container` (a reservation of a running container), `stack` (a stack that runs as local processes),
    `planned` (a stack that is down and names the GPU), or `process`. `name` is the container, the service or the
    program. `memory` is bytes.
    """

    kind: str
    name: str
    stack: str = ""
    pid: int | None = None
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class GpuRow:
    """A GPU with its holders. A GPU that only a reservation names has no `device`."""

    vendor: str
    id: str
    device: GpuDevice | None
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuReport:
    """All GPUs. `unplaced` are holders whose GPU is unknown. `tools` is `ok`, `missing` or the error of each tool."""

    gpus: tuple[GpuRow, ...]
    unplaced: tuple[Holder, ...]
    tools: dict[str, str]
    docker_error: str = ""


@dataclass(frozen=True, slots=True)
class _Claim:
    vendor: str
    ids: tuple[str, ...]
    count: int
    holder: Holder


def find_holders(run: Runner = run_tool) -> GpuReport:
    """The GPUs of this machine and their holders. `run` runs nvidia-smi, amd-smi and rocm-smi."""
    nvidia, (amd, loose, amd_tool) = read_gpu_state(run), read_amd_state(run)
    claims, names, error = _read_claims()
    rows = [_row(vendor, device, names) for vendor, state in (("nvidia", nvidia), ("amd", amd))
            for device in state.devices or ()]  # fmt: skip
    unplaced = [_to_holder(one, names) for one in loose]
    for claim in claims:
        rows, placed = _place(rows, claim)
        if not placed:
            unplaced.append(claim.holder)
    tools = {"nvidia-smi": _tool_state(nvidia), amd_tool or "amd-smi": _tool_state(amd)}
    return GpuReport(tuple(rows), tuple(unplaced), tools, error)


def _tool_state(state: GpuState) -> str:
    return "missing" if state.unknown else state.error or "ok"


def _row(vendor: str, device: GpuDevice, names: dict[str, tuple[str, str]]) -> GpuRow:
    return GpuRow(vendor, str(device.index), device, tuple(_to_holder(one, names) for one in device.processes))


def _to_holder(process: GpuDeviceProcess, names: dict[str, tuple[str, str]]) -> Holder:
    container, stack = names.get(container_of(process.pid), ("", ""))
    # the container's name says more than `python3` or `VLLM::EngineCore`
    name = f"{process.name} in {container}" if container else process.name
    return Holder("process", name, stack, process.pid, process.memory)


def container_of(pid: int, read: Callable[[Path], str] = Path.read_text) -> str:
    """The id of the container that runs process `pid`; "" if it runs in none, or this user can't see it."""
    with suppress(OSError):
        match = CONTAINER_ID.search(read(Path(f"/proc/{pid}/cgroup")))
        return match[1] if match else ""
    return ""


def _place(rows: Sequence[GpuRow], claim: _Claim) -> tuple[list[GpuRow], bool]:
    """The rows with the claim's holder on its GPUs, and whether it has a place."""
    own = [row for row in rows if row.vendor == claim.vendor]
    wanted = list(claim.ids) or ([row.id for row in own] if claim.count < 0 else list(map(str, range(claim.count))))
    found = list(rows)
    placed = False
    for id in wanted:
        matches = [row for row in found if row.vendor == claim.vendor and (id == "all" or _has_id(row, id))]
        if not matches and id != "all":
            # without nvidia-smi, the reservation is all that is known about this GPU
            matches = [GpuRow(claim.vendor, id, None)]
            found += matches
        for row in matches:
            # the process of the container comes after its reservation
            found[found.index(row)] = replace(row, holders=(claim.holder, *row.holders))
            placed = True
    return found, placed


def _has_id(row: GpuRow, id: str) -> bool:
    uuid = row.device.uuid if row.device else ""
    # the driver accepts any unique prefix of a UUID
    return id == row.id or (len(id) > 8 and uuid.startswith(id))


def _read_claims() -> tuple[list[_Claim], dict[str, tuple[str, str]], str]:
    """Reservations, and (name, stack) of each running container by its id, and Docker's error."""
    claims, names, error = list[_Claim](), dict[str, tuple[str, str]](), ""
    try:
        client = connect()
        for about in client.api.containers():
            name = (about["Names"] or ["/?"])[0].lstrip("/")
            stack = (about.get("Labels") or {}).get(PROJECT_LABEL, "")
            names[about["Id"]] = (name, stack)
            # the container may have ended meanwhile
            with suppress(sdk().errors.NotFound):
                holder = Holder("container", name, stack)
                claims += _container_claims(client.api.inspect_container(about["Id"]), holder)
    except MachineError as problem:
        error = problem.message
    inventory = list_stacks()
    for entry in inventory.stacks:
        if entry.runtime != "compose" or not any(one.state == "running" for one in entry.services):
            claims += _stack_claims(entry)
    return claims, names, error


def _container_claims(about: dict[str, Any], holder: Holder) -> Iterator[_Claim]:
    config, host = about.get("Config") or {}, about.get("HostConfig") or {}
    variables = dict(one.partition("=")[::2] for one in config.get("Env") or ())
    found = parse_reservation(about)
    if found["gpu_count"] or found["gpu_ids"]:
        ids = tuple(one.rpartition("=")[2] for one in found["gpu_ids"])
        yield _Claim("nvidia", ids, found["gpu_count"], holder)
    # the older way to give GPUs to a container; `void` and `none` give none
    elif host.get("Runtime") == "nvidia" and variables.get("NVIDIA_VISIBLE_DEVICES", "") not in ("", "void", "none"):
        yield _Claim("nvidia", tuple(variables["NVIDIA_VISIBLE_DEVICES"].split(",")), 0, holder)
    if any(one.get("PathOnHost") == "/dev/kfd" for one in host.get("Devices") or ()):
        text = variables.get("ROCR_VISIBLE_DEVICES") or variables.get("HIP_VISIBLE_DEVICES") or "all"
        yield _Claim("amd", tuple(text.split(",")), 0, holder)


def _stack_claims(entry: StackEntry) -> Iterable[_Claim]:
    """The GPUs that the stack file of a stack without running containers names."""
    kind = "stack" if entry.runtime == "process" and entry.state != "stopped" else "planned"
    for service, request in entry.gpus:
        ids = tuple(one.rpartition("=")[2] for one in request.ids)
        vendor = "amd" if request.driver == "amd" else "nvidia"
        yield _Claim(vendor, ids, request.count, Holder(kind, service, entry.name))
