"""How vLLM divides KV cache memory into blocks: groups of layers, pages of one size, and blocks that a request needs.

Source: vLLM 0.32.0, `get_kv_cache_groups`, `unify_kv_cache_spec_page_size`, `_get_kv_cache_groups_uniform_page_size`
and `get_kv_cache_capacity` (vllm/v1/core/kv_cache_utils.py), the specs in vllm/v1/kv_cache_interface.py, and
`_align_hybrid_block_size` (vllm/platforms/interface.py). For the default layout, with the layers outermost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from stackgen.fit.architecture import DTYPE_BYTES, Architecture, CacheLayer

__all__ = ["CachePlan", "Group", "plan_cache"]

# vllm/config/cache.py, and vllm/platforms/cpu.py
GPU_BLOCK, CPU_BLOCK, CPU_MLA_BLOCK = 16, 128, 16
# tokens that a block of an MLA backend has at least: FlashMLA 64; hybrid models align to 128 tokens
MLA_BLOCK, HYBRID_MLA_ALIGNMENT = 64, 128


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share a table of blocks. `page` is the bytes of one block of all its layers, padding included."""

    kind: str
    layers: int
    block_size: int
    page: int
    window: int = 0
    kept: int = 1

    def blocks(self, length: int, in_flight: int, is_aligned: bool) -> int:
        """Blocks that a request of `length` tokens needs, while `in_flight` tokens are being computed."""
        if self.kind == "state":
            # with prefix caching, earlier states are kept too
            return 1 + self.kept if is_aligned else 1
        if self.kind == "sliding":
            # one more, because the window may begin inside a block
            return -(-min(self.window - 1 + in_flight, length) // self.block_size) + 1
        if self.kind == "chunked":
            return -(-min(self.window + in_flight, length) // self.block_size)
        return -(-length // self.block_size)


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The blocks of a KV cache on one GPU.

    - `block_bytes`: bytes of one block of the pool, from which all groups take their blocks.
    - `token_bytes`: bytes that one more token of a long request needs: the layers with full attention only.
    - `in_flight`: tokens of the batches that are computed at the same time.
    - `is_aligned`: whether the states of hybrid models are kept for prefix caching.
    - `fixed`: bytes of a cache that does not depend on the context length.
    """

    groups: tuple[Group, ...]
    block_bytes: int
    token_bytes: float
    in_flight: int = 0
    is_aligned: bool = False
    fixed: int = 0

    def request_blocks(self, length: int) -> int:
        """Blocks that a request of `length` tokens needs."""
        return sum(group.blocks(length, self.in_flight, self.is_aligned) for group in self.groups)

    def request_bytes(self, length: int) -> int:
        """Bytes of cache that vLLM requires before it starts with this context length. One block is always reserved."""
        return ((self.request_blocks(length) + 1) * self.block_bytes if self.groups else 0) + self.fixed

    def blocks(self, memory: float) -> int:
        """Blocks that fit into `memory` bytes."""
        return max(0, int((memory - self.fixed) // self.block_bytes)) if self.groups else 0

    def concurrency(self, memory: float, length: int) -> float:
        """Requests of `length` tokens that fit at the same time, as vLLM prints it."""
        return self.blocks(memory) / max(1, self.request_blocks(length)) if self.groups else 0.0

    def tokens(self, memory: float, length: int) -> int:
        """The size of the cache in tokens as vLLM prints it: concurrency multiplied by the context length."""
        return int(self.concurrency(memory, length) * length)

    def longest(self, memory: float, limit: int) -> int:
        """The longest context up to `limit` tokens with which vLLM starts; 0 if there is none."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.request_bytes(middle) <= memory else (low, middle - 1)
        return low


def plan_cache(
    model: Architecture,
    *,
    tensor_parallel: int = 1,
    dtype: str = "",
    cache_dtype: str = "auto",
    block_size: int = 0,
    is_cpu: bool = False,
    in_flight: int = 0,
    prefix_caching: bool = True,
    layers: Iterable[CacheLayer] | None = None,
) -> CachePlan:
    """The blocks of `model` on each of `tensor_parallel` GPUs.

    `layers`: those of one pipeline stage; default: all. `dtype`: of the model. Sizes are bytes, lengths tokens.
    """  # fmt: skip
    own = tuple(model.layers if layers is None else layers)
    dtype = dtype or model.dtype
    element = DTYPE_BYTES[dtype if cache_dtype in ("", "auto") else cache_dtype]
    block = block_size or _default_block(model, is_cpu)
    if is_cpu and model.uses_mla and not model.is_hybrid:
        block = CPU_MLA_BLOCK
    states = [_state_bytes(layer, tensor_parallel, dtype, is_cpu) for layer in own if layer.kind == "state"]
    attention = [layer for layer in own if layer.kind != "state"]
    if states and attention:
        # the pages of attention must be at least as large as a state
        primary = next((one for one in attention if one.kind in ("full", "mla")), attention[0])
        unit = primary.token_bytes(tensor_parallel, element)
        alignment = max(block, HYBRID_MLA_ALIGNMENT) if model.uses_mla else block
        block = max(block, alignment * -(-max(states) // (alignment * unit)))
    groups = _group([_page(layer, tensor_parallel, dtype, element, block, is_cpu) for layer in own])
    full = sum(one.token_bytes(tensor_parallel, element) for one in attention if one.kind in ("full", "mla"))
    local = any(one.kind in ("sliding", "chunked") for one in attention) and not full
    # with nothing but windows, a longer request needs no more memory
    token_bytes = 0.0 if local else float(full)
    return CachePlan(groups, max((group.page for group in groups), default=0), token_bytes, in_flight,
                     is_aligned=prefix_caching and bool(states))  # fmt: skip


def _default_block(model: Architecture, is_cpu: bool) -> int:
    if is_cpu:
        return CPU_BLOCK
    return MLA_BLOCK if model.uses_mla else GPU_BLOCK


def _state_bytes(layer: CacheLayer, tensor_parallel: int, dtype: str, is_cpu: bool) -> int:
    if not layer.state:
        return 0
    # vllm/platforms/cpu.py: recurrent states are float32 on the CPU
    state = replace(layer.state, temporal_dtype="float32") if is_cpu else layer.state
    return state.size(tensor_parallel, dtype)


def _page(layer: CacheLayer, tensor_parallel: int, dtype: str, element: float, block: int, is_cpu: bool) -> Group:
    """One layer as a group: the page of a block."""
    if layer.kind == "state":
        return Group("state", 1, block, _state_bytes(layer, tensor_parallel, dtype, is_cpu),
                     kept=layer.state.kept if layer.state else 1)  # fmt: skip
    page = layer.token_bytes(tensor_parallel, element) * block
    return Group("full" if layer.kind == "mla" else layer.kind, 1, block, page, layer.window)


def _group(layers: list[Group]) -> tuple[Group, ...]:
    if not layers:
        return ()
    if len({(one.kind, one.window) for one in layers}) == 1 and (layers[0].kind != "state" or len(set(layers)) == 1):
        # one kind of cache: one table of blocks, also if the layers have different sizes
        first = layers[0]
        return (replace(first, layers=len(layers), page=sum(one.page for one in layers)),)
    largest = max(one.page for one in layers)
    buckets: dict[Group, int] = {}
    for one in layers:
        # smaller pages get more tokens if that fills the page, else padding
        ratio = largest // one.page if one.kind != "state" and largest % one.page == 0 else 1
        unified = replace(one, block_size=one.block_size * ratio, page=largest)
        buckets[unified] = buckets.get(unified, 0) + 1
    size = min(buckets.values())
    # vLLM's heuristic against too many padding layers
    size = max(buckets.values()) if max(buckets.values()) < size * 1.5 else size
    groups = []
    for bucket, count in buckets.items():
        number = -(-count // size)
        for index in range(number):
            # layers are dealt to the groups in turn
            dealt = len(range(index, count, number))
            groups.append(replace(bucket, layers=dealt, page=dealt * largest))
    return tuple(groups)
