"""Splitting a model over cards: heads, KV heads and layers must divide.

As in vLLM 0.32.0 (`ModelConfig.verify_with_parallel_config`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackgen.doctor.finding import Case, Results, fail, good, unknown
from stackgen.doctor.model_facts import ModelFacts
from stackgen.plan import GpuRequest

__all__ = ["heads", "kv_heads", "layers", "sizes"]


HEADS = ("num_attention_heads", "n_head")
KV_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num")


def sizes(case: Case, model: Any, request: GpuRequest | None) -> tuple[int, int]:
    """Tensor and pipeline parallel size of a vLLM model, as the engine would be told."""
    pipeline = getattr(model, "pipeline_parallel_size", 1)
    count = 1
    if request:
        all_of_them = request.count == -1 or request.ids[-1:] == ("nvidia.com/gpu=all",)
        count = len(case.host.gpus or ()) if all_of_them else len(request.ids) or request.count
    return getattr(model, "tensor_parallel_size", None) or max(1, count // pipeline), pipeline


def _split(case: Case) -> Iterator[tuple[str, Any, int, int, ModelFacts | None]]:
    done = set()
    requests = {place: request for place, _, request in case.gpu_requests()}
    for place, model in case.specs():
        if model.engine == "vllm" and place not in done:
            done.add(place)
            yield place, model, *sizes(case, model, requests.get(place)), case.models.get(model.model)


def _field(place: str, model: Any) -> str:
    return f"{place}.tensor_parallel_size" if model.tensor_parallel_size else f"{place}.gpus"


def _why(facts: ModelFacts | None) -> str:
    return "config.json does not say" if facts and facts.config is not None else "no config.json at hand"


def heads(case: Case) -> Results:
    """Attention heads are a multiple of the tensor parallel size."""
    for place, model, tensor, _pipeline, facts in _split(case):
        if tensor == 1:
            continue
        count = facts.number(*HEADS) if facts else None
        if count is None:
            yield unknown(f"whether {tensor} cards divide the attention heads is unknown", _why(facts),
                          place=_field(place, model))  # fmt: skip
        elif count % tensor:
            allowed = [size for size in (1, 2, 3, 4, 5, 6, 7, 8, 16) if count % size == 0 and size < tensor]
            yield fail(
                f"{count} attention heads can't be split over {tensor} cards",
                "config.json: num_attention_heads",
                f"tensor_parallel_size: {allowed[-1]}, with as many gpus",
                _field(place, model),
            )
        else:
            yield good(f"{count} attention heads split over {tensor} cards", place=place)


def kv_heads(case: Case) -> Results:
    """KV heads are a multiple of the tensor parallel size, or divide it (they are copied then)."""
    for place, model, tensor, _pipeline, facts in _split(case):
        if tensor == 1:
            continue
        # without a number of their own there is one for each attention head (vLLM, `get_total_num_kv_heads`)
        count = facts.number(*KV_HEADS) or facts.number(*HEADS) if facts else None
        if count is None:
            yield unknown(f"whether {tensor} cards divide the KV heads is unknown", _why(facts), place=place)
        elif count % tensor and tensor % count:
            allowed = [one for one in range(1, tensor) if count % one == 0 or one % count == 0]
            yield fail(f"{count} KV heads fit no split over {tensor} cards", "config.json: num_key_value_heads; one of "
                       "both numbers must be a multiple of the other", f"tensor_parallel_size: {allowed[-1]}",
                       _field(place, model))  # fmt: skip
        else:
            yield good(f"{count} KV heads suit {tensor} cards", place=place)


def layers(case: Case) -> Results:
    """There are at least as many layers as pipeline stages."""
    for place, _model, _tensor, pipeline, facts in _split(case):
        if pipeline == 1:
            continue
        count = facts.number("num_hidden_layers", "n_layer") if facts else None
        field = f"{place}.pipeline_parallel_size"
        if count is None:
            yield unknown(f"whether the model has {pipeline} layers is unknown", _why(facts), place=field)
        elif pipeline > count:
            yield fail(f"{count} layers can't be split into {pipeline} stages", "config.json: num_hidden_layers",
                       f"pipeline_parallel_size: {count} at most", field)  # fmt: skip
        else:
            yield good(f"{count} layers split into {pipeline} stages", place=field)
