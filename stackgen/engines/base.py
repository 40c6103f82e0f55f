"""The interface of an engine, and what engines share: flags, storage, health checks and the supervisor."""

from __future__ import annotations

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
    GroupNode,
    HealthCheck,
    Mount,
    Network,
    Service,
    Site,
    Tmpfs,
    Volume,
)
from stackgen.spec import ModelSpec, StackSpec, is_local
from stackgen.spec.types import guess_parameters
from stackgen.targets.snapshot import repository_id
from stackgen.targets.weights import weigh_files

__all__ = [
    "API_KEY", "DRAIN_SECONDS", "STOP_GRACE_PERIOD", "Context", "Engine", "Part", "Replica", "engine_mounts",
    "estimate_start_period", "format_flags", "has_read_only_root", "health_check", "hub_environment", "image_user",
    "model_download_arguments", "model_source", "served_names", "supervisor_entrypoint",
]  # fmt: skip

# required, so that no engine starts without a key
API_KEY = EnvRef(
    "STACKGEN_API_KEY", "put a key into .env: `stackgen render` writes one (for a new stack, `stackgen init`)"
)
SCRIPTS = "/stackgen"
# Seconds that a stop waits for requests in flight, and seconds until Docker kills an engine. The difference is the time
# for the engine's own shutdown, after the gateway has ended
DRAIN_SECONDS, STOP_GRACE_PERIOD = 30, 40
# the memory of an H100, in which the weights of a model without a size in its name fit
GIGABYTES_PER_GPU = 80
# gigabytes from which the weights' size determines how long a start takes
SMALL = 0.8


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica of a model: its service name and its GPUs. `index` counts from 0.

    `gpu_count` is None for `gpus: all`, whose number is known only at the start. `host_port` is 0 behind a gateway.
    `path` is the model's path in the stack file (`models[0]`), for error messages. In a cluster, one Replica stands for
    all of them (`shared`), and `gpus` are those of one of its `nodes`; `gpu_count` counts all nodes. `node` is this
    machine's part of the replica, if each of its nodes is a machine with a stack of its own. `weight_bytes` is the
    size in the catalog of models; 0 if the catalog does not know the model.
    """

    spec: Any
    service: str
    index: int = 0
    gpus: GpuRequest | None = None
    gpu_count: int | None = 0
    host_port: int = 0
    path: str = ""
    nodes: int = 1
    shared: bool = False
    node: GroupNode | None = None
    weight_bytes: int = 0

    @property
    def ordinal(self) -> str:
        """The end of a comment that says which replica this is; "" for the only one, or for all of them."""
        return f", replica {self.index + 1}" if self.spec.replicas > 1 and not self.shared else ""

    @property
    def follows(self) -> str:
        """The address of the machine that answers for this replica; "" if it answers itself."""
        return self.node.leader if self.node and self.node.rank != "0" else ""


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
            # one flag with several values, as --served-model-name and --lora-modules expect
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
    if not is_local(model.model):
        return (model.model,)
    # a local model is named after its folder, because clients don't know the host's paths; a snapshot's is a commit
    return (repository_id(model.model) or model.model.rstrip("/").rpartition("/")[2],)


def model_source(model: ModelSpec, site: Site) -> str:
    """What the engine loads: a Hub id, which is in the shared cache, or the mounted folder."""
    return site.local_path(model.model) if is_local(model.model) else model.model


def estimate_start_period(replica: Replica, site: Site) -> int:
    """Seconds that a start may take: `start_timeout`, else 3 minutes plus 20 s per GB of weights, at least 10 minutes.

    20 s per GB is the speed of a cold network disk. Rendering makes no requests to the Hub, so the size is read from
    the model's name (`70B`, `8x7B`) at 16 bits, else from the catalog of models. A size in the name needs no minimum.
    Without a size, the memory of the GPUs limits the weights. The files of a local model can only raise the result, to
    10, 20, 40, … minutes.
    """
    # a long period does no harm, because the first passing check ends the period
    model: Any = replica.spec
    if model.start_timeout:
        return int(model.start_timeout)
    # 16-bit weights: 2 bytes per parameter. Of a smaller model, loading is the shortest part of a start
    gigabytes = 2 * (guess_parameters(model.model) or 0) / 1e9
    period = _loading_seconds(gigabytes) if gigabytes >= SMALL else 600
    if is_local(model.model):
        file = getattr(model, "file", None)
        size = weigh_files(site.find_on_disk(model.model) + (f"/{file}" if file else ""))
        # in steps, so that a new file in the folder does not change the service and restart a running engine
        needed = _loading_seconds(size / 1e9)
        steps = (600 * 2**step for step in range(10))
        return max(period, next((step for step in steps if step >= needed), needed)) if size else period
    if gigabytes:
        return period
    # None: all GPUs, of which a large machine has 8
    count = 8 if replica.gpu_count is None else replica.gpu_count
    limit = GIGABYTES_PER_GPU * count if count > 1 else 0
    return max(period, _loading_seconds(replica.weight_bytes / 1e9 or limit))


def _loading_seconds(gigabytes: float) -> int:
    return 180 + round(20 * gigabytes / 10) * 10


def has_read_only_root(model: ModelSpec, gpus: GpuRequest | None) -> bool:
    """Whether the container's root file system is read-only: `read_only`, else only without GPUs.

    nvidia-cdi-hook exits with 1 on a read-only root (kserve/kserve pull 5711, 2026-06). The hook of NVIDIA Container
    Toolkit 1.20.0 creates a folder in /etc/nvidia (NVIDIA/nvidia-container-toolkit issue 2026, 2026-08).
    """
    return model.read_only if model.read_only is not None else gpus is None


def health_check(command: Sequence[str], period: int, timeout: int = 20, ready_path: str = "") -> HealthCheck:
    """A health check every 30 s, and every 5 s during the start. Failures count only after `period` seconds."""
    return HealthCheck(command=tuple(command), start_period=period, timeout=timeout, ready_path=ready_path)


def image_user(image: str) -> str:
    """The user for a service that runs `image`; "" for the user that the image itself sets.

    stackgen's images of FastChat and llama.cpp have a user for engines, but start as root for the download service.
    """
    return "1000:1000" if image.startswith(("stackgen/fastchat:", "stackgen/llamacpp:")) else ""


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
        mounts.append(site.mount(model.model))
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
