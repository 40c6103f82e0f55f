"""The state of the machine's GPUs as evidence: their memory, the processes that use it, and hardware errors.

`stackgen.runtimes.observation.gpu_tools` collects it. None means unknown, and no rule may treat unknown as good.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["GpuDevice", "GpuDeviceProcess", "GpuState", "format_device", "format_gpus", "format_holders"]

GIB = 2**30


@dataclass(frozen=True, slots=True)
class GpuDeviceProcess:
    """A process that uses GPU memory. `memory` is in bytes, or None if the driver does not report it."""

    pid: int
    name: str
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One GPU. Memory is in bytes, `compute` is the compute capability (`9.0`).

    `ecc_errors` counts uncorrected errors since boot (nvidia-smi: ecc.errors.uncorrected.volatile.total).
    """

    index: int
    uuid: str
    name: str
    memory_total: int | None = None
    memory_used: int | None = None
    memory_free: int | None = None
    compute: str | None = None
    mig: bool | None = None
    ecc_errors: int | None = None
    processes: tuple[GpuDeviceProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuState:
    """What is known about the GPUs of a machine.

    `unknown` is the reason why the GPUs are unknown; `error` is the error that nvidia-smi printed. `devices` is
    empty if nvidia-smi reported that there are none. `xids` are the driver's errors in the kernel log, the newest
    last; None if this user has no permission to read that log.
    """

    devices: tuple[GpuDevice, ...] | None = None
    driver: str | None = None
    cuda: str | None = None
    unknown: str = ""
    error: str = ""
    xids: tuple[str, ...] | None = None

    def select_devices(self, ids: Sequence[str]) -> tuple[GpuDevice, ...]:
        """The GPUs with these indices or UUID prefixes; all of them if `ids` is empty."""
        devices = self.devices or ()
        return tuple(one for one in devices if any(_has_id(one, id) for id in ids)) if ids else devices

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and for bundles. The key `cards` is part of the JSON format."""
        devices = self.devices
        return {
            "unknown": self.unknown, "error": self.error, "driver": self.driver, "cuda": self.cuda,
            "xids": None if self.xids is None else list(self.xids),
            "cards": None if devices is None else [
                {
                    "index": one.index, "uuid": one.uuid, "name": one.name, "memory_total": one.memory_total,
                    "memory_used": one.memory_used, "memory_free": one.memory_free, "compute_capability": one.compute,
                    "mig": one.mig, "ecc_errors": one.ecc_errors,
                    "processes": [{"pid": by.pid, "name": by.name, "memory": by.memory} for by in one.processes],
                }
                for one in devices
            ],
        }  # fmt: skip


def format_gpus(state: GpuState) -> tuple[str, ...]:
    """The state as lines of text, one or more for each GPU."""
    # unknown comes first: without nvidia-smi, no devices does not mean that there are none
    if state.unknown:
        return (f"GPUs: unknown: {state.unknown}",)
    # the newest Xids are the last ones
    xids = tuple(f"  {line}" for line in (state.xids or ())[-3:])
    if state.error:
        return (f"GPUs: unknown, because nvidia-smi reports: {state.error}", *xids)
    if not state.devices:
        # an Xid in the kernel log can show that a GPU was lost
        return ("GPUs: none", *xids)
    head = f"GPUs: driver {state.driver or 'unknown'}, which supports CUDA {state.cuda or 'unknown'}"
    return (head, *(f"  {line}" for one in state.devices for line in format_device(one)), *xids)


def format_device(device: GpuDevice) -> tuple[str, ...]:
    """A line for the GPU and its memory, and a line for each process that uses this memory."""
    line = (
        f"GPU {device.index} ({device.name}, capability {device.compute or 'unknown'}): {_gib(device.memory_used)} "
        f"used of {_gib(device.memory_total)}, {_gib(device.memory_free)} free"
    )
    if device.ecc_errors:
        line += f", {device.ecc_errors} uncorrected memory errors"
    if device.mig:
        line += ", partitioned with MIG"
    return (line, *(f"  used by {_format_process(one)}" for one in _largest_processes(device)))


def format_holders(devices: Sequence[GpuDevice]) -> str:
    """The processes that use the most memory of `devices`, the largest first; "" if no process is visible."""
    many = len(devices) > 1
    # a process of unknown size comes last
    found = [(one.memory or 0, f"{_format_process(one)}{f' on GPU {device.index}' if many else ''}")
             for device in devices for one in device.processes]  # fmt: skip
    return ", ".join(text for _, text in sorted(found, key=lambda pair: -pair[0])[:4])


def _largest_processes(device: GpuDevice) -> list[GpuDeviceProcess]:
    return sorted(device.processes, key=lambda one: -(one.memory or 0))[:6]


def _format_process(process: GpuDeviceProcess) -> str:
    # nvidia-smi prints [N/A] for processes in other PID namespaces
    size = f", {_gib(process.memory)}" if process.memory is not None else ""
    return f"{process.name} (pid {process.pid}{size})"


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.1f} GiB"


def _has_id(device: GpuDevice, id: str) -> bool:
    # an empty id would be a prefix of every UUID
    return str(device.index) == id if re.fullmatch(r"\d+", id) else bool(id) and device.uuid.startswith(id)
