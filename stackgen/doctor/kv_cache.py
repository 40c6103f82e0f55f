"""Checks that the GPUs support an FP8 KV cache in vLLM.

vLLM 0.32.0 takes the first attention backend that accepts the cache's type (`_get_backend_priorities` in
platforms/cuda.py). FlashAttention accepts FP8 on compute capability 9.0 and 10.x (`flash_attn_supports_kv_cache_dtype`
in fa_utils.py), FlashInfer on 8.0 to 12.1 (`FlashInferBackend`), and Triton on 8.9 or higher (triton_attn.py and
mla/triton_mla.py raise a ValueError below it). FlashInfer has no MLA below 10.0, and no cache with a scale for each
token.
"""

from __future__ import annotations

from collections.abc import Iterator

from stackgen.doctor.facts import Gpu
from stackgen.doctor.finding import DoctorInputs, Result, Results, fail, ok, unknown, warn
from stackgen.doctor.gpus import requested_gpus

__all__ = ["check_kv_cache_dtype"]

# compute capabilities: all backends from NATIVE on, only FlashInfer from FLASHINFER on
NATIVE, FLASHINFER = (8, 9), (8, 0)
ONLY_TRITON = "fp8_per_token_head"


def check_kv_cache_dtype(inputs: DoctorInputs) -> Results:
    """With `kv_cache_dtype: fp8`, the GPUs have an attention backend that can read and write this cache."""
    gpus_of = {place: gpus for place, _, _, gpus in requested_gpus(inputs)}
    for place, model in inputs.model_specs():
        dtype = str(getattr(model, "kv_cache_dtype", None) or "")
        if model.engine != "vllm" or not dtype.startswith("fp8") or gpus_of.get(place, ()) == ():
            continue
        facts = inputs.models.get(model.model)
        config = (facts.config if facts else None) or {}
        only_triton = dtype == ONLY_TRITON or bool(config.get("kv_lora_rank"))
        gpus = gpus_of[place]
        if gpus is None:
            yield unknown(f"can't tell whether the GPUs support a KV cache in {dtype}",
                          evidence="this machine's GPUs are unknown", place=f"{place}.kv_cache_dtype")  # fmt: skip
        for gpu in gpus or ():
            yield from _check(gpu, dtype, f"{place}.kv_cache_dtype", only_triton)


def _check(gpu: Gpu, dtype: str, field: str, only_triton: bool) -> Iterator[Result]:
    evidence = f"compute capability {gpu.compute[0]}.{gpu.compute[1]}" if gpu.compute else ""
    remedy = "remove `kv_cache_dtype`, or use a GPU with compute capability 8.9 or higher (Ada, Hopper, Blackwell)"
    if gpu.compute is None:
        yield unknown(f"can't tell whether {gpu.name} supports a KV cache in {dtype}", place=field)
    elif gpu.compute >= NATIVE:
        yield ok(f"{gpu.name} supports a KV cache in {dtype}", evidence=evidence, place=field)
    elif gpu.compute < FLASHINFER or only_triton:
        yield fail(
            f"{gpu.name} does not support a KV cache in {dtype}" + (" for this model" if only_triton else ""),
            evidence=f"{evidence}; vLLM's attention backends for {dtype} need 8.9 or higher", fix=remedy, place=field,
        )  # fmt: skip
    else:
        yield warn(
            f"a KV cache in {dtype} may not work on {gpu.name}: of vLLM's attention backends, only FlashInfer "
            "accepts it",
            evidence=f"{evidence}; FlashAttention needs 9.0, and Triton 8.9",
            fix=f"{remedy}. If the start fails with kv_cache_dtype in the message, remove the field", place=field,
        )  # fmt: skip
