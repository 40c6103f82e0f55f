"""What makes an estimate uncertain besides the model: the engine's version, a shared memory, an AMD GPU.

No start-up log of an AMD GPU with all sizes is public, so the sizes of buffers are those of NVIDIA GPUs. The sizes of
weights and of the KV cache are the same on both.
"""

from __future__ import annotations

from collections.abc import Sequence

from stackgen.fit.gpus import Gpu
from stackgen.fit.settings import Settings
from stackgen.fit.terms import Term

__all__ = ["AMD_FACTOR", "platform_doubts"]

# the first version without the old engine
FIRST_VERSION = (0, 8, 3)
# how many times the size on NVIDIA GPUs the buffers may have on an AMD GPU, until the verdict is open
AMD_FACTOR = 3


def platform_doubts(settings: Settings, gpu: Gpu, terms: Sequence[Term], spare: int) -> list[str]:
    """One sentence for each doubt. `terms`: the weights first. `spare`: bytes left for certain on NVIDIA GPUs."""
    doubts = []
    if settings.engine == "vllm" and settings.version < FIRST_VERSION:
        doubts.append("stackgen does not know the memory of the engine that vLLM had before 0.8.3")
    if gpu.unified:
        doubts.append("this GPU shares its memory with the CPU and other programs, which need memory too")
    if gpu.is_amd and not _fits_on_amd(terms, spare):
        doubts.append(f"the sizes of buffers were measured on NVIDIA GPUs, and with {AMD_FACTOR} times these sizes, as "
                      "an AMD GPU may need, the model does not fit")  # fmt: skip
    return doubts


def _fits_on_amd(terms: Sequence[Term], spare: int) -> bool:
    """Whether `spare` is enough for buffers that are AMD_FACTOR times as large as on an NVIDIA GPU."""
    return sum(one.high for one in terms[1:]) * (AMD_FACTOR - 1) <= spare
