"""What an engine is, and what engines share: flags, storage, health and restart of the services they make."""

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
    "API_KEY", "Context", "Engine", "Part", "Replica", "download_model", "engine_mounts", "flags", "health",
    "hub_environment", "model_source",    "served_names", "start_period", "supervised",
]  # fmt: skip

API_KEY = EnvRef("STACKGEN_API_KEY", "put a key into .env: `stackgen init` writes one")
SCRIPTS = "/stackgen"


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of a model: its service name and the GPUs that it got. `index` counts from 0.

    `gpu_count` is None where the user said `all`: nobody knows it before the start. `host_port` is 0 behind a gateway.
    `path` is the place in the stack file (`models[0]`), for messages.
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
    """What an engine plans with: the stack, the site, and its own replicas."""

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
    """One serving engine: its spec fields, its services, its dialect, and how to read its log.

    `phases` are (regular expression, phase) pairs for the progress display, matched line by line. `single_endpoint`:
    one server answers for all replicas, so they share one host port.
    """

    name: str
    Model: type[ModelSpec]
    dialect: Dialect
    phases: tuple[tuple[str, str], ...]
    single_endpoint: bool

    def plan(self, context: Context) -> Part:
        """Services and endpoints for all replicas of this engine."""

    def mistakes(self, context: Context) -> list[Mistake]:
        """What can't work although each field alone is right."""

    def downloader(self, context: Context) -> tuple[str, Build | None]:
        """An image that holds `python3` and the `hf` command, and how it is built if it can't be pulled."""

    def downloads(self, model: Any) -> tuple[str, ...]:
        """Words for `download.py` that fetch what the model needs from the Hub; none for a local one."""


def flags(pairs: Iterable[tuple[str, Any]]) -> tuple[str, ...]:
    """Command words for (flag, value) pairs: None and False leave the flag out, True prints it bare."""
    words: list[str] = []
    for flag, value in pairs:
        if value is None or value is False or value == ():
            continue
        if isinstance(value, (tuple, list)):
            words += [flag, *map(str, value)]
        elif value is True:
            words.append(flag)
        elif str(value).startswith("-"):  # argparse would take it for the next flag
            words.append(f"{flag}={value}")
        else:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return tuple(words)


def served_names(model: ModelSpec) -> tuple[str, ...]:
    """The names clients may use; the first is the one the server reports. A local folder goes by its own name."""
    if model.served_names:
        return model.served_names
    return (model.model.rstrip("/").rpartition("/")[2] if is_local(model.model) else model.model,)


def model_source(model: ModelSpec, site: Site) -> str:
    """What the engine is told to load: the Hub id (found in the shared cache), or the mounted folder."""
    return site.local_path(model.model) if is_local(model.model) else model.model


def start_period(model: ModelSpec) -> int:
    """Seconds a start may take: `start_timeout`, else 3 minutes and 20 s for each GB of 16-bit weights.

    The size is read from the name (`70B`, `8x7B`), as the Hub can't be asked while rendering; 10 minutes where
    it tells none. 20 s a GB is a cold network disk; too long costs nothing, as a passing check ends it at once.
    """
    if model.start_timeout:
        return model.start_timeout
    match = re.search(r"(?:^|[-_/])(?:(\d+)x)?(\d+(?:\.\d+)?)[bB](?=$|[-_./])", model.model)
    if not match:
        return 600
    gigabytes = 2 * float(match[2]) * int(match[1] or 1)
    return 180 + round(20 * gigabytes / 10) * 10


def health(command: Sequence[str], period: int, timeout: int = 20) -> HealthCheck:
    """A check each 30 s, each 5 s during the start, whose failures count only after `period` seconds."""
    return HealthCheck(command=tuple(command), start_period=period, timeout=timeout)


def supervised(site: Site) -> tuple[str, ...]:
    """The entrypoint that tells a start that can't work from an engine that died (`supervise.sh` says how)."""
    return ("/bin/sh", site.script("supervise.sh"))


def engine_mounts(
    model: ModelSpec, stack: StackSpec, site: Site, cache: Volume | None = None, *, hub: bool = False
) -> tuple[Mount, ...]:
    """Scripts, weights (read-only: an engine has no business changing them), compile cache and /tmp.

    `hub` mounts the store for a local model as well, whose adapters come from the Hub.
    """
    mounts: list[Mount] = [Bind("./scripts", SCRIPTS)]
    if is_local(model.model):
        mounts.append(Bind(site.host_path(model.model), site.local_path(model.model)))
    if hub or not is_local(model.model):
        mounts.append(storage_mount(stack, site, read_only=True))
    if cache:
        mounts.append(cache)
    # exec, as compilers put libraries there and load them; Docker's default forbids it
    mounts.append(Tmpfs("/tmp", "exec,mode=1777"))
    return tuple(mounts)


def storage_mount(stack: StackSpec, site: Site, read_only: bool) -> Mount:
    """The one place of all weights."""
    if stack.storage.path:
        return Bind(site.host_path(stack.storage.path), "/models", read_only)
    return Volume("models", "/models", read_only)


def hub_environment(site: Site) -> tuple[tuple[str, str], ...]:
    """The shared cache, offline: the download service has fetched all there is to fetch."""
    return (("HF_HUB_CACHE", f"{site.models_dir()}/hub"), ("HF_HUB_OFFLINE", "1"))


def download_model(model: ModelSpec, patterns: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Words for `download.py` that fetch one model; none for a local one.

    `patterns` are the files wanted; none means all but duplicates of the weights in other formats.
    """
    if is_local(model.model):
        return ()
    words = ["--model", model.model]
    if model.revision:
        words += ["--revision", model.revision]
    for pattern in patterns:
        words += ["--file", pattern]
    return tuple(words)
