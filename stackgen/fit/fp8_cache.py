"""Which GPUs support an FP8 KV cache in vLLM.

vLLM 0.32.0 takes the first attention backend that accepts the cache's type (`_get_backend_priorities` in
platforms/cuda.py). FlashAttention accepts FP8 on compute capability 9.0 and 10.x (`flash_attn_supports_kv_cache_dtype`
in fa_utils.py), FlashInfer on 8.0 to 12.1 (`FlashInferBackend`), and Triton on 8.9 or higher (triton_attn.py and
mla/triton_mla.py raise a ValueError below it). FlashInfer has no MLA below 10.0, and no cache with a scale for each
token.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MAYBE", "NO", "REMEDY", "UNKNOWN", "YES", "Support", "find_support", "is_fp8"]

YES, NO, MAYBE, UNKNOWN = "yes", "no", "uncertain", "unknown"
# compute capabilities: all backends from NATIVE on, only FlashInfer from FLASHINFER on
NATIVE, FLASHINFER = (8, 9), (8, 0)
ONLY_TRITON = "fp8_per_token_head"
REMEDY = "remove `kv_cache_dtype`, or use a GPU with compute capability 8.9 or higher (Ada, Hopper, Blackwell)"


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a GPU supports the cache: `state`, one sentence about it, and the fact behind it."""

    state: str
    message: str
    evidence: str = ""


def is_fp8(dtype: str) -> bool:
    """Whether `dtype` is one of vLLM's FP8 types of the KV cache."""
    return dtype.startswith("fp8")


def find_support(name: str, compute: tuple[int, int] | None, dtype: str, has_mla: bool) -> Support:
    """Whether the NVIDIA GPU `name` of this compute capability supports a KV cache in `dtype`, an FP8 type."""
    only_triton = has_mla or dtype == ONLY_TRITON
    if compute is None:
        return Support(UNKNOWN, f"can't tell whether {name} supports a KV cache in {dtype}")
    evidence = f"compute capability {compute[0]}.{compute[1]}"
    if compute >= NATIVE:
        return Support(YES, f"{name} supports a KV cache in {dtype}", evidence)
    if compute < FLASHINFER or only_triton:
        for_model = " for this model" if only_triton else ""
        return Support(NO, f"{name} does not support a KV cache in {dtype}{for_model}",
                       f"{evidence}; vLLM's attention backends for {dtype} need 8.9 or higher")  # fmt: skip
    return Support(MAYBE, f"a KV cache in {dtype} may not work on {name}: only vLLM's attention backend FlashInfer "
                          "accepts it", f"{evidence}; FlashAttention needs 9.0, and Triton 8.9")  # fmt: skip
