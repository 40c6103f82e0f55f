"""The weights of a model: tensors from safetensors headers, and the bytes of them that each GPU holds.

Format: github.com/huggingface/safetensors, "Format": the length of the header as a little-endian u64, then JSON. What
each GPU holds: the loaders of vLLM 0.32.0 (vllm/model_executor/layers/linear.py and vocab_parallel_embedding.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from stackgen.errors import StackgenError
from stackgen.fit.architecture import DTYPE_BYTES, Architecture

__all__ = ["MAX_HEADER", "Tensor", "Weights", "parse_header", "weigh"]

# bytes; the format's own limit (safetensors, `MAX_HEADER_SIZE`)
MAX_HEADER = 100_000_000
# bits of one element
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
FLOATS = {"F32": 32, "F16": 16, "BF16": 16, "F64": 64}
# each GPU has the whole tensor: norms, routers, the down projections of MLA
COPIED = re.compile(
    r"norm|\.gate\.(weight|bias|e_score)|router|q_a_proj|kv_a_proj|\.wkv_a|\.wq_a|e_score_correction|shared_expert_gate|input_scale|weight_scale$|kv_scale|[kv]_scale"
)
KEYS_VALUES = re.compile(r"\.(k_proj|v_proj|wk|wv)\.")
# the loader skips them: rotary frequencies, and layers for multi-token prediction
SKIPPED = re.compile(r"rotary_emb\.inv_freq|^mtp\.|\.mtp\.|^model\.mtp|eagle")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
EMBEDDING = re.compile(r"(embed_tokens|word_embeddings|\bwte|embed_in|tok_embeddings|embeddings)\.weight$")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
VISION = re.compile(r"^(model\.)?(vision|visual|multi_modal|mm_|vit|audio|vpm|resampler)")
# vLLM pads the vocabulary to a multiple of 64
VOCABULARY_PADDING = 64


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a checkpoint. `dtype` as safetensors names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the tensor in the file."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class Weights:
    """A checkpoint. Without `tensors`, only `total` is known: bytes of all weight files."""

    total: int
    tensors: tuple[Tensor, ...] = ()
    source: str = ""


def parse_header(data: bytes, name: str) -> list[Tensor]:
    """The tensors of a safetensors file that begins with `data`. Raises StackgenError if that is not a whole header."""
    if data[:4] == b"GGUF":
        raise StackgenError(f"{name} is a GGUF file, which llama.cpp serves", "set `engine: llamacpp`")
    if data.startswith(b"version https://git-lfs"):
        raise StackgenError(f"{name} is a Git LFS pointer, not the weights", "`git lfs pull` downloads the weights")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        if length > MAX_HEADER:
            raise StackgenError(f"{name} is not a safetensors file: its header would have {length} bytes",
                                "download the file again")  # fmt: skip
        raise StackgenError(f"{name} is truncated inside its header: {len(data)} of {8 + length} bytes",
                            "download the file again")  # fmt: skip
    try:
        header = json.loads(data[8 : 8 + length])
        found = [
            Tensor(key, entry["dtype"], tuple(int(side) for side in entry["shape"]))
            for key, entry in header.items()
            if key != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StackgenError(f"{name} is not a safetensors file: its header has no valid list of tensors",
                            "download the file again") from error  # fmt: skip
    for one in found:
        if one.dtype not in BITS or any(side < 0 for side in one.shape):
            raise StackgenError(f"{name}: the tensor {one.name} has the unknown dtype {one.dtype!r}",
                                "update stackgen, or report the model")  # fmt: skip
    return found


def weigh(
    weights: Weights,
    model: Architecture,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    dtype: str = "",
    quantization: str = "",
) -> int:
    """Bytes of weights on the GPU that has the most of them.

    `dtype`: of the parameters, to which vLLM casts a checkpoint. `quantization`: `fp8` of `--quantization`, for a
    checkpoint that is not quantized itself.
    """  # fmt: skip
    if not weights.tensors:
        return _weigh_total(weights.total, model, tensor_parallel, pipeline_parallel, dtype, quantization)
    stages = [0.0] * pipeline_parallel
    for one in weights.tensors:
        if SKIPPED.search(one.name):
            continue
        layer = LAYER.search(one.name)
        inside = bool(layer) and not VISION.search(one.name)
        if inside and layer and int(layer[1]) >= model.depth:
            # layers beyond the last one are for multi-token prediction
            continue
        size = _parameter_bytes(one, model, dtype or model.dtype, quantization, bool(inside))
        share = size / _split(one, model, tensor_parallel)
        if inside and layer:
            stages[_stage(int(layer[1]), model.depth, pipeline_parallel)] += share
        elif HEAD.search(one.name):
            # a tied head is the embedding itself
            stages[-1] += 0 if model.tied else share
        elif EMBEDDING.search(one.name):
            stages[0] += share
            if model.tied and pipeline_parallel > 1:
                stages[-1] += share
        else:
            stages[0 if VISION.search(one.name) else -1] += share
    return int(max(stages)) + _rope_bytes(model, dtype or model.dtype)


def _weigh_total(total: float, model: Architecture, tensor: int, pipeline: int, dtype: str, quantization: str) -> int:
    """An estimate from the size of all weight files, if no header of them can be read."""
    element = DTYPE_BYTES[model.dtype]
    embedding = model.vocabulary * model.hidden * element
    ends = embedding * (1 if model.tied else 2)
    inside = max(0.0, total - ends)
    if model.quantization == "mxfp4":
        # 4 bits for each weight, and 8 bits for each 32 of them
        experts = model.depth * model.experts * 3 * model.hidden * model.expert_size * 4.25 / 8
        inside += min(experts, inside) * (_padded_hidden(model) / model.hidden - 1)
    elif not model.quantization:
        ratio = DTYPE_BYTES[dtype or model.dtype] / element
        embedding, ends, inside = int(embedding * ratio), int(ends * ratio), inside * ratio
        inside *= 0.5 if quantization == "fp8" else 1.0
    stage = inside / (tensor * pipeline)
    return int(stage + (ends if pipeline == 1 else embedding) / tensor) + _rope_bytes(model, dtype or model.dtype)


def _padded_hidden(model: Architecture) -> int:
    """Kernels for MXFP4 pad the sizes of an expert to multiples of 256: gpt-oss has 2880."""
    return -(-model.hidden // 256) * 256


def _parameter_bytes(one: Tensor, model: Architecture, dtype: str, quantization: str, inside: bool) -> float:
    size = float(one.bytes)
    if one.dtype in FLOATS and not model.quantization:
        size *= DTYPE_BYTES[dtype] * 8 / FLOATS[one.dtype]
        if quantization == "fp8" and inside and len(one.shape) == 2 and not COPIED.search(one.name):
            size = float(math.prod(one.shape))
    if EMBEDDING.search(one.name) or HEAD.search(one.name):
        rows = one.shape[0] if one.shape else 1
        size *= -(-rows // VOCABULARY_PADDING) * VOCABULARY_PADDING / max(1, rows)
    if "kv_b_proj" in one.name:
        # vllm/model_executor/layers/attention/mla_attention.py keeps W_UK and W_UV next to the projection
        size *= 2
    if model.quantization == "mxfp4" and "experts" in one.name and ("blocks" in one.name or "scales" in one.name):
        size *= _padded_hidden(model) / model.hidden
    return size


def _split(one: Tensor, model: Architecture, tensor_parallel: int) -> float:
    if tensor_parallel == 1 or len(one.shape) < 2 or COPIED.search(one.name):
        return 1
    if KEYS_VALUES.search(one.name):
        heads = next((layer.heads for layer in model.layers if layer.heads), model.heads)
        # fewer KV heads than GPUs: copies
        return min(tensor_parallel, heads)
    return tensor_parallel


def _stage(layer: int, depth: int, stages: int) -> int:
    """The pipeline stage of a layer: vLLM gives the layers that remain to the stages before the last one."""
    sizes = stage_sizes(depth, stages)
    for index, size in enumerate(sizes):
        if layer < size:
            return index
        layer -= size
    return stages - 1


def stage_sizes(depth: int, stages: int) -> list[int]:
    """Layers of each pipeline stage; vLLM 0.32.0, `get_pp_indices` (vllm/distributed/utils.py)."""
    base, rest = divmod(depth, stages)
    sizes = [base] * stages
    for index in range(2, rest + 2):
        sizes[-index] += 1
    return sizes


def _rope_bytes(model: Architecture, dtype: str) -> int:
    """The table of rotary positions, which counts as weights in vLLM's log: one row for each position."""
    layer: Iterable[int] = (one.head_size for one in model.layers if one.kind in ("full", "sliding"))
    return model.length * next(iter(layer), 64) * DTYPE_BYTES[dtype]
