"""How many GPUs of which kind one replica of a model needs, by the estimate of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stackgen.errors import Mistake, StackgenError
from stackgen.fit import Gpu, Model, estimate
from stackgen.fit.deployment import engine_version, read_settings
from stackgen.fit.estimate import FITS, format_gib
from stackgen.fit.settings import Settings
from stackgen.flags.parallel import count_model_groups

__all__ = ["MARGIN", "Demand", "Option", "find_counts", "find_demand", "find_mistakes", "settings_of"]

# of each shared GPU, this share stays free: the CUDA context of each process is outside of its share
MARGIN = 0.05
# engines split layers evenly, so powers of two
COUNTS = (1, 2, 4, 8)
# the engines whose memory `stackgen.fit` estimates
ENGINES = ("vllm", "llamacpp", "fastchat")


@dataclass(frozen=True, slots=True)
class Option:
    """`count` GPUs of the kind `gpu`, each with `needed` bytes reserved. `text`: what decides, for people."""

    gpu: Gpu
    count: int
    needed: int
    text: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What each replica of one model needs.

    - `index`: of the model in stack.yaml. `share`: of each GPU; 1.0: whole GPUs.
    - `options`: what fits, by ascending count. `refused`: why others don't, by kind and count.
    - `hosts`: the machines that run the model, each with the same number of replicas; (): any machine.
    """

    index: int
    name: str
    model: str
    replicas: int
    share: float = 1.0
    options: tuple[Option, ...] = ()
    refused: dict[tuple[Gpu, int], str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()

    def host_of(self, replica: int) -> str:
        """The machine of a replica; "" if it may run on any."""
        return self.hosts[replica * len(self.hosts) // self.replicas] if self.hosts else ""

    def counts(self) -> list[int]:
        """The numbers of GPUs with which the model fits on some kind, ascending."""
        return sorted({one.count for one in self.options})


def find_demand(
    index: int, name: str, spec: Any, model: Model, kinds: Sequence[Gpu], also: frozenset[int] = frozenset()
) -> Demand:
    """The demand of `models[index]` with `gpus: auto` on GPUs of `kinds`; `also`: numbers of GPUs that are recorded."""
    share = float(spec.gpu_memory_utilization) if spec.share_gpus else 1.0
    options: list[Option] = []
    refused: dict[tuple[Gpu, int], str] = {}
    for count in find_counts(spec):
        # if it fits on each kind with fewer, more GPUs find no further room
        if count not in also and {one.gpu for one in options} >= set(kinds):
            continue
        for gpu in kinds:
            found = _try(spec, model, gpu, count, share)
            if isinstance(found, Option):
                options.append(found)
            else:
                refused[gpu, count] = found
    options.sort(key=lambda one: (one.count, one.gpu.memory, one.gpu.name))
    hosts = tuple(getattr(spec, "host", ()))
    replicas = spec.replicas * max(1, len(hosts))
    return Demand(index, name, spec.model, replicas, share, tuple(options), refused, hosts)


def _try(spec: Any, model: Model, gpu: Gpu, count: int, share: float) -> Option | str:
    """The option, or why it is none."""
    try:
        found = estimate(model, settings_of(spec, count), gpu)
    except StackgenError as error:
        return error.message
    reserved = found.needed[2]
    if found.verdict != FITS:
        return f"{found.verdict}: {found.reason}"
    # llama.cpp and FastChat keep to no share, so their need is compared with it
    if share < 1 and reserved > share * gpu.memory:
        room = format_gib(share * gpu.memory)
        return f"needs up to {format_gib(reserved)}, and its share of {share:g} is {room}"
    return Option(gpu, count, reserved, f"needs up to {format_gib(reserved)} of {format_gib(gpu.memory)}")


def find_mistakes(index: int, spec: Any) -> list[Mistake]:
    """Why `models[index]` can't have `gpus: auto`."""
    path = f"models[{index}]"
    if spec.engine not in ENGINES:
        return [Mistake(f"{path}.gpus", "`auto` needs an estimate of the memory, which stackgen does not have for "
                                        f"{spec.engine}",
                        hint="list the GPUs, for example `gpus: [0]`")]  # fmt: skip
    if spec.share_gpus and spec.gpu_memory_utilization is None:
        return [Mistake(f"{path}.share_gpus", "a model that shares a GPU needs gpu_memory_utilization",
                        hint="for example 0.45 (`stackgen fit MODEL` shows how much the model needs)")]  # fmt: skip
    if spec.engine == "vllm" and count_model_groups(spec) is None:
        return [
            Mistake(
                f"{path}.gpus",
                "`auto` chooses GPUs of one machine, but extra_args split the model across several machines",
                hint="list the GPUs, for example `gpus: [0, 1]`",
            )
        ]
    return []


def find_counts(spec: Any) -> list[int]:
    """The numbers of GPUs that one replica may have."""
    groups = (count_model_groups(spec) if spec.engine == "vllm" else 1) or 1
    each = groups * getattr(spec, "pipeline_parallel_size", 1)
    given = getattr(spec, "tensor_parallel_size", None)
    return [each * given] if given else [each * count for count in COUNTS]


def settings_of(spec: Any, count: int) -> Settings:
    """The settings of a replica on `count` GPUs."""
    named = engine_version(spec.image or "") or engine_version(f":{getattr(spec, 'engine_version', None) or ''}")
    if spec.engine != "vllm":
        return read_settings(spec, count, ())
    settings = read_settings(spec, count, named or Settings().version)
    if spec.image and not named:
        version = ".".join(map(str, settings.version))
        doubt = f"the image's tag contains no version, so the estimate assumes vLLM {version}"
        return replace(settings, doubts=(*settings.doubts, doubt))
    return settings
