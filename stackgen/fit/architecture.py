"""What a model needs memory for, as typed data: its layers' caches, and the sizes that activations depend on.

`stackgen.fit.config` reads it from config.json, and `stackgen.fit.gguf` from a GGUF header.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DTYPE_BYTES", "Architecture", "CacheLayer", "State"]

# bytes of one element of a KV cache; the names are those of `--kv-cache-dtype` and of config.json
DTYPE_BYTES = {
    "float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2, "bfloat": 2, "fp8": 1, "fp8_e4m3": 1,
    "fp8_e5m2": 1, "fp8_inc": 1, "int8": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class State:
    """The fixed state of a Mamba or linear attention layer, in elements on one GPU.

    - `conv`: channels of the convolution that are split across GPUs; `conv_length`: its length in tokens.
    - `groups`, `group_size`: groups of B and C, which belong to the convolution; replicated if they can't be split.
    - `kept`: states that prefix caching keeps for a request, next to the one in use.
    - `temporal`: elements of the recurrent state. `temporal_dtype`: its dtype; "" for that of the convolution.
    """

    conv: int
    conv_length: int
    temporal: int = 0
    temporal_dtype: str = ""
    groups: int = 0
    group_size: int = 0
    kept: int = 1

    def size(self, tensor_parallel: int, dtype: str) -> int:
        """Bytes on each of `tensor_parallel` GPUs, if the model has `dtype`.

        Source: vLLM 0.32.0, `MambaStateShapeCalculator` (vllm/model_executor/layers/mamba/mamba_utils.py).
        """
        groups = self.groups
        if groups % tensor_parallel:
            # each GPU needs the groups of its heads, so groups that can't be split are copied
            groups += tensor_parallel - groups
        channels = (self.conv + 2 * groups * self.group_size) // tensor_parallel
        temporal = self.temporal // tensor_parallel * DTYPE_BYTES[self.temporal_dtype or dtype]
        return channels * self.conv_length * DTYPE_BYTES[dtype] + temporal


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """The cache of one layer.

    - `kind`: `full` attention, `sliding` or `chunked` local attention, `mla` (one latent vector), `state` (fixed size).
    - `heads`: KV heads of the whole model; `head_size`, `value_size`: elements of one head. With `mla`, `head_size` is
      the size of the latent vector.
    - `window`: tokens of a sliding window or a chunk.
    """

    kind: Literal["full", "sliding", "chunked", "mla", "state"]
    heads: int = 0
    head_size: int = 0
    value_size: int = 0
    window: int = 0
    state: State | None = None

    def token_bytes(self, tensor_parallel: int, element: float) -> int:
        """Bytes of one token on each GPU. KV heads that can't be split are replicated, as is MLA's latent vector."""
        if self.kind == "mla":
            return int(self.head_size * element)
        heads = max(1, self.heads // tensor_parallel)
        return int(heads * (self.head_size + self.value_size) * element)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The part of a model's config that memory depends on.

    - `name`, `family`: `architectures[0]` and `model_type` of config.json, or the architecture of a GGUF file.
    - `layers`: the caches in the order of the layers. A layer that uses another layer's cache has none.
    - `depth`: number of layers, with or without a cache. `length`: longest context in tokens; 0 if unknown.
    - `feed_forward`: the largest intermediate size of a dense layer. `experts`, `active_experts`, `expert_size`: of a
      mixture of experts.
    - `block`: how many inputs a block of FP8 weights has; 0 without blocks.
    - `vision`: hidden size, depth, and largest number of patches of the vision encoder; zeros without one.
    - `expanded`: elements of keys and values of one token in a layer with MLA, where an engine does not keep the latent
      vector; 0 if unknown.
    - `doubts`: what about this model makes an estimate less certain, in words.
    """

    name: str
    family: str
    layers: tuple[CacheLayer, ...]
    depth: int
    hidden: int
    heads: int
    vocabulary: int
    dtype: str
    length: int = 0
    feed_forward: int = 0
    experts: int = 0
    active_experts: int = 0
    expert_size: int = 0
    tied: bool = False
    quantization: str = ""
    block: int = 0
    vision: tuple[int, int, int] = (0, 0, 0)
    expanded: int = 0
    doubts: tuple[str, ...] = ()

    @property
    def is_hybrid(self) -> bool:
        """Whether some layers have a fixed state instead of a KV cache."""
        return any(layer.kind == "state" for layer in self.layers)

    @property
    def is_encoder(self) -> bool:
        """Whether no layer has a cache: an embedding model or a reranker."""
        return not self.layers

    @property
    def uses_mla(self) -> bool:
        """Whether the cache has latent vectors (multi-head latent attention)."""
        return any(layer.kind == "mla" for layer in self.layers)
