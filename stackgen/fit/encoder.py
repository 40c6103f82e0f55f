"""Memory of encoders in vLLM: embedding models and rerankers such as BERT and XLM-RoBERTa, which have no KV cache.

Source: vLLM 0.32.0. `EncoderOnlyAttention` (model_executor/layers/attention/encoder_only_attention.py) has no cache.
Without any cache, the engine profiles nothing (`_initialize_kv_caches` in v1/engine/core.py) and takes what it needs.
It computes each prompt in one step, so a step has at least as many tokens as the context (engine/arg_utils.py, where
`enable_chunked_prefill` is false). Activations on GPUs are computed from these shapes and not measured, so their
bounds are wide.
"""

from __future__ import annotations

from stackgen.fit.architecture import DTYPE_BYTES, Architecture
from stackgen.fit.gpus import GIB
from stackgen.fit.settings import Settings
from stackgen.fit.terms import CPU_PROCESSES, Term

__all__ = ["encoder_activation", "encoder_processes", "step_tokens"]

# bytes of a number in float32, in which poolers return their results
FLOAT = 4
# GiB that kernels and the allocator may need besides the tensors
REST = 0.5


def step_tokens(settings: Settings, resolved: Settings, length: int) -> int:
    """Tokens of the largest step. `settings`: as given; `resolved`: with the defaults for the GPU."""
    if settings.max_num_batched_tokens:
        return settings.max_num_batched_tokens
    return min((resolved.max_num_seqs or 1) * length, max(length, resolved.max_num_batched_tokens or 0))


def encoder_activation(model: Architecture, settings: Settings, tokens: int) -> Term:
    """The peak of a step of `tokens` tokens: one layer's tensors, and the results of the pooler."""
    element, parallel = DTYPE_BYTES[settings.dtype or model.dtype], settings.tensor_parallel
    layer = tokens * (2 * model.feed_forward + 4 * model.hidden) // parallel * element
    states = 3 * tokens * model.hidden * element
    pooled = tokens * model.hidden * FLOAT
    size = layer + states
    return Term("activations", size, 0, 2 * size + pooled + int(REST * GIB),
                f"{tokens} tokens in one step; computed from the sizes, not measured")  # fmt: skip


def encoder_processes() -> Term:
    """What the processes of vLLM take on the CPU, without weights."""
    low, middle, high = (int(one * GIB) for one in CPU_PROCESSES["vllm"])
    return Term("engine processes", middle, low, high, "PyTorch and the API server")
