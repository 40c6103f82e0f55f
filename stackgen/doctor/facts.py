"""Facts about a machine, as typed data. None means unknown, and no check treats unknown as ok.

`stackgen.runtimes.observation.machine` collects these facts; tests write facts for machines that are not available.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "GIB", "Container", "Disk", "Gpu", "GpuProcess", "Host", "Listener", "is_version_at_least", "parse_version",
]  # fmt: skip

GIB = 2**30


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds GPU memory. `memory` is bytes, None if the driver doesn't report it."""

    pid: int
    name: str
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU. Memory is bytes, `compute` is the compute capability as (major, minor).

    `ecc_errors` counts uncorrected ECC errors since boot.
    """

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
    """A listening TCP socket. `process` is `NAME (pid N)`, or "" if this user can't see it."""

    address: str
    port: int
    process: str = ""


@dataclass(frozen=True, slots=True)
class Container:
    """A running container: its Compose project, and the ports that it publishes as (address, port).

    - `gpu_count` and `gpu_ids`: its GPU reservation: a number of GPUs (-1: all), and indices, UUIDs or CDI names.
    - `gpu_share`: the fraction of each GPU's memory that vLLM takes in it; None if this is unknown.
    """

    name: str
    project: str = ""
    ports: tuple[tuple[str, int], ...] = ()
    gpu_count: int = 0
    gpu_ids: tuple[str, ...] = ()
    gpu_share: float | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """Free bytes on the file system that holds `path`. Disks with the same `device` are the same file system."""

    path: str
    free: int
    device: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """A machine. Each fact may be None: unknown.

    - `engine_state`: why the Docker engine can't be used. In this case `engine`, the engine's version, is None.
    - `gpu_tool`: whether nvidia-smi answered. `gpus` is empty if nvidia-smi reported no GPU.
    - `toolkit`: whether a program of the NVIDIA Container Toolkit was found on the PATH.
    - `cdi`: the kinds of devices that the CDI files define, e.g. `nvidia.com/gpu`.
    - `projects`: name and folder of each Compose project that has a container, also a stopped one.
    - `storage_root`: the folder with the stack's weights, if this user can read that folder; "" if it does not exist.
    - `proxies`: where an HTTP proxy is set: `HTTPS_PROXY`, `~/.docker/config.json`, `the Docker daemon`. No value is
      kept, because a URL may contain a password.
    - `memory_total`, `memory_available`, `shm`: bytes.
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
    projects: tuple[tuple[str, str], ...] | None = None
    storage_disk: Disk | None = None
    storage_root: str | None = None
    proxies: tuple[str, ...] | None = None
    daemon_proxy: bool | None = None
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


def parse_version(text: str | None) -> tuple[int, ...] | None:
    """The first version number in `text` (`v2.40.3-3`, `github.com/docker/buildx 0.29.1+ds1 …`); None without one."""
    # not after a word character or dot: `cgroup2` and the end of a longer number are not versions
    # at most 9 digits, because int() refuses numbers with thousands of digits
    match = re.search(r"(?<![\w.])v?(\d{1,9}(?:\.\d{1,9}){0,3})", text or "", re.ASCII)
    return tuple(int(part) for part in match[1].split(".")) if match else None


def is_version_at_least(text: str | None, *minimum: int) -> bool | None:
    """Whether the version in `text` is `minimum` or newer; None if `text` has no version."""
    version = parse_version(text)
    # pad with zeros: 2.24 equals 2.24.0
    return None if version is None else (*version, 0, 0, 0)[: len(minimum)] >= minimum
