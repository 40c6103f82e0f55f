"""The longest context that the engine allows: the arithmetic of vLLM and SGLang, applied to the model's files on disk.

A port of vLLM 0.32.0's `_get_and_verify_max_len` (vllm/config/model.py) and `derive_max_model_len_and_key`
(vllm/transformers_utils/model_arch_config_convertor.py). `rope_scaling` becomes `rope_parameters` as in Transformers 5.
SGLang 0.5.23: `get_context_length` (utils/hf_transformers) and `_derive_context_length` (configs/model_config.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stackgen.catalog import find_model
from stackgen.doctor.finding import DoctorInputs, Results, fail, ok, unknown, warn
from stackgen.doctor.model_facts import ModelFacts
from stackgen.fit.lengths import PRESCALED_ROPE, positive_number, rope_factor
from stackgen.spec import parse_token_count

__all__ = ["ContextLimit", "check_context_length", "max_context_length"]

LENGTH_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
# in the order in which SGLang takes the first one
SGLANG_KEYS = ("max_sequence_length", "seq_length", "max_seq_len", "model_max_length", "max_position_embeddings")
# the flag that changes config.json, the variable that turns the check off, and its values, which have any case
ENGINES = {
    "vllm": ("--hf-overrides", "VLLM_ALLOW_LONG_MAX_MODEL_LEN", ("1", "true")),
    "sglang": ("--json-model-override-args", "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", ("1", "true", "yes", "y")),
}


@dataclass(frozen=True, slots=True)
class ContextLimit:
    """The longest context in tokens that the engine accepts, and `source`: the files and numbers that give it."""

    tokens: int
    source: str


def max_context_length(facts: ModelFacts, overrides: Mapping[str, Any] | None = None) -> ContextLimit | None:
    """The limit from the model's files and the user's `--hf-overrides`; None if no file contains a length."""
    config = _text_config(facts, overrides)
    lengths = {key: int(value) for key in LENGTH_KEYS if (value := positive_number(config.get(key)))}
    if not lengths:
        return None
    # as in vLLM, model_max_length takes precedence over all other keys
    key = "model_max_length" if "model_max_length" in lengths else min(lengths, key=lambda name: lengths[name])
    tokens, source = lengths[key], f"config.json: {key} {lengths[key]}"
    # vLLM reads the tokenizer's length only for embedding models with absolute positions; only they have this key
    if config.get("position_embedding_type") == "absolute" and (facts.tokenizer_length or tokens) < tokens:
        tokens = facts.tokenizer_length or 0
        source = f"tokenizer_config.json: model_max_length {facts.tokenizer_length}"
    factor, kind = rope_factor(config)
    if factor != 1:
        tokens, source = int(tokens * factor), f"{source}, multiplied by the {kind} RoPE factor {factor:g}"
    elif kind in PRESCALED_ROPE:
        source += f"; the length in config.json already includes the {kind} RoPE factor"
    # as in vLLM, the length of a Sentence Transformers config replaces all other lengths
    if facts.encoder_length:
        tokens, source = facts.encoder_length, f"sentence_bert_config.json: max_seq_length {facts.encoder_length}"
    # as in vLLM, a larger model_max_length in config.json raises the limit
    return ContextLimit(max(tokens, lengths.get("model_max_length", 0)), source)


def _text_config(facts: ModelFacts, overrides: Mapping[str, Any] | None) -> Mapping[str, Any]:
    whole = {**(facts.config or {}), **(overrides or {})}
    # multimodal models nest the text model's config
    return next((part for name in ("text_config", "llm_config") if isinstance(part := whole.get(name), dict)), whole)


def _sglang_context_length(facts: ModelFacts, overrides: Mapping[str, Any]) -> ContextLimit | None:
    config = _text_config(facts, overrides)
    found = next(((key, int(size)) for key in SGLANG_KEYS if (size := positive_number(config.get(key)))), None)
    if found is None:
        return None
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    factor = 1.0
    if isinstance(rope, dict) and "original_max_position_embeddings" not in rope and rope.get("rope_type") != "llama3":
        factor = positive_number(rope.get("factor")) or 1.0
    source = f"config.json: {found[0]} {found[1]}" + (f", multiplied by the RoPE factor {factor:g}" * (factor != 1))
    return ContextLimit(int(found[1] * factor), source)


def _parse_overrides(arguments: Sequence[str], flag: str) -> dict[str, Any]:
    """The JSON object of the last `flag` in `extra_args`; {} without the flag or an object."""
    values = [argument.partition("=")[2] or following
              for argument, following in zip(arguments, (*arguments[1:], ""), strict=False)
              if argument.partition("=")[0].replace("_", "-") == flag]  # fmt: skip
    try:
        overrides = json.loads(values[-1]) if values else {}
    # RecursionError: JSON that is nested too deeply
    except (ValueError, RecursionError):
        return {}
    return overrides if isinstance(overrides, dict) else {}


def check_context_length(inputs: DoctorInputs) -> Results:
    """`max_model_len` is no longer than vLLM or SGLang allows for the model."""
    for place, model in inputs.model_specs():
        text, facts = getattr(model, "max_model_len", None), inputs.models.get(model.model)
        # unset, auto and -1: the engine takes a length that it allows
        if text in (None, "auto", "-1") or model.engine not in ENGINES:
            continue
        flag, variable, values = ENGINES[model.engine]
        overrides = _parse_overrides(model.extra_args, flag)
        wanted, field = parse_token_count(text), f"{place}.max_model_len"
        limit, why = None, "config.json is not available"
        if facts and facts.config is not None:
            derive = max_context_length if model.engine == "vllm" else _sglang_context_length
            limit, why = derive(facts, overrides), "config.json has no length"
        # a YaRN factor in extra_args may raise the limit
        known = limit is None and not overrides
        match = find_model(model.model) if known else None
        if match and match.entry.context and wanted > match.entry.context:
            yield warn(f"max_model_len is {wanted}, but the model's limit is probably {match.entry.context}",
                       evidence=f"vLLM's recipe for {match.entry.model}, {match.entry.updated}; {why}",
                       fix=f"set `max_model_len: {match.entry.context}`, or `auto`", place=field)  # fmt: skip
        elif match and match.entry.context:
            yield ok("the context length is within the model's limit",
                     evidence=f"{wanted} of {match.entry.context} tokens; vLLM's recipe for {match.entry.model}, "
                     f"{match.entry.updated}", place=field)  # fmt: skip
        elif limit is None:
            yield unknown("the model's maximum context length is unknown", evidence=why, place=field)
        elif wanted <= limit.tokens:
            yield ok("the context length is within the model's limit",
                     evidence=f"{wanted} of {limit.tokens} tokens", place=field)  # fmt: skip
        elif str(model.extra_env.get(variable, "")).strip().lower() in values:
            yield warn(f"max_model_len is {wanted}, but the model's limit is {limit.tokens}",
                       evidence=f"{limit.source}; {variable} allows a longer context, but "
                       "answers get worse",
                       fix=f"set `max_model_len: {limit.tokens}`", place=field)  # fmt: skip
        else:
            yield fail(f"max_model_len is {wanted}, but the model's limit is {limit.tokens}", evidence=limit.source,
                       fix=f"set `max_model_len: {limit.tokens}`, or `auto`", place=field)  # fmt: skip
