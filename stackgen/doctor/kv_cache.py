"""Checks that the GPUs support an FP8 KV cache in vLLM. `stackgen.fit.fp8_cache` contains the facts."""

from __future__ import annotations

from stackgen.doctor.facts import Gpu
from stackgen.doctor.finding import DoctorInputs, Result, Results, fail, ok, unknown, warn
from stackgen.doctor.gpus import requested_gpus
from stackgen.fit.fp8_cache import NO, REMEDY, UNKNOWN, YES, find_support, is_fp8

__all__ = ["check_kv_cache_dtype"]


def check_kv_cache_dtype(inputs: DoctorInputs) -> Results:
    """With `kv_cache_dtype: fp8`, the GPUs have an attention backend that can read and write this cache."""
    gpus_of = {place: gpus for place, _, _, gpus in requested_gpus(inputs)}
    for place, model in inputs.model_specs():
        dtype = str(getattr(model, "kv_cache_dtype", None) or "")
        if model.engine != "vllm" or not is_fp8(dtype) or gpus_of.get(place, ()) == ():
            continue
        facts = inputs.models.get(model.model)
        config = (facts.config if facts else None) or {}
        gpus = gpus_of[place]
        if gpus is None:
            yield unknown(f"can't tell whether the GPUs support a KV cache in {dtype}",
                          evidence="this machine's GPUs are unknown", place=f"{place}.kv_cache_dtype")  # fmt: skip
        for gpu in gpus or ():
            yield _check(gpu, dtype, f"{place}.kv_cache_dtype", bool(config.get("kv_lora_rank")))


def _check(gpu: Gpu, dtype: str, field: str, has_mla: bool) -> Result:
    found = find_support(gpu.name, gpu.compute, dtype, has_mla)
    if found.state == UNKNOWN:
        return unknown(found.message, place=field)
    if found.state == YES:
        return ok(found.message, evidence=found.evidence, place=field)
    if found.state == NO:
        return fail(found.message, evidence=found.evidence, fix=REMEDY, place=field)
    return warn(found.message, evidence=found.evidence, place=field,
                fix=f"{REMEDY}. If the start fails with kv_cache_dtype in the message, remove the field")  # fmt: skip
