"""`stackgen fit` of a stack: whether the machine has the GPUs that the stack uses, and which options have no effect."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

from stackgen.engines.base import served_names
from stackgen.resolve.placement import place
from stackgen.spec import StackSpec

__all__ = ["find_absent_gpus", "find_ignored_options", "read_uses", "use_lines"]

# options of a model without a stack
MODEL_OPTIONS = ("engine", "engine_version", "max_model_len", "max_num_seqs", "kv_cache_dtype", "quantization",
                 "gpu_memory_utilization", "revision", "file")  # fmt: skip
SHARING = ("To put models on one GPU, list the same GPU in `gpus` of each, and set `share_gpus: true` and "
           "`gpu_memory_utilization`: `stackgen fit` then names shares that fit")  # fmt: skip

Uses = dict[str, tuple[str, ...]]


def read_uses(spec: StackSpec) -> Uses:
    """The GPUs of each model, by its name: indices and UUIDs, as `render` assigns them."""
    requests, _ = place(spec, explicit=True)
    found: Uses = {}
    for (index, _), request in sorted(requests.items()):
        if request and request.ids:
            name = served_names(spec.models[index])[0]
            found[name] = found.get(name, ()) + tuple(id.rpartition("=")[2] for id in request.ids)
    return found


def find_absent_gpus(uses: Uses, known: Sequence[Any]) -> tuple[str, ...]:
    """The GPUs of `uses` that are not among those of the machine. `known`: what nvidia-smi lists."""
    there = {str(one.index) for one in known}
    used = dict.fromkeys(id for ids in uses.values() for id in ids)
    # the driver accepts the first characters of a UUID; nvidia-smi's query lists no MIG instances
    return tuple(id for id in used if (id.isdigit() and id not in there) or
                 (id.startswith("GPU-") and not any(one.uuid.startswith(id) for one in known)))  # fmt: skip


def use_lines(uses: Uses, absent: Sequence[str], known: int) -> Iterator[str]:
    """How many GPUs the stack needs, and that this machine lacks some. `known`: the number of its GPUs; 0: unknown."""
    total = len({id for ids in uses.values() for id in ids})
    where = "; ".join(f"{name} on {','.join(dict.fromkeys(ids))}" for name, ids in uses.items())
    need = f"the stack needs {total} GPU{'s' if total > 1 else ''}: {where}"
    if not absent:
        if not known and total > 1:
            yield need
        return
    yield f"✗ {need}. This machine has {known} GPU{'s' if known > 1 else ''}, and lacks {_names(absent)}"
    if len(uses) > 1:
        yield f"  {SHARING}"


def _names(ids: Sequence[str]) -> str:
    indices = ", ".join(id for id in ids if id.isdigit())
    return ", ".join([*([f"GPU {indices}"] if indices else []), *(id for id in ids if not id.isdigit())])


def find_ignored_options(args: Namespace, spec: StackSpec) -> Iterator[str]:
    """Warnings about options that change nothing in the estimate of a stack."""
    given = [f"--{name.replace('_', '-')}" for name in MODEL_OPTIONS if getattr(args, name) is not None]
    if given:
        verb = "has" if len(given) == 1 else "have"
        yield (f"warning: {', '.join(given)} {verb} no effect on a stack. Change the fields in stack.yaml, or pass a "
               "model instead of the stack")  # fmt: skip
    if (args.gpu or args.gpu_memory) and not args.gpus and all(one.gpus == 0 for one in spec.models):
        option = "--gpu" if args.gpu else "--gpu-memory"
        yield f"warning: {option} has no effect: all models of the stack run on the CPU. Set `gpus`, or pass a model"
