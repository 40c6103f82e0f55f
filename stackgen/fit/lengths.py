"""The context length of one request, and the model's limit: RoPE factors as vLLM 0.32.0 applies them.

vLLM: `derive_max_model_len_and_key` (vllm/transformers_utils/model_arch_config_convertor.py). llama.cpp b11434: with
`--parallel`, src/llama-context.cpp divides the context among the slots, and the server caps it at the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stackgen.errors import StackgenError
from stackgen.fit.architecture import Architecture
from stackgen.fit.settings import Settings

__all__ = ["PRESCALED_ROPE", "context_length", "length_warnings", "positive_number", "rope_factor"]

# RoPE types for which the length in config.json is already the scaled length
PRESCALED_ROPE = ("su", "longrope", "llama3", "yarn", "telechat3-yarn", "deepseek_yarn", "deepseek_llama_scaling")


def context_length(known: Architecture, settings: Settings, name: str) -> int:
    """Tokens of one request. Raises StackgenError if nothing says it."""
    length = known.length if settings.max_model_len in (None, -1) else settings.max_model_len or 0
    if not length:
        raise StackgenError(f"{name or 'the model'}: config.json has no context length", "set max_model_len")
    return length // _divisor(settings) or 1


def length_warnings(known: Architecture, settings: Settings, length: int) -> tuple[str, ...]:
    """What is wrong with the length of a request, whatever the memory is."""
    slots, limit, wanted = _divisor(settings), known.length, settings.max_model_len or 0
    if slots > 1:
        return (f"llama-server divides the model's context of {limit} tokens among {slots} requests: each gets "
                f"{length}. Set max_model_len to the context that each request needs",)  # fmt: skip
    # --hf-overrides can raise the limit, and its doubt is the only one that names it
    if not 0 < limit < wanted or known.is_encoder or any("hf-overrides" in doubt for doubt in settings.doubts):
        return ()
    then = {
        "vllm": ", which vLLM refuses by default",
        "sglang": ", which SGLang refuses by default",
        "llamacpp": f": llama-server gives each request only {limit}",
    }
    return (f"max_model_len is {wanted}, but the model's limit is {limit} tokens{then.get(settings.engine, '')}",)


def _divisor(settings: Settings) -> int:
    # without --ctx-size, --parallel divides the model's own context
    return settings.max_num_seqs or 1 if settings.engine == "llamacpp" and not settings.max_model_len else 1


def rope_factor(config: Mapping[str, Any]) -> tuple[float, str]:
    """The factor by which RoPE makes the length in `config` longer, and the RoPE type; 1 if the length includes it."""
    factor, kind = 1.0, ""
    for rope in _rope_configs(config):
        kind = str(rope.get("rope_type", rope.get("type", "default")))
        if kind not in PRESCALED_ROPE:
            factor = positive_number(rope.get("factor")) or factor
    # as in vLLM: the length of Gemma 3 is the scaled length, although its RoPE is linear
    return (1.0, kind) if "gemma3" in str(config.get("model_type", "")) else (factor, kind)


def positive_number(value: object) -> float:
    """`value` if it is a positive number, else 0."""
    # bool is an int in Python; 2**53 is where floats stop being exact
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 2**53
    return value if number else 0  # type: ignore[return-value]


def _rope_configs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The RoPE parameters: one mapping, or one for each type of layer."""
    found = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(found, dict):
        return
    nested = [part for part in found.values() if isinstance(part, dict)]
    # if all values are mappings, there is one for each type of layer, e.g. full_attention and sliding_attention
    yield from nested if nested and len(nested) == len([part for part in found.values() if part]) else [found]
