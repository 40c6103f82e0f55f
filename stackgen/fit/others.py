"""The memory of llama.cpp and FastChat on one GPU: both allocate a cache of a fixed size, or one that grows.

llama.cpp b11434: `common_memory_breakdown_print` of `llama-server -v` with SmolLM2-135M-Instruct.Q4_1 and four sets of
flags; tests/live/test_fit.py repeats the comparison. The cache has `--ctx-size` cells for all slots together; a sliding
window has fewer. FastChat 0.2.36: fastchat/serve/inference.py calls Transformers with the whole prompt, which returns
the logits of each of its tokens, and the cache grows with each request. benchmarks/fit_fastchat.py measures a real
worker.
"""

from __future__ import annotations

from stackgen.fit.architecture import DTYPE_BYTES, Architecture, CacheLayer
from stackgen.fit.cache import CachePlan, Group
from stackgen.fit.gpus import GIB
from stackgen.fit.settings import Settings
from stackgen.fit.terms import CPU_PROCESSES, Term
from stackgen.fit.weights import FLOATS, HEAD, Weights, weigh

__all__ = ["LOGITS", "fastchat_plan", "fastchat_terms", "llamacpp_plan", "llamacpp_terms"]

# the only part of FastChat's memory, besides the cache, that grows with the prompt
LOGITS = "logits of a prompt"
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
    return [
        # the embeddings of the input stay in the machine's memory
        Term("weights", size, int(size * 0.9), int(size * 1.01) + GIB // 20, weights.source),
        Term("compute buffer", compute, compute // 2, 2 * compute + tokens * model.vocabulary * 4,
             f"{tokens} tokens at a time"),
        _process(settings),
    ]  # fmt: skip


def _inner(model: Architecture) -> int:
    return max(model.feed_forward, model.active_experts * model.expert_size)


def fastchat_plan(model: Architecture, settings: Settings) -> CachePlan:
    """The cache of Transformers 4.57 (`DynamicCache` in cache_utils.py): all tokens, and the last ones of a window."""
    element, parallel = DTYPE_BYTES[_fastchat_dtype(settings)], settings.tensor_parallel
    whole = [layer for layer in model.layers if layer.kind in ("full", "mla")]
    # models with MLA cache whole keys and values
    token = sum(int((model.expanded or layer.head_size * model.heads) * element) if layer.kind == "mla" else
                layer.token_bytes(1, element) for layer in whole)  # fmt: skip
    token //= parallel
    local = [layer for layer in model.layers if layer.kind in ("sliding", "chunked")]
    fixed = sum(layer.state.size(1, "float32") for layer in model.layers if layer.state)
    fixed += sum((layer.window - 1) * layer.token_bytes(1, element) for layer in local) // parallel
    groups = (Group("full", len(whole), 1, token),) if token else ()
    return CachePlan(groups, max(1, token), float(token), fixed=fixed)


def fastchat_terms(weights: Weights, model: Architecture, settings: Settings, length: int) -> list[Term]:
    """Weights, the logits of a prompt, and the process."""
    dtype = _fastchat_dtype(settings)
    element = DTYPE_BYTES[dtype]
    size = _parameters(weights, model, dtype) // settings.tensor_parallel
    if settings.quantization == "8bit":
        size = int(size / element)
    # and 4 bytes more where Transformers casts them to float32
    logits = int(length * model.vocabulary * element)
    forward = int(length * (4 * model.hidden + 3 * _inner(model)) * element)
    return [
        Term("weights", size, int(size * 0.97), int(size * 1.05), weights.source),
        # PyTorch keeps freed memory in pieces, so the peak of a long prompt is not exact
        Term(LOGITS, logits + forward, logits // 2, 3 * logits + 2 * forward,
             f"a prompt of {length} tokens x {model.vocabulary} entries of the vocabulary"),
        _process(settings),
    ]  # fmt: skip


def _parameters(weights: Weights, model: Architecture, dtype: str) -> int:
    """Bytes of the parameters as Transformers loads them: without vLLM's padding and tables."""
    element = DTYPE_BYTES[dtype]
    if not weights.tensors:
        return weigh(weights, model, dtype=dtype, quantization="")
    own = [one for one in weights.tensors if not (model.tied and HEAD.search(one.name))]
    return int(sum(one.bytes * (element * 8 / FLOATS[one.dtype] if one.dtype in FLOATS else 1) for one in own))


def _fastchat_dtype(settings: Settings) -> str:
    """`load_model` of fastchat/model/model_adapter.py: without --dtype, float16 on GPUs and float32 on the CPU."""
    return settings.dtype or ("float32" if settings.is_cpu else "float16")


def _process(settings: Settings) -> Term:
    if settings.is_cpu:
        low, middle, high = (int(one * GIB) for one in CPU_PROCESSES[settings.engine])
        return Term("engine process", middle, low, high, "the program and its libraries")
    middle, low, high = (int(one * GIB) for one in CONTEXT)
    return Term("CUDA and NCCL", middle, low, high, "CUDA and cuBLAS")
