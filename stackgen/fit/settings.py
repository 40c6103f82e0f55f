"""How an engine is started, as far as memory depends on it, and the engine's own defaults.

Defaults of vLLM: 0.32.0, `EngineArgs.get_batch_defaults` (vllm/engine/arg_utils.py), and vllm/config/cache.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stackgen.fit.gpus import GIB, Gpu

__all__ = ["VLLM_UTILIZATION", "Settings", "batch_defaults"]

# since 0.22; 0.9 before
VLLM_UTILIZATION, OLD_UTILIZATION = 0.92, 0.9
NEW_UTILIZATION_VERSION = (0, 22)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one replica.

    - `version`: of the engine. `utilization`: fraction of the GPU's memory; None: the engine's default.
    - `max_model_len`: tokens; None: the model's own length. -1: the longest that fits.
    - `max_num_seqs`, `max_num_batched_tokens`: None: the engine's default for the GPU.
    - `dtype`, `quantization`, `kv_cache_dtype`: "" and `auto`: from the model.
    - `kv_cache_bytes`: bytes of the cache on each GPU, as of `--kv-cache-memory-bytes`; 0: what remains.
    - `loras`: number of LoRA adapters at the same time; `lora_rank`: the highest rank.
    - `doubts`: flags that change the memory in ways that are not estimated.
    """

    engine: str = "vllm"
    version: tuple[int, ...] = (0, 32, 0)
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    utilization: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    dtype: str = ""
    quantization: str = ""
    kv_cache_dtype: str = "auto"
    enforce_eager: bool = False
    block_size: int = 0
    prefix_caching: bool = True
    is_cpu: bool = False
    kv_cache_bytes: int = 0
    loras: int = 0
    lora_rank: int = 16
    text_only: bool = False
    doubts: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The fraction of the GPU's memory that the engine takes."""
        if self.utilization is not None:
            return self.utilization
        return VLLM_UTILIZATION if self.version >= NEW_UTILIZATION_VERSION else OLD_UTILIZATION

    @property
    def in_flight(self) -> int:
        """Tokens of the batches that are computed at the same time; vLLM 0.32.0, `VllmConfig.max_in_flight_tokens`."""
        # asynchronous scheduling is the default on GPUs, and has one batch more
        batches = self.pipeline_parallel + (0 if self.is_cpu else 1)
        return batches * (self.max_num_batched_tokens or 0)

    def resolve(self, gpu: Gpu) -> Settings:
        """These settings with the engine's defaults for `gpu`."""
        if self.engine != "vllm":
            # llama.cpp: one unified cache for its slots; FastChat: `--limit-worker-concurrency` 5
            return self if self.max_num_seqs else replace(self, max_num_seqs=5 if self.engine == "fastchat" else 1)
        sequences, tokens = batch_defaults(gpu, self.tensor_parallel, self.is_cpu)
        return replace(
            self, max_num_seqs=self.max_num_seqs or sequences,
            max_num_batched_tokens=self.max_num_batched_tokens or max(tokens, 0),
        )  # fmt: skip


def batch_defaults(gpu: Gpu, tensor_parallel: int = 1, is_cpu: bool = False) -> tuple[int, int]:
    """Default of `--max-num-seqs` and `--max-num-batched-tokens` of `vllm serve` on `gpu`."""
    if is_cpu:
        return 128 * tensor_parallel, 2048 * tensor_parallel
    if gpu.memory >= 160 * GIB:
        return 1024, 16384
    # vLLM looks at the name, because a large batch made the A100 slower
    if gpu.memory >= 70 * GIB and "A100" not in gpu.name.upper():
        return 1024, 8192
    return 256, 2048
