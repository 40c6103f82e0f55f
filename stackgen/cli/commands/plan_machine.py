"""The GPUs that `stackgen plan` may choose: those of this machine, or those that a file lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stackgen.cli.commands.output import note
from stackgen.cli.commands.table import size_text
from stackgen.errors import MachineError
from stackgen.fit.gpus import observed_gpu
from stackgen.placement import Device, join_islands, parse_machine, parse_topology
from stackgen.runtimes.observation.gpu_holders import GpuRow, Holder, find_holders
from stackgen.runtimes.observation.gpu_tools import read_nvidia_facts, run_tool
from stackgen.stack.load import read_text
from stackgen.stack.yaml_text import read_mapping

__all__ = ["mark_held", "read_file", "read_this_machine"]

# a GPU without processes has some MiB in use, for the driver
IDLE = 512 * 2**20
# more names than this say nothing more
MOST_NAMED = 3
HINT = ("run `stackgen plan` on the machine with the GPUs, or describe its GPUs in a file: `--machine FILE` (see the "
        "how-to about choosing GPUs)")  # fmt: skip


def read_file(path: Path) -> tuple[Device, ...]:
    """The GPUs in the file of `--machine`. Raises SpecError."""
    return parse_machine(read_mapping(read_text(path), str(path)), str(path))


def read_this_machine() -> tuple[Device, ...]:
    """The whole GPUs that nvidia-smi lists. Raises MachineError without any."""
    gpus: Any = read_nvidia_facts(run_tool).get("gpus") or ()
    known = [one for one in gpus if one.memory_total and one.uuid]
    if parts := [str(one.index) for one in known if one.mig]:
        note(f"left out, because they are divided by MIG: GPU {', '.join(parts)}")
    known = [one for one in known if not one.mig]
    if not known:
        raise MachineError("this machine has no whole GPU that nvidia-smi lists", HINT)
    answer = run_tool(["nvidia-smi", "topo", "-m"])
    if not answer or answer[0]:
        note("warning: `nvidia-smi topo -m` fails, so all GPUs count as connected over PCIe")
    pairs = parse_topology(answer[1]) if answer and not answer[0] else []
    islands = join_islands([one.index for one in known], pairs)
    return tuple(Device(one.index, one.uuid, observed_gpu(one.name, one.memory_total, one.compute), islands[one.index])
                 for one in known)  # fmt: skip


def mark_held(devices: Sequence[Device], name: str) -> tuple[Device, ...]:
    """`devices` of this machine with who holds each, other than the stack `name`."""
    report = find_holders()
    if report.docker_error:
        note(f"warning: which containers use the GPUs is unknown: {report.docker_error}")
    rows = {row.device.uuid: row for row in report.gpus if row.device}
    return tuple(_mark(one, rows[one.uuid], name) if one.uuid in rows else one for one in devices)


def _mark(device: Device, row: GpuRow, name: str) -> Device:
    is_own = any(one.stack == name and one.kind in ("container", "stack") for one in row.holders)
    # a process whose container is unknown belongs to this stack if the stack holds the GPU
    others = [one for one in row.holders if one.stack != name and not (is_own and not one.stack)]
    held = [_describe(one) for one in others if one.kind != "planned"]
    used = row.device.memory_used if row.device else None
    if not held and not is_own and used is not None and used > IDLE:
        held = [f"programs that nvidia-smi does not list, with {size_text(used)}"]
    wanted = dict.fromkeys(f"the stack {one.stack}, which is down" for one in others if one.kind == "planned")
    return replace(device, held=_join(held), wanted=_join(list(wanted)))


def _describe(one: Holder) -> str:
    if one.kind == "process":
        memory = f", {size_text(one.memory)}" if one.memory else ""
        return f"the process {one.name} (pid {one.pid}{memory})"
    of = f" of the stack {one.stack}" if one.stack else ""
    return f"the container {one.name}{of}" if one.kind == "container" else f"{one.name}{of}"


def _join(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return ", ".join(texts[:MOST_NAMED]) + more
