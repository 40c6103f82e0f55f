"""The GPUs that `stackgen plan` may choose: those of this machine, or those that a file lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stackgen.cli.commands.output import note
from stackgen.cli.commands.table import size_text
from stackgen.errors import MachineError
from stackgen.fit.gpus import observed_gpu
from stackgen.placement import Device, join_islands, parse_machine, parse_topology
from stackgen.runtimes.observation.gpu_tools import read_nvidia_facts, run_tool
from stackgen.stack.load import read_text
from stackgen.stack.yaml_text import read_mapping

__all__ = ["read_file", "read_this_machine"]

# a GPU without processes has some MiB in use, for the driver
IDLE = 512 * 2**20
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
    for one in known:
        if one.memory_free is not None and one.memory_total - one.memory_free > IDLE:
            note(f"GPU {one.index} has {size_text(one.memory_total - one.memory_free)} in use now. `stackgen gpus` "
                 "shows by whom")  # fmt: skip
    return tuple(Device(one.index, one.uuid, observed_gpu(one.name, one.memory_total, one.compute), islands[one.index])
                 for one in known)  # fmt: skip
