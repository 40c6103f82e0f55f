"""How long a context the engine allows: vLLM's own arithmetic, on the files as they lie there.

A port of vLLM 0.32.0's `_get_and_verify_max_len` (vllm/config/model.py) and `derive_max_model_len_and_key`
(vllm/transformers_utils/model_arch_config_convertor.py); `rope_scaling` becomes `rope_parameters` as in Transformers 5.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stackgen.doctor.finding import Case, Results, fail, good, unknown, warn
from stackgen.doctor.model_facts import ModelFacts
from stackgen.spec import human_int

__all__ = ["Limit", "context", "longest", "overridden"]

KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
# with these the config's own length holds the factor already
SCALED = ("su", "longrope", "llama3", "yarn", "telechat3-yarn", "deepseek_yarn", "deepseek_llama_scaling")


@dataclass(frozen=True, slots=True)
class Limit:
    """The longest context in tokens that vLLM accepts, and `told`: which files and numbers say so."""

    tokens: int
    told: str


def longest(facts: ModelFacts, overrides: Mapping[str, Any] | None = None) -> Limit | None:
    """The limit that `facts` give, with `--hf-overrides` of the user; None where no file names any length."""
    whole = {**(facts.config or {}), **(overrides or {})}
    config = next((part for name in ("text_config", "llm_config") if isinstance(part := whole.get(name), dict)), whole)
    lengths = {key: int(value) for key in KEYS if (value := _positive(config.get(key)))}
    if not lengths:
        return None
    key = "model_max_length" if "model_max_length" in lengths else min(lengths, key=lambda name: lengths[name])
    tokens, told = lengths[key], f"config.json: {key} {lengths[key]}"
    if config.get("position_embedding_type") == "absolute" and (facts.tokenizer_length or tokens) < tokens:
        # read for models that make embeddings of absolute positions, and only those have this entry
        tokens, told = facts.tokenizer_length or 0, f"tokenizer_config.json: model_max_length {facts.tokenizer_length}"
    factor, kind = 1.0, ""
    for rope in _ropes(config):
        kind = str(rope.get("rope_type", rope.get("type", "default")))
        if kind not in SCALED:
            factor = _positive(rope.get("factor")) or factor
        elif _positive(rope.get("factor")):
            told += f"; the factor of {kind} is in it already"
    if factor != 1 and "gemma3" not in str(config.get("model_type", "")):
        tokens, told = int(tokens * factor), f"{told}, times {factor:g} ({kind} RoPE)"
    if facts.encoder_length:
        tokens, told = facts.encoder_length, f"sentence_bert_config.json: max_seq_length {facts.encoder_length}"
    return Limit(max(tokens, lengths.get("model_max_length", 0)), told)


def _positive(value: object) -> float:
    """A number as it is, 0 for anything else."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 2**53
    return value if number else 0  # type: ignore[return-value]


def _ropes(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """One, or one for each kind of layers."""
    found = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(found, dict):
        return
    nested = [part for part in found.values() if isinstance(part, dict)]
    yield from nested if nested and len(nested) == len([part for part in found.values() if part]) else [found]


def overridden(words: Sequence[str]) -> dict[str, Any]:
    """What `--hf-overrides` in `extra_args` says, as far as it is an object of JSON."""
    joined = [word.partition("=")[2] or after for word, after in zip(words, (*words[1:], ""), strict=False)
              if word.partition("=")[0].replace("_", "-") == "--hf-overrides"]  # fmt: skip
    try:
        found = json.loads(joined[-1]) if joined else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def context(case: Case) -> Results:
    """`max_model_len` is no longer than what vLLM allows for the model."""
    for place, model in case.specs():
        text, facts = getattr(model, "max_model_len", None), case.models.get(model.model)
        if text in (None, "auto", "-1") or model.engine != "vllm":
            continue
        asked, field = human_int(text), f"{place}.max_model_len"
        limit = longest(facts, overridden(model.extra_args)) if facts and facts.config is not None else None
        if limit is None:
            why = "config.json names none" if facts and facts.config is not None else "no config.json at hand"
            yield unknown("how long the model's context is, is unknown", why, place=field)
        elif asked <= limit.tokens:
            yield good("the context is within the model's", f"{asked} of {limit.tokens}", field)
        elif str(model.extra_env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "")).strip().lower() in ("1", "true"):
            yield warn(f"max_model_len is {asked}, and the model's limit is {limit.tokens}",
                       f"{limit.told}; VLLM_ALLOW_LONG_MAX_MODEL_LEN lets it through, and answers get worse",
                       f"max_model_len: {limit.tokens}", field)  # fmt: skip
        else:
            yield fail(f"max_model_len is {asked}, and the model's limit is {limit.tokens}", limit.told,
                       f"max_model_len: {limit.tokens}, or auto", field)  # fmt: skip
