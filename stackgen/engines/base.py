"""The interface of an engine, and what engines share: flags, storage, health checks and the supervisor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stackgen.errors import Mistake
from stackgen.plan import (
    Asset,
    Bind,
    Build,
    Dialect,
    Endpoint,
    EnvRef,
    GpuRequest,
    HealthCheck,
    Mount,
    Network,
    Service,
    Site,
    Tmpfs,
    Volume,
)
from stackgen.spec import ModelSpec, StackSpec, is_local

__all__ = [
    "API_KEY", "Context", "Engine", "Part", "Replica", "engine_mounts", "estimate_start_period", "format_flags",
    "health_check", "hub_environment", "model_download_arguments", "model_source", "served_names",
    "supervisor_entrypoint",
]  # fmt: skip

# required, so that no engine starts without a key
API_KEY = EnvRef("STACKGEN_API_KEY", "put a key into .env: `stackgen init` writes one")
SCRIPTS = "/stackgen"


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica of a model: its service name and its GPUs. `index` counts from 0.

    `gpu_count` is None for `gpus: all`, whose number is known only at the start. `host_port` is 0 behind a gateway.
    `path` is the model's path in the stack file (`models[0]`), for error messages.
    """

    spec: Any
    service: str
    index: int = 0
    gpus: GpuRequest | None = None
    gpu_count: int | None = 0
    host_port: int = 0
    path: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """The input of an engine: the stack, the site, and the replicas of this engine."""

    stack: StackSpec
    site: Site
    replicas: tuple[Replica, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """An engine's share of the plan. `volumes` are (key, name) pairs."""

    services: tuple[Service, ...]
    endpoints: tuple[Endpoint, ...]
    assets: tuple[Asset, ...] = ()
    volumes: tuple[tuple[str, str], ...] = ()
    networks: tuple[Network, ...] = ()
    warnings: tuple[str, ...] = ()


class Engine(Protocol):
    """One serving engine: its fields in the stack file, its services, its API dialect, and how to read its log.

    `phases` are (regular expression, phase) pairs for the progress display, matched line by line. `single_endpoint` is
    true if one server answers for all replicas, so that they share one host port.
    """

    name: str
    Model: type[ModelSpec]
    dialect: Dialect
    phases: tuple[tuple[str, str], ...]
    single_endpoint: bool

    def plan(self, context: Context) -> Part:
        """Plans services and endpoints for all replicas of this engine."""

    def mistakes(self, context: Context) -> list[Mistake]:
        """Finds combinations of fields that can't work although each field is valid."""

    def download_image(self, context: Context) -> tuple[str, Build | None]:
        """The download service's image, which needs `python3` and `hf`, and how to build that image (None: pull)."""

    def download_arguments(self, model: Any) -> tuple[str, ...]:
        """Arguments of `download.py` for everything that the model needs from the Hub; empty for a local model."""


def format_flags(pairs: Iterable[tuple[str, Any]]) -> tuple[str, ...]:
    """Command-line arguments for (flag, value) pairs. None, False and () omit the flag; True adds it bare."""
    arguments: list[str] = []
    for flag, value in pairs:
        if value is None or value is False or value == ():
            continue
        if isinstance(value, (tuple, list)):
            arguments += [flag, *map(str, value)]
        elif value is True:
            arguments.append(flag)
        elif str(value).startswith("-"):  # argparse would parse the value as a flag
            arguments.append(f"{flag}={value}")
        else:
            arguments += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return tuple(arguments)


def served_names(model: ModelSpec) -> tuple[str, ...]:
    """Model names that clients may use; the server reports the first one."""
    if model.served_names:
        return model.served_names
    # a local model is named after its folder, because clients don't know the host's paths
    return (model.model.rstrip("/").rpartition("/")[2] if is_local(model.model) else model.model,)


def model_source(model: ModelSpec, site: Site) -> str:
    """What the engine loads: a Hub id, which is in the shared cache, or the mounted folder."""
    return site.local_path(model.model) if is_local(model.model) else model.model


def estimate_start_period(model: ModelSpec) -> int:
    """Seconds that a start may take: `start_timeout`, else 3 minutes plus 20 s per GB of 16-bit weights.

    The size is read from the model's name (`70B`, `8x7B`), because rendering makes no requests to the Hub. If the name
    contains no size, a start may take 10 minutes. 20 s per GB is the speed of a cold network disk.
    """
    # a long period does no harm, because the first passing check ends the period
    if model.start_timeout:
        return model.start_timeout
    match = re.search(r"(?:^|[-_/])(?:(\d+)x)?(\d+(?:\.\d+)?)[bB](?=$|[-_./])", model.model)
    if not match:
        return 600
    # 16-bit weights: 2 bytes per parameter
    gigabytes = 2 * float(match[2]) * int(match[1] or 1)
    return 180 + round(20 * gigabytes / 10) * 10


def health_check(command: Sequence[str], period: int, timeout: int = 20) -> HealthCheck:
    """A health check every 30 s, and every 5 s during the start. Failures count only after `period` seconds."""
    return HealthCheck(command=tuple(command), start_period=period, timeout=timeout)


def supervisor_entrypoint(site: Site) -> tuple[str, ...]:
    """The entrypoint, which distinguishes a failed start from an engine that died later (see `supervise.sh`)."""
    # sh, because every engine's image has it
    return ("/bin/sh", site.script("supervise.sh"))


def engine_mounts(
    model: ModelSpec, stack: StackSpec, site: Site, cache: Volume | None = None, *, hub: bool = False
) -> tuple[Mount, ...]:
    """Mounts for scripts, weights (read-only), compile cache and /tmp.

    `hub` mounts the model storage for a local model too, if its adapters come from the Hub.
    """
    mounts: list[Mount] = [Bind("./scripts", SCRIPTS)]  # scripts are mounted, so that upstream's images stay unchanged
    if is_local(model.model):
        mounts.append(Bind(site.host_path(model.model), site.local_path(model.model)))
    if hub or not is_local(model.model):
        # read-only: engines never change weights, and a typo can't start a download
        mounts.append(storage_mount(stack, site, read_only=True))
    if cache:
        mounts.append(cache)
    # exec, because compilers write libraries to /tmp and load them; Docker's default is noexec
    mounts.append(Tmpfs("/tmp", "exec,mode=1777"))
    return tuple(mounts)


def storage_mount(stack: StackSpec, site: Site, read_only: bool) -> Mount:
    """The mount of the shared model storage: the folder `storage.path`, else the volume `models`."""
    if stack.storage.path:
        return Bind(site.host_path(stack.storage.path), "/models", read_only)
    return Volume("models", "/models", read_only)


def hub_environment(site: Site) -> tuple[tuple[str, str], ...]:
    """Environment for the shared Hub cache, in offline mode."""
    # offline: the download service has fetched everything before the engine starts
    return (("HF_HUB_CACHE", f"{site.models_dir()}/hub"), ("HF_HUB_OFFLINE", "1"))


def model_download_arguments(model: ModelSpec, patterns: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Arguments of `download.py` that download one model; empty for a local model.

    `patterns` select files. Without patterns, all files except copies of the weights in other formats are downloaded.
    """
    if is_local(model.model):
        return ()
    arguments = ["--model", model.model]
    if model.revision:
        arguments += ["--revision", model.revision]
    for pattern in patterns:
        arguments += ["--file", pattern]
    return tuple(arguments)
