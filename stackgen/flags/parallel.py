"""How many groups of GPUs an engine needs: data parallelism, context parallelism, several machines.

Source: vLLM 0.32.0, `vllm/engine/arg_utils.py` (`create_engine_config`) and `vllm/config/parallel.py`; SGLang 0.5.23,
`arg_groups/parallel_hook.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from stackgen.flags import load_flags
from stackgen.flags.arguments import parse_arguments

__all__ = [
    "count_groups", "count_machines", "count_model_groups", "count_sglang_groups", "count_stages", "read_flags",
    "sglang_tensor_size",
]  # fmt: skip

LOCAL, SIZE = "--data-parallel-size-local", "--data-parallel-size"
CONTEXT, NODES = "--prefill-context-parallel-size", "--nnodes"
# with Ray, either of them may place processes on other machines
BACKENDS = ("--distributed-executor-backend", "--data-parallel-backend")
# SGLang's data parallel attention
ATTENTION = {"--attn-dp-size", "--enable-dp-attention"}
# with one of these, a process runs one data parallel rank
EXTERNAL = ("--data-parallel-rank", "--data-parallel-external-lb")


def count_groups(arguments: Sequence[str], version: str | None = None) -> int | None:
    """How often vLLM needs tensor x pipeline parallel size GPUs in one container; None if several machines share them.

    `--data-parallel-size 8` needs 8 groups of GPUs, each with a copy of the weights.
    """
    if not arguments:
        return 1
    given = read_flags("vllm", arguments, version)
    if _number(given.get(NODES)) > 1 or any(given.get(one) == "ray" for one in BACKENDS):
        return None
    if any(name in given for name in EXTERNAL):
        ranks = 1
    else:
        ranks = _number(given[LOCAL]) if LOCAL in given else _number(given.get(SIZE))
    return ranks * _number(given.get(CONTEXT))


def count_sglang_groups(model: Any) -> int:
    """How often SGLang needs tensor x pipeline parallel size GPUs: one group for each copy of data parallelism.

    With data parallel attention, the copies are inside of the tensor parallel group, and need no further GPUs.
    """
    return (
        1
        if ATTENTION & set(read_flags("sglang", model.extra_args, model.engine_version))
        else int(model.data_parallel_size)
    )


def sglang_tensor_size(model: Any, gpu_count: int) -> int:
    """SGLang's tensor parallel size: the field, else all GPUs that pipeline and data parallelism leave."""
    groups = model.pipeline_parallel_size * count_sglang_groups(model)
    return int(model.tensor_parallel_size or max(1, gpu_count // groups))


def read_flags(engine: str, arguments: Sequence[str], version: str | None = None) -> dict[str, str | None]:
    """The values of the flags in `arguments` by each of their names; None for a flag without a value.

    `version` is the engine's. Without a table of it, the flags are read as the pinned version reads them.
    """
    known = load_flags(engine, version) or load_flags(engine)
    return {name: argument.value for argument in (parse_arguments(engine, arguments, known) if known else ())
            for name in (argument.entry["names"] if argument.entry else ())}  # fmt: skip


def count_model_groups(model: Any) -> int | None:
    """`count_groups` for a vLLM model with its field `data_parallel_size`."""
    size = ("--data-parallel-size", str(model.data_parallel_size)) if model.data_parallel_size > 1 else ()
    return count_groups((*size, *model.extra_args), model.engine_version)


def _number(text: str | None) -> int:
    # vLLM itself refuses other texts
    return int(text) if text and re.fullmatch(r"[1-9]\d{0,3}", text, re.ASCII) else 1


def count_machines(model: Any) -> int:
    """The machines of `hosts` that compute one replica of `model` together, each with the GPUs of `gpus`."""
    return max(1, len(model.host)) if getattr(model, "split_hosts", False) else 1


def count_stages(model: Any, nodes: int = 1) -> int:
    """The pipeline stages of `model`: without a size in the stack file, one for each machine.

    `nodes`: of a cluster, on which the GPUs of `gpus` are.
    """
    stages = int(getattr(model, "pipeline_parallel_size", 1))
    machines = max(nodes, count_machines(model))
    # tensor parallelism over several machines waits for the network in each layer
    return machines if stages == 1 and not getattr(model, "tensor_parallel_size", None) else stages
