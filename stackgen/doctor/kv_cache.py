"""Checks that the GPUs, or the CPU, support an FP8 KV cache in vLLM. `stackgen.fit.fp8_cache` contains the facts."""

from __future__ import annotations

from stackgen.doctor.facts import Gpu
from stackgen.doctor.finding import DoctorInputs, Result, Results, fail, ok, unknown, warn
from stackgen.doctor.gpus import requested_gpus
from stackgen.fit.fp8_cache import NO, REMEDY, UNKNOWN, YES, find_support, is_fp8

__all__ = ["check_kv_cache_dtype"]

# vLLM 0.32.0, `_get_attn_isa` in v1/attention/backends/cpu_attn.py, as /proc/cpuinfo names them
CPU_FLAGS = frozenset({"avx512f", "amx_tile"})


def check_kv_cache_dtype(inputs: DoctorInputs) -> Results:
    """With `kv_cache_dtype: fp8`, the GPUs or the CPU have an attention backend that can read and write this cache."""
    gpus_of = {place: gpus for place, _, _, gpus in requested_gpus(inputs)}
    for place, model in inputs.model_specs():
        dtype = str(getattr(model, "kv_cache_dtype", None) or "")
        if model.engine != "vllm" or not is_fp8(dtype):
            continue
        if not model.gpus:
            yield _check_cpu(inputs, dtype, f"{place}.kv_cache_dtype")
            continue
        if gpus_of.get(place, ()) == ():
            continue
        facts = inputs.models.get(model.model)
        config = (facts.config if facts else None) or {}
        gpus = gpus_of[place]
        if gpus is None:
            yield unknown(f"can't tell whether the GPUs support a KV cache in {dtype}",
                          evidence="this machine's GPUs are unknown", place=f"{place}.kv_cache_dtype")  # fmt: skip
        for gpu in gpus or ():
            yield _check(gpu, dtype, f"{place}.kv_cache_dtype", bool(config.get("kv_lora_rank")))


def _check_cpu(inputs: DoctorInputs, dtype: str, field: str) -> Result:
    host = inputs.host
    # AVX exists only on x86-64
    flags = host.cpu_flags if host.cpu_arch == "x86_64" else frozenset()
    if host.cpu_arch is None or flags is None:
        return unknown(f"can't tell whether the CPU supports a KV cache in {dtype}",
                       evidence="the CPU's instruction sets are unknown", place=field)  # fmt: skip
    if found := sorted(flags & CPU_FLAGS):
        return ok(f"the CPU supports a KV cache in {dtype}", evidence=" ".join(found), place=field)
    return fail(f"the CPU does not support a KV cache in {dtype}: vLLM needs AVX-512 or AMX for it, and does not start",
                evidence=f"/proc/cpuinfo: no {', no '.join(sorted(CPU_FLAGS))}", place=field,
                fix="remove `kv_cache_dtype`. `cpu_kv_cache_gib` sets the size of the KV cache")  # fmt: skip


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
