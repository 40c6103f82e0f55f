"""Reads the header of a GGUF file: the architecture, the size and type of the tensors, and the chat template.

Format: ggml-org/ggml, docs/gguf.md, version 3. Only the header is read; the arrays of the vocabulary are skipped.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from stackgen.errors import StackgenError
from stackgen.fit.architecture import Architecture, CacheLayer, State
from stackgen.fit.estimate import Model
from stackgen.fit.weights import Tensor, Weights

__all__ = ["TYPES", "Header", "parse_gguf", "read_gguf", "read_gguf_header"]

MAGIC = b"GGUF"
# elements of a block and its bytes, by number; ggml/src/ggml.c and gguf-py/gguf/constants.py of llama.cpp
TYPES = {
    0: (1, 4, "F32"), 1: (1, 2, "F16"), 2: (32, 18, "Q4_0"), 3: (32, 20, "Q4_1"), 6: (32, 22, "Q5_0"),
    7: (32, 24, "Q5_1"), 8: (32, 34, "Q8_0"), 9: (32, 36, "Q8_1"), 10: (256, 84, "Q2_K"), 11: (256, 110, "Q3_K"),
    12: (256, 144, "Q4_K"), 13: (256, 176, "Q5_K"), 14: (256, 210, "Q6_K"), 15: (256, 292, "Q8_K"),
    16: (256, 66, "IQ2_XXS"), 17: (256, 74, "IQ2_XS"), 18: (256, 98, "IQ3_XXS"), 19: (256, 50, "IQ1_S"),
    20: (32, 18, "IQ4_NL"), 21: (256, 110, "IQ3_S"), 22: (256, 82, "IQ2_S"), 23: (256, 136, "IQ4_XS"),
    24: (1, 1, "I8"), 25: (1, 2, "I16"), 26: (1, 4, "I32"), 27: (1, 8, "I64"), 28: (1, 8, "F64"),
    29: (256, 56, "IQ1_M"), 30: (1, 2, "BF16"), 34: (256, 54, "TQ1_0"), 35: (256, 66, "TQ2_0"), 39: (32, 17, "MXFP4"),
}  # fmt: skip
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
# no real header has more; a damaged one must not fill the memory
MAX_COUNT, MAX_TEXT, MAX_KEPT = 1_000_000, 2**26, 1024


@dataclass(frozen=True, slots=True)
class Header:
    """`fields`: the key-value pairs, without long arrays. `types`: of the tensors, as in `TYPES`."""

    fields: dict[str, Any]
    tensors: tuple[Tensor, ...]
    size: int
    types: frozenset[str]

    @property
    def chat_template(self) -> str | None:
        """The Jinja text that makes a prompt of a chat; None if the file has none."""
        found = self.fields.get("tokenizer.chat_template")
        return found if isinstance(found, str) else None


def read_gguf(path: Path) -> Model:
    """The model in a GGUF file. Raises StackgenError if the file is not a GGUF file, or its header is truncated."""
    return _make_model(read_gguf_header(path), str(path))


def read_gguf_header(path: Path) -> Header:
    """The header of a GGUF file. Raises StackgenError if the file is not a GGUF file, or its header is truncated."""
    try:
        with path.open("rb") as file:
            return _parse_header(file, str(path))
    except OSError as error:
        raise StackgenError(f"{path} can't be read: {error.strerror}", "check the path") from error
    except EOFError as error:
        raise StackgenError(f"{path} is truncated inside its header", "download the file again") from error


def parse_gguf(file: BinaryIO, path: str) -> Model:
    """The model whose GGUF file begins with the bytes of `file`. Raises EOFError if the header is longer."""
    return _make_model(_parse_header(file, path), path)


def _make_model(header: Header, path: str) -> Model:
    weights = Weights(header.size, header.tensors, "header of the GGUF file")
    architecture = _read_architecture(header.fields, {one.name: one for one in header.tensors}, path)
    return Model(architecture, weights, path)


def _parse_header(file: BinaryIO, path: str) -> Header:
    if _read(file, 4) != MAGIC:
        raise StackgenError(f"{path} is not a GGUF file: its first four bytes are not `GGUF`",
                            "download the file again")  # fmt: skip
    version, tensors, pairs = struct.unpack("<IQQ", _read(file, 20))
    if version not in (2, 3) or tensors > MAX_COUNT or pairs > MAX_COUNT:
        raise StackgenError(f"{path}: stackgen does not know GGUF version {version}", "convert the model again")
    try:
        fields = {_read_text(file): _read_value(file) for _ in range(pairs)}
        found = [_read_tensor(file, path) for _ in range(tensors)]
    except (struct.error, UnicodeDecodeError, KeyError, RecursionError) as error:
        raise StackgenError(f"{path} is damaged inside its header", "download the file again") from error
    return Header(fields, tuple(one for one, _, _ in found), sum(size for _, size, _ in found),
                  frozenset(kind for _, _, kind in found))  # fmt: skip


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _read_text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", _read(file, 8))
    if length > MAX_TEXT:
        raise struct.error
    return _read(file, length).decode("utf-8")


def _skip_text(file: BinaryIO) -> None:
    # the vocabulary: hundreds of thousands of texts
    length = int.from_bytes(_read(file, 8), "little")
    if length > MAX_TEXT:
        raise struct.error
    _read(file, length)


def _read_value(file: BinaryIO, kind: int | None = None) -> Any:
    if kind is None:
        (kind,) = struct.unpack("<I", _read(file, 4))
    if kind == STRING:
        return _read_text(file)
    if kind == ARRAY:
        kind, count = struct.unpack("<IQ", _read(file, 12))
        if count > 100 * MAX_COUNT:
            raise struct.error
        if kind in SCALARS and count > MAX_KEPT:
            # scores and types of the vocabulary: not needed
            _read(file, count * struct.calcsize(SCALARS[kind]))
            return count
        if kind == STRING and count > MAX_KEPT:
            for _ in range(count):
                _skip_text(file)
            return count
        values = [_read_value(file, kind) for _ in range(count)]
        return values if count <= MAX_KEPT else count
    (value,) = struct.unpack(SCALARS[kind], _read(file, struct.calcsize(SCALARS[kind])))
    return value


def _read_tensor(file: BinaryIO, path: str) -> tuple[Tensor, int, str]:
    """A tensor without its quantized type, which safetensors does not know, its bytes, and its type."""
    name = _read_text(file)
    (dimensions,) = struct.unpack("<I", _read(file, 4))
    if dimensions > 8:
        raise struct.error
    shape = struct.unpack(f"<{dimensions}Q", _read(file, 8 * dimensions))
    kind, _offset = struct.unpack("<IQ", _read(file, 12))
    if kind not in TYPES:
        raise StackgenError(f"{path}: the tensor {name} has the unknown type {kind}", "update stackgen, or report it")
    block, size, kind_name = TYPES[kind]
    count = 1
    for side in shape:
        count *= side
    return Tensor(name, "U8", (count // block * size,)), count // block * size, kind_name


def _read_architecture(fields: dict[str, Any], tensors: dict[str, Tensor], path: str) -> Architecture:
    family = fields.get("general.architecture")
    if not isinstance(family, str):
        raise StackgenError(f"{path}: general.architecture is missing", "convert the model again")

    def number(name: str, default: int = 0) -> Any:
        value = fields.get(f"{family}.{name}", default)
        return value if isinstance(value, (int, list)) else default

    depth, heads = number("block_count"), number("attention.head_count")
    hidden = number("embedding_length")
    heads = max(heads) if isinstance(heads, list) else heads
    if not depth or not hidden:
        raise StackgenError(f"{path}: {family}.block_count or {family}.embedding_length is missing",
                            "convert the model again")  # fmt: skip
    kv_heads = number("attention.head_count_kv", heads)
    size = hidden // heads if heads else 0
    key, value = number("attention.key_length", size), number("attention.value_length", size)
    window, pattern = number("attention.sliding_window"), fields.get(f"{family}.attention.sliding_window_pattern")
    layers = []
    for index in range(depth):
        own = kv_heads[index] if isinstance(kv_heads, list) else kv_heads
        has_cache = any(re.match(rf"blk\.{index}\.attn_(k|qkv|kv_a_mqa)\.", name) for name in tensors)
        if number("ssm.inner_size") and not has_cache:
            layers.append(CacheLayer("state", state=_read_state(number)))
        elif number("attention.kv_lora_rank"):
            # llama.cpp keeps one latent vector for each token, since its MLA attention
            layers.append(CacheLayer("mla", 1, number("attention.kv_lora_rank") + number("rope.dimension_count")))
        elif own and has_cache:
            local = window and _is_local(index, pattern, family)
            layers.append(CacheLayer("sliding" if local else "full", own, key, value, window if local else 0))
    vocabulary = fields.get("tokenizer.ggml.tokens", 0)
    return Architecture(
        family, family, tuple(layers), depth, hidden, heads or 1,
        number("vocab_size") or (len(vocabulary) if isinstance(vocabulary, list) else int(vocabulary)),
        "float16", number("context_length"), feed_forward=_largest(number("feed_forward_length")),
        experts=number("expert_count"), active_experts=number("expert_used_count"),
        expert_size=number("expert_feed_forward_length"), tied="output.weight" not in tensors, quantization="gguf",
    )  # fmt: skip


def _largest(value: Any) -> int:
    return max(value) if isinstance(value, list) and value else value if isinstance(value, int) else 0


def _is_local(index: int, pattern: Any, family: str) -> bool:
    """Whether a layer has a window. llama.cpp, `set_swa_pattern` (src/llama-hparams.cpp) and src/models/ of b11434."""
    if isinstance(pattern, list) and index < len(pattern):
        return bool(pattern[index])
    period = (
        pattern
        if isinstance(pattern, int) and pattern
        else {"gemma3": 6, "gemma2": 2, "gpt-oss": 2, "cohere2": 4}.get(family, 1)
    )
    return period == 1 or index % period < period - 1


def _read_state(number: Any) -> State:
    """The state of a Mamba layer; llama.cpp, `n_embd_r` and `n_embd_s` (src/llama-hparams.cpp): both are float32."""
    inner, state, groups = number("ssm.inner_size"), number("ssm.state_size"), number("ssm.group_count")
    return State(inner + 2 * groups * state, number("ssm.conv_kernel") - 1, inner * state)
