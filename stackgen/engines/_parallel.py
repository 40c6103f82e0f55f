"""Divides the GPUs of a vLLM replica among its parallel ranks, and finds sizes that don't match the GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackgen.engines.base import Replica
from stackgen.errors import Mistake
from stackgen.flags.parallel import count_model_groups

__all__ = ["find_parallel_mistakes", "parallel_sizes", "tensor_parallel_size"]


def tensor_parallel_size(model: Any, gpu_count: int) -> int:
    """The tensor parallel size: the field, else all GPUs of a replica that pipeline and data parallelism leave."""
    groups = count_model_groups(model) or 1
    return int(model.tensor_parallel_size or max(1, gpu_count // (model.pipeline_parallel_size * groups)))


def parallel_sizes(replica: Replica) -> tuple[int, int]:
    """The tensor and pipeline parallel sizes of a replica: one pipeline stage for each node, unless a field is set."""
    model, pipeline = replica.spec, replica.spec.pipeline_parallel_size
    tensor = tensor_parallel_size(model, replica.gpu_count or 1)
    # tensor parallelism over several nodes waits for the network in each layer
    if replica.nodes > 1 and pipeline == 1 and not model.tensor_parallel_size:
        return max(1, tensor // replica.nodes), replica.nodes
    return tensor, int(pipeline)


def find_parallel_mistakes(replica: Replica) -> Iterator[Mistake]:
    """GPUs that would be idle, GPUs that would be missing, and sizes without GPUs."""
    model, count, groups = replica.spec, replica.gpu_count, count_model_groups(replica.spec)
    size, what = _required(model, groups or 1)
    if count is None:
        if not model.tensor_parallel_size:
            yield Mistake(
                f"{replica.path}.gpus",
                "`gpus: all` needs tensor_parallel_size: the number of GPUs is unknown before the start",
                hint="set `gpus` to a number or a list, or set tensor_parallel_size",
            )
    elif count == 0:
        # `gpus: none` is a decision: on the CPU, the sizes count NUMA nodes
        if size > 1 and "gpus" not in model.model_fields_set:
            field = "tensor_parallel_size" if (model.tensor_parallel_size or 1) > 1 else "pipeline_parallel_size"
            field = (
                field if (model.tensor_parallel_size or 1) * model.pipeline_parallel_size > 1 else "data_parallel_size"
            )
            yield Mistake(f"{replica.path}.{field}", f"{what} is {size}, but `gpus` is not set, so the model would run "
                          "on the CPU", hint=f"set `gpus: {size}`, or set `gpus: none` for the CPU")  # fmt: skip
    # with several machines, the sizes count the GPUs of all machines
    elif groups is None:
        return
    elif size > count:
        # no machine has more GPUs
        more = f"set `gpus: {size}`, or " if size <= 16 else ""
        yield Mistake(
            f"{replica.path}.gpus",
            f"{what} is {size}, but each replica has {count} GPU{'s' if count > 1 else ''}",
            hint=f"{more}decrease {what.replace(' x ', ' or ')}",
        )
    elif not model.tensor_parallel_size and count % size:
        # tensor parallelism would get count // size GPUs, and the remaining GPUs would idle
        parts = f"{model.pipeline_parallel_size} pipeline stages" if groups == 1 else f"{size} groups"
        yield Mistake(f"{replica.path}.gpus", f"{count} GPUs can't be split into {parts} of equal size",
                      hint="set tensor_parallel_size, and change `gpus` to the number of GPUs in use")  # fmt: skip
    elif model.tensor_parallel_size and size < count:
        idle = count - size
        yield Mistake(
            f"{replica.path}.tensor_parallel_size", f"{what} is {size}, but each replica has {count} GPUs: {idle} "
                                                    f"GPU{'s' if idle > 1 else ''} would be idle",
            hint=f"set `gpus: {size}`, or remove tensor_parallel_size to split the model across all GPUs. For copies "
            "of the model on the other GPUs, increase `replicas`",
        )  # fmt: skip


def _required(model: Any, groups: int) -> tuple[int, str]:
    """The GPUs that the sizes need at least, and their names for a message."""
    sizes = {"tensor_parallel_size": model.tensor_parallel_size, "pipeline_parallel_size": model.pipeline_parallel_size,
             "data_parallel_size": groups}  # fmt: skip
    # only those that the user has set
    names = [name for name, size in sizes.items() if (size or 1) > 1] or ["tensor_parallel_size"]
    return (model.tensor_parallel_size or 1) * model.pipeline_parallel_size * groups, " x ".join(names)
