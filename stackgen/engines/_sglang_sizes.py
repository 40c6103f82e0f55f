"""Finds parallel sizes of SGLang that don't match the GPUs of a replica.

Source: SGLang 0.5.23, `arg_groups/parallel_hook.py` and `arg_groups/validation_hook.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.engines.base import Replica
from stackgen.errors import Mistake
from stackgen.flags.parallel import count_sglang_groups, read_flags

__all__ = ["find_size_mistakes"]

# the same command runs on each machine, with --node-rank and --dist-init-addr
NODES = "--nnodes"


def find_size_mistakes(replica: Replica) -> Iterator[Mistake]:
    """GPUs that would idle, GPUs that would be missing, and `gpus: all` without a size."""
    model, count, path = replica.spec, replica.gpu_count, replica.path
    if count is None:
        if not model.tensor_parallel_size:
            yield Mistake(
                f"{path}.gpus",
                "`gpus: all` needs tensor_parallel_size: the number of GPUs is unknown before the start",
                hint="set `gpus` to a number or a list, or set tensor_parallel_size",
            )  # fmt: skip
        return
    nodes = read_flags("sglang", model.extra_args).get(NODES) or "1"
    # with several machines (NODES), the sizes count the GPUs of all machines; on the CPU, NUMA nodes
    if not count or (re.fullmatch(r"\d+", nodes) and int(nodes) > 1):
        return
    groups = model.pipeline_parallel_size * count_sglang_groups(model)
    need = (model.tensor_parallel_size or 1) * groups
    what = "tensor_parallel_size x pipeline_parallel_size x data_parallel_size"
    if need > count:
        yield Mistake(f"{path}.gpus", f"{what} is {need}, but each replica has {count} GPU{'s' if count > 1 else ''}",
                      hint=f"set `gpus: {need}`, or decrease one of the sizes")  # fmt: skip
    elif model.tensor_parallel_size and need < count:
        yield Mistake(f"{path}.tensor_parallel_size", f"{what} is {need}, but each replica has {count} GPUs",
                      hint=f"set `gpus: {need}`, or remove tensor_parallel_size to use all GPUs")  # fmt: skip
    elif not model.tensor_parallel_size and count % groups:
        yield Mistake(f"{path}.gpus", f"{count} GPUs can't be split into {groups} groups of equal size",
                      hint="change `gpus` to a multiple of the number of groups")  # fmt: skip
