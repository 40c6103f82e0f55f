"""About how large the weights of a model are, without the Hub: from the catalog of models, or from the model's name."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path

from stackgen.catalog.lookup import find_model
from stackgen.spec.types import guess_parameters

__all__ = ["count_weight_bytes", "guess_weight_bytes", "packaged_weight_bytes", "parameter_count"]

UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}
# bits of a weight; a precision that is not here sets no lower bound
BITS = {"bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "mxfp8": 8, "int4": 4, "nvfp4": 4, "mxfp4": 4, "fp4": 4}
# bits per weight that names of quantized models announce: `…-FP8`, `…-AWQ`, `…-GPTQ-Int4`, `…-quantized.w4a16`
QUANTIZED = (
    (re.compile(r"(?i)(?<![a-z0-9])(w4a\d+|(nv|mx)?fp4|int4|4-?bit|awq|gptq(?!.*(int8|8-?bit)))(?![a-z0-9])"), 4),
    (re.compile(r"(?i)(?<![a-z0-9])(w8a\d+|fp8|int8|8-?bit)(?![a-z0-9])"), 8),
)
# such a repository has files with many sizes, and its name announces none of them
GGUF = re.compile(r"(?i)(?<![a-z0-9])gguf(?![a-z0-9])")


def parameter_count(text: str | None) -> float | None:
    """The number that `480B` or `1.5T` stands for."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([MBT])", text or "", re.I)
    return float(match[1]) * UNITS[match[2].upper()] if match else None


def count_weight_bytes(base: str, parameters: str | None, model: str, precision: str) -> int:
    """Bytes that the weights of `model` need at least; 0 if unknown.

    `model` is a variant of the catalog's entry `base`, which has `parameters`.
    """
    # only the recipe's figure is known for mixed precisions
    return math.ceil(_variant_parameters(base, parameters, model) * BITS.get(precision, 0) / 8)


def _variant_parameters(base: str, parameters: str | None, model: str) -> float:
    counts = guess_parameters(model), parameter_count(parameters)
    # a variant can be a smaller or larger model of the family, with its size in its name
    return next((one for one in (reversed(counts) if model == base else counts) if one), 0)


def checkpoint_bytes(parameters: float, bits: int) -> int:
    """About how many bytes a checkpoint has whose linear layers are stored with `bits` bits per weight.

    Quantized checkpoints keep the embeddings and the output layer at 16 bits, and store scales: 4 % of the weights with
    groups of 128. Both layers together have about 0.4e9 * sqrt(parameters / 1e9) parameters, as in Llama 3, Qwen and
    DeepSeek. The result is within 6 % of the checkpoints in published start-up logs (benchmarks/fit_data/rows.tsv).
    """
    if bits >= 16:
        return int(parameters * bits / 8)
    unquantized = min(parameters, 0.4e9 * math.sqrt(parameters / 1e9))
    scales = 1.04 if bits == 4 else 1.0
    return int(unquantized * 2 + (parameters - unquantized) * bits / 8 * scales)


def guess_weight_bytes(model: str) -> tuple[int | None, str]:
    """About how many bytes the weights of a repository have, without the Hub, and where the guess comes from.

    None and "" if neither the catalog of models nor the name gives a size.
    """
    found = find_model(model)
    # another model may have the same name without its organization
    if found and found.variant.model.lower() == model.lower():
        entry, variant = found
        count = _variant_parameters(entry.model, entry.parameters, variant.model)
        if count and (bits := BITS.get(variant.precision)):
            return checkpoint_bytes(count, bits), "estimated from the catalog of models"
    guess = guess_parameters(model)
    if not guess or GGUF.search(model):
        return None, ""
    bits = next((bits for pattern, bits in QUANTIZED if pattern.search(model)), 16)
    return checkpoint_bytes(guess, bits), f"guessed from the model's name, at {bits} bits per weight"


def packaged_weight_bytes(model: str) -> int:
    """Bytes of the weights as the packaged catalog has them; 0 if it does not know the repository.

    For rendered files, which must not depend on a catalog in the user's cache.
    """
    return _packaged().get(model.lower(), 0)


@cache
def _packaged() -> dict[str, int]:
    # every command resolves the stack: parsing without the checks of `load_packaged` takes 2 ms instead of 120
    models = json.loads(Path(__file__).with_name("snapshot.json").read_bytes())["models"]
    own: dict[str, int] = {}
    others: dict[str, int] = {}
    for entry in models:
        for one in entry["variants"]:
            size = count_weight_bytes(entry["model"], entry.get("parameters"), one["model"], one["precision"])
            (own if one["model"] == entry["model"] else others).setdefault(one["model"].lower(), size)
    # the model itself wins over a variant of another one
    return others | own
