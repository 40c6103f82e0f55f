"""What is known of a machine, as typed data. None means that nobody could tell, and is never taken for "good".

`stackgen.runtimes.observation.machine` gathers these facts; tests write them for machines that are not at hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "GIB", "Container", "Disk", "Gpu", "GpuProcess", "Host", "Listener", "at_least", "version_of",
]  # fmt: skip

GIB = 2**30


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory of a card; `memory` in bytes, None where the driver doesn't say."""

    pid: int
    name: str
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card. Memory is bytes, `compute` the compute capability, `ecc_errors` uncorrected ones since the boot."""

    index: int
    uuid: str
    name: str
    memory_total: int | None = None
    memory_free: int | None = None
    compute: tuple[int, int] | None = None
    mig: bool | None = None
    ecc_errors: int | None = None
    persistence: bool | None = None
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP port that somebody listens on; `holder` is who, as a person would name it, "" where unreadable."""

    address: str
    port: int
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Container:
    """A running container: its Compose project, and the ports it publishes as (address, port)."""

    name: str
    project: str = ""
    ports: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Disk:
    """Room on the file system of `path`, in bytes; equal `device`s are one file system."""

    path: str
    free: int
    device: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """A machine. Each fact may be None: unknown.

    `engine_state` is why the engine can't be asked; `engine` its version then None. `gpu_tool` tells whether
    nvidia-smi answered; `gpus` is empty where it answered that there are none. `toolkit` tells whether one of the
    programs of NVIDIA's container toolkit is on the PATH; `cdi` are the kinds of devices that CDI files name.
    `storage_root` is the folder of the stack's weights as this user reads it, "" where it isn't there yet.
    """

    docker_cli: bool | None = None
    engine_state: Literal["ok", "missing", "denied", "silent"] | None = None
    engine_error: str = ""
    engine: str | None = None
    compose: str | None = None
    compose_missing: bool = False
    buildx: str | None = None
    buildx_missing: bool = False
    cgroup: int | None = None
    docker_disk: Disk | None = None
    images: tuple[str, ...] | None = None
    runtimes: tuple[str, ...] | None = None
    containers: tuple[Container, ...] | None = None
    storage_disk: Disk | None = None
    storage_root: str | None = None
    memory_total: int | None = None
    memory_available: int | None = None
    shm: int | None = None
    cpu_arch: str | None = None
    cpu_flags: frozenset[str] | None = None
    cpu_count: int | None = None
    addresses: tuple[str, ...] | None = None
    listeners: tuple[Listener, ...] | None = None
    gpu_tool: bool | None = None
    gpu_error: str = ""
    driver: str | None = None
    cuda: str | None = None
    gpus: tuple[Gpu, ...] | None = None
    toolkit: bool | None = None
    cdi: tuple[str, ...] | None = None
    amd: bool | None = None


def version_of(text: str | None) -> tuple[int, ...] | None:
    """The first version number in `text` (`v2.40.3-3`, `github.com/docker/buildx 0.29.1+ds1 …`); None without one."""
    match = re.search(r"(?<![\w.])v?(\d{1,9}(?:\.\d{1,9}){0,3})", text or "", re.ASCII)
    return tuple(int(part) for part in match[1].split(".")) if match else None


def at_least(text: str | None, *wanted: int) -> bool | None:
    """Whether the version in `text` is `wanted` or newer; None where it can't be read."""
    found = version_of(text)
    return None if found is None else (*found, 0, 0, 0)[: len(wanted)] >= wanted
