"""Settings that can't work with a model, no matter how much memory there is."""

from __future__ import annotations

from stackgen.errors import StackgenError
from stackgen.fit.architecture import DTYPE_BYTES, Architecture
from stackgen.fit.settings import Settings

__all__ = ["require_divisible", "require_known"]


def require_known(settings: Settings) -> None:
    """Raises StackgenError if the size of a data type is unknown."""
    for field, value in (("kv_cache_dtype", settings.kv_cache_dtype), ("dtype", settings.dtype)):
        if value not in ("", "auto") and value not in DTYPE_BYTES:
            raise StackgenError(f"{field}: the size of {value!r} is not known to stackgen",
                                f"known: auto, {', '.join(DTYPE_BYTES)}. For other types, start the model once, and "
                                "measure its memory: `stackgen fit --observe`")  # fmt: skip


def require_divisible(known: Architecture, settings: Settings) -> None:
    """Raises StackgenError if the model can't be divided among this number of GPUs."""
    parallel = settings.tensor_parallel
    if known.heads % parallel:
        raise StackgenError(
            f"{known.heads} attention heads can't be divided by a tensor parallel size of {parallel}",
            f"use one of {', '.join(str(n) for n in range(1, 17) if known.heads % n == 0)}",
        )
    slice_, rest = divmod(known.feed_forward, parallel)
    # as doctor (SG-P057): validate_fp8_block_shape of vLLM
    if known.block and not known.experts and parallel > 1 and not rest and slice_ % known.block:
        sizes = [n for n in range(1, 17) if known.heads % n == 0 and known.feed_forward % (n * known.block) == 0]
        raise StackgenError(
            f"the FP8 weights can't be divided by a tensor parallel size of {parallel}: the slice {slice_} of the "
            f"intermediate size {known.feed_forward} is no multiple of the block size {known.block}",
            f"use one of {', '.join(map(str, sizes))}",
        )
    if settings.pipeline_parallel > known.depth:
        raise StackgenError(f"{known.depth} layers can't be divided into {settings.pipeline_parallel} stages",
                            "use fewer pipeline stages")  # fmt: skip
