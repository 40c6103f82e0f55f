"""The memory of llama.cpp and FastChat on one GPU: both allocate a cache of a fixed size, or one that grows.

llama.cpp b11434: `common_memory_breakdown_print` of `llama-server -v` with SmolLM2-135M-Instruct.Q4_1 and four sets of
flags; tests/live/test_fit.py repeats the comparison. The cache has `--ctx-size` cells for all slots together; a sliding
window has fewer. FastChat 0.2.36: fastchat/serve/inference.py calls Transformers with the whole prompt, which returns
the logits of each of its tokens, and the cache grows with each request.
"""

from __future__ import annotations

from stackgen.fit.architecture import Architecture, CacheLayer
from stackgen.fit.cache import CachePlan, Group
from stackgen.fit.gpus import GIB
from stackgen.fit.settings import Settings
from stackgen.fit.terms import Term
from stackgen.fit.weights import Weights, weigh

__all__ = ["fastchat_plan", "fastchat_terms", "llamacpp_plan", "llamacpp_terms"]

# bytes for each value of a cache, ggml/src/ggml-common.h; a quantized block has 32 values
GGML_BYTES = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32, "q4_1": 20 / 32, "iq4_nl": 18 / 32,
    "q5_0": 22 / 32, "q5_1": 24 / 32,
}  # fmt: skip
UBATCH = 512
# llama.cpp pads a window's cells to this number
WINDOW_PADDING = 256
# GiB of the CUDA context, kernels and cuBLAS of one process: what common_fit_params leaves is 1 GiB
CONTEXT = (0.45, 0.25, 0.9)


def llamacpp_plan(model: Architecture, settings: Settings) -> CachePlan:
    """The cache of `llama-server`: a token of a layer is a block of its own."""
    element = GGML_BYTES.get(settings.kv_cache_dtype, 2.0)
    slots = settings.max_num_seqs or 1
    whole = sum(_token_bytes(layer, element) for layer in model.layers if layer.kind in ("full", "mla"))
    fixed = 0.0
    for layer in model.layers:
        if layer.kind == "sliding":
            cells = -(-(layer.window * slots + UBATCH) // WINDOW_PADDING) * WINDOW_PADDING
            fixed += cells * _token_bytes(layer, element)
        elif layer.state:
            # recurrent states are float32, one for each slot
            fixed += slots * layer.state.size(1, "float32")
    groups = (Group("full", len(model.layers), 1, int(whole)),) if whole else ()
    return CachePlan(groups, max(1, int(whole)), float(whole), fixed=int(fixed))


def _token_bytes(layer: CacheLayer, element: float) -> float:
    return (layer.heads * (layer.head_size + layer.value_size)) * element


def llamacpp_terms(weights: Weights, model: Architecture, settings: Settings, length: int) -> list[Term]:
    """Weights, compute buffer, and context."""
    share = settings.tensor_parallel
    size = weights.total // share
    tokens = settings.max_num_batched_tokens or UBATCH
    # five states and three intermediate vectors of each token, and the mask of attention
    mask = length * tokens * 2
    compute = tokens * (5 * model.hidden + 3 * _inner(model)) * 4 + mask
    middle, low, high = (int(one * GIB) for one in CONTEXT)
    return [
        # the embeddings of the input stay in the machine's memory
        Term("weights", size, int(size * 0.9), int(size * 1.01) + GIB // 20, weights.source),
        Term("compute buffer", compute, compute // 2, 2 * compute + tokens * model.vocabulary * 4,
             f"{tokens} tokens at a time"),
        Term("CUDA and NCCL", middle, low, high, "CUDA and cuBLAS"),
    ]  # fmt: skip


def _inner(model: Architecture) -> int:
    return max(model.feed_forward, model.active_experts * model.expert_size)


def fastchat_plan(model: Architecture, settings: Settings) -> CachePlan:
    """The cache of Transformers: all tokens of all layers, also beyond a sliding window."""
    layers = [layer for layer in model.layers if layer.kind != "state"]
    # MLA models of Transformers 4 cache whole keys and values
    token = sum(layer.token_bytes(1, 2.0) * (model.heads if layer.kind == "mla" else 1) for layer in layers)
    fixed = sum(layer.state.size(1, "float32") for layer in model.layers if layer.state)
    token //= settings.tensor_parallel
    return CachePlan((Group("full", len(layers), 1, token),) if token else (), max(1, token), float(token), fixed=fixed)


def fastchat_terms(weights: Weights, model: Architecture, settings: Settings, length: int) -> list[Term]:
    """Weights in 16 bits, the logits of a prompt, and the context."""
    size = weigh(weights, model, dtype="float16", quantization="") // settings.tensor_parallel
    if settings.quantization == "8bit":
        size = size // 2
    # 2 bytes, and 4 more where Transformers casts them to float32
    logits = length * model.vocabulary * 2
    forward = length * (4 * model.hidden + 3 * _inner(model)) * 2
    middle, low, high = (int(one * GIB) for one in CONTEXT)
    return [
        Term("weights", size, int(size * 0.97), int(size * 1.05), weights.source),
        # PyTorch keeps freed memory in pieces, so the peak of a long prompt is not exact
        Term("logits of a prompt", logits + forward, logits // 2, 3 * logits + 2 * forward,
             f"a prompt of {length} tokens x {model.vocabulary} entries of the vocabulary"),
        Term("CUDA and NCCL", middle, low, high, "CUDA and cuBLAS"),
    ]  # fmt: skip
