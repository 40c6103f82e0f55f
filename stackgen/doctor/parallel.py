"""Checks that attention heads, KV heads and layers can be split across the GPUs.

The rules are those of vLLM 0.32.0 (`ModelConfig.verify_with_parallel_config`). SGLang 0.5.23 splits heads in the same
way (`distributed/utils.py`, `divide`; `get_num_kv_heads`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackgen.doctor.finding import DoctorInputs, Results, fail, ok, unknown
from stackgen.doctor.model_facts import ModelFacts
from stackgen.flags.parallel import count_machines, count_model_groups, count_stages, sglang_tensor_size
from stackgen.plan import GpuRequest
from stackgen.resolve.cluster import count_nodes

__all__ = ["EXPERTS", "SPLITTING", "check_attention_heads", "check_experts", "check_kv_heads", "check_layers",
           "parallel_sizes", "split_models"]  # fmt: skip

# engines that split each layer across the GPUs of a replica
SPLITTING = ("vllm", "sglang")


# the names differ between architectures
HEADS = ("num_attention_heads", "n_head")
KV_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num")


def parallel_sizes(inputs: DoctorInputs, model: Any, request: GpuRequest | None) -> tuple[int, int]:
    """The tensor and pipeline parallel size of a model in vLLM or SGLang, as its flags will set them."""
    count = 1
    if request:
        # CDI has no count: the device `all` contains every GPU
        takes_all = request.count == -1 or request.ids[-1:] == ("nvidia.com/gpu=all",)
        count = len(inputs.host.gpus or ()) if takes_all else len(request.ids) or request.count
    # data parallelism runs copies of the model on further GPUs
    stack = inputs.stack.spec if inputs.stack else None
    pipeline = count_stages(model, count_nodes(model, stack) if stack and stack.target == "kubernetes" else 1)
    if model.engine == "sglang":
        return sglang_tensor_size(model, count), pipeline
    groups = count_model_groups(model) or 1
    return model.tensor_parallel_size or max(1, count * count_machines(model) // (pipeline * groups)), pipeline


def split_models(inputs: DoctorInputs) -> Iterator[tuple[str, Any, int, int, ModelFacts | None]]:
    """Each model that an engine splits, with its path, tensor and pipeline parallel size, and facts."""
    done = set()
    # the replicas of a model have requests of equal size, so any of them will do
    requests = {place: request for place, _, request in inputs.gpu_requests()}
    for place, model in inputs.model_specs():
        if model.engine in SPLITTING and place not in done:
            done.add(place)
            sizes = parallel_sizes(inputs, model, requests.get(place))
            yield place, model, *sizes, inputs.models.get(model.model)


def _size_field(place: str, model: Any) -> str:
    # without tensor_parallel_size, the number of GPUs decides
    return f"{place}.tensor_parallel_size" if model.tensor_parallel_size else f"{place}.gpus"


def _why_unknown(facts: ModelFacts | None, what: str) -> str:
    return (
        f"config.json does not contain the number of {what}"
        if facts and facts.config is not None
        else "config.json is not available"
    )


def check_attention_heads(inputs: DoctorInputs) -> Results:
    """The number of attention heads is a multiple of the tensor parallel size."""
    for place, model, tensor, _pipeline, facts in split_models(inputs):
        if tensor == 1:
            continue
        count = facts.number(*HEADS) if facts else None
        field = _size_field(place, model)
        if count is None:
            yield unknown(
                f"can't tell whether the attention heads can be split across {tensor} GPUs",
                evidence=_why_unknown(facts, "attention heads"),
                place=field,
            )
        elif count % tensor:
            # 1 divides every number, so the list is never empty
            allowed = [size for size in (1, 2, 3, 4, 5, 6, 7, 8, 16) if count % size == 0 and size < tensor]
            yield fail(
                f"{count} attention heads can't be split across {tensor} GPUs",
                evidence="config.json: num_attention_heads",
                # the largest size that works
                fix=f"set `tensor_parallel_size: {allowed[-1]}`, and reduce `gpus` accordingly",
                place=field,
            )
        else:
            yield ok(f"{count} attention heads can be split across {tensor} GPUs", place=place)


def check_kv_heads(inputs: DoctorInputs) -> Results:
    """The number of KV heads is a multiple of the tensor parallel size, or divides that size.

    In the second case, vLLM copies the heads.
    """
    for place, model, tensor, _pipeline, facts in split_models(inputs):
        if tensor == 1:
            continue
        # a config without KV heads has one for each attention head (vLLM, `get_total_num_kv_heads`)
        count = facts.number(*KV_HEADS) or facts.number(*HEADS) if facts else None
        if count is None:
            yield unknown(
                f"can't tell whether the KV heads can be split across {tensor} GPUs",
                evidence=_why_unknown(facts, "KV heads"),
                place=place,
            )
        elif count % tensor and tensor % count:
            # 1 divides every number, so the list is never empty
            allowed = [one for one in range(1, tensor) if count % one == 0 or one % count == 0]
            yield fail(
                f"{count} KV head{'s' * (count > 1)} can't be split across {tensor} GPUs",
                evidence="the number of KV heads (num_key_value_heads in config.json) must be a multiple or a divisor "
                "of the number of GPUs",
                fix=f"set `tensor_parallel_size: {allowed[-1]}`",
                place=_size_field(place, model),
            )
        else:
            yield ok(f"{count} KV head{'s' * (count > 1)} can be split across {tensor} GPUs", place=place)


def check_layers(inputs: DoctorInputs) -> Results:
    """The model has at least as many layers as pipeline stages."""
    for place, _model, _tensor, pipeline, facts in split_models(inputs):
        if pipeline == 1:
            continue
        count = facts.number("num_hidden_layers", "n_layer") if facts else None
        field = f"{place}.pipeline_parallel_size"
        if count is None:
            evidence = _why_unknown(facts, "layers")
            message = f"can't tell whether the model has at least {pipeline} layers"
            yield unknown(message, evidence=evidence, place=field)
        elif pipeline > count:
            yield fail(
                f"{count} layers can't be split into {pipeline} pipeline stages",
                evidence="config.json: num_hidden_layers",
                fix=f"set `pipeline_parallel_size` to at most {count}",
                place=field,
            )
        else:
            yield ok(f"{count} layers can be split into {pipeline} pipeline stages", place=field)


# the names that vLLM 0.32.0 looks for (`get_num_experts`, transformers_utils/model_arch_config_convertor.py)
EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")


def check_experts(inputs: DoctorInputs) -> Results:
    """With `expert_parallel`, the model has experts: vLLM refuses to start otherwise."""
    for place, model in inputs.model_specs():
        if not getattr(model, "expert_parallel", False):
            continue
        facts, field = inputs.models.get(model.model), f"{place}.expert_parallel"
        if facts is None or facts.config is None:
            yield unknown("can't tell whether the model has experts", evidence=_why_unknown(facts, "experts"),
                          place=field)  # fmt: skip
        elif facts.number(*EXPERTS):
            yield ok(f"the model has {facts.number(*EXPERTS)} experts", evidence="config.json", place=place)
        else:
            yield fail("expert_parallel needs a mixture-of-experts model, and this model has no experts",
                       evidence=f"config.json has none of {', '.join(EXPERTS)}",
                       fix="remove expert_parallel", place=field)  # fmt: skip
