"""Checks that LoRA adapters have their files, that vLLM supports them, and that they fit their base model.

Rules of vLLM 0.32.0: `vllm/lora/peft_helper.py` (`validate_legal`) and `vllm/lora/lora_model.py`
(`from_local_checkpoint`). A static adapter that can't be loaded ends the start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from stackgen.doctor.adapter_facts import AdapterFacts
from stackgen.doctor.finding import DoctorInputs, Result, Results, fail, ok, unknown, warn
from stackgen.spec import is_local
from stackgen.targets.adapter import CONFIG, WEIGHTS, adapter_rank, round_up_rank, served_rank
from stackgen.targets.snapshot import repository_id

__all__ = ["check_adapters"]

# initializations that change only the adapter; all other named ones also change the base model
PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
# what repackaged weights add to the name of a model
REPACKED = re.compile(
    r"[-_.](?:unsloth|bnb|4bit|8bit|awq|gptq|int[48]|fp8|nvfp4|mxfp4|w\dA\d+|dynamic|hf|bf16|quantized)\b.*", re.I
)


def check_adapters(inputs: DoctorInputs) -> Results:
    """Every LoRA adapter can be loaded, and belongs to its base model."""
    for place, model in inputs.model_specs():
        for index, lora in enumerate(getattr(model, "lora_adapters", ())):
            field, facts = f"{place}.lora_adapters[{index}].path", inputs.adapters.get(lora.path)
            # a folder that does not exist is a finding of SG-P058
            if any(place == field for place, _ in inputs.missing):
                continue
            problems = list(_find_problems(inputs, model, lora, facts, field))
            yield from problems
            if not problems and facts:
                base = str((facts.config or {}).get("base_model_name_or_path") or "unknown")
                evidence = f"rank {adapter_rank(facts.config) or 'unknown'}, base model {base}"
                yield ok(f"the adapter {lora.name} can be loaded", evidence=evidence, place=field)


def _find_problems(
    inputs: DoctorInputs, model: Any, lora: Any, facts: AdapterFacts | None, field: str
) -> Iterator[Result]:
    lookup = inputs.hub.get(lora.path)
    if lookup and lookup.state in ("missing", "revision", "gated", "token"):
        yield fail(f"the adapter {lora.path} can't be downloaded", evidence=lookup.detail,
                   fix="correct the id or the revision, or set HF_TOKEN_FILE for a private or gated repository",
                   place=field)  # fmt: skip
        return
    if facts is None or facts.files is None:
        why = "its files are in the model storage or on the Hub" if not is_local(lora.path) else "it can't be read"
        yield unknown(f"can't tell whether the adapter {lora.name} can be loaded", evidence=why, place=field)
        return
    wanted = {CONFIG: (CONFIG,), " or ".join(WEIGHTS[:2]): WEIGHTS}
    if lacking := [text for text, names in wanted.items() if not set(names) & set(facts.files)]:
        hint = "serve merged weights as a separate model"
        yield fail(f"the adapter {lora.name} is incomplete", evidence=f"missing: {', '.join(lacking)}",
                   fix="set `path` to the folder that PEFT's save_pretrained wrote"
                   + (f"; {hint}" if "config.json" in facts.files else ""), place=field)  # fmt: skip
        return
    if facts.config is None:
        yield fail(f"{CONFIG} of the adapter {lora.name} can't be read, or is not a JSON object", evidence=lora.path,
                   fix=f"copy {CONFIG} from the adapter's source again", place=field)  # fmt: skip
        return
    # another image may support more
    if not model.image:
        yield from _find_unsupported(lora, facts.config, field, served_rank(inputs.command_of(model)))
    yield from _compare_base(inputs, model, lora, facts, field)


def _find_unsupported(lora: Any, config: dict[str, Any], field: str, limit: int) -> Iterator[Result]:
    """`limit` is the highest rank that the rendered command accepts."""
    init = config.get("init_lora_weights")
    modules = [one for one in config.get("modules_to_save") or () if one not in ("classifier", "score")]
    found = [
        (config.get("use_dora"), "DoRA (use_dora)"),
        (config.get("lora_bias") or config.get("bias", "none") != "none", "biases (bias, lora_bias)"),
        (modules, f"modules_to_save ({', '.join(map(str, modules))})"),
        (config.get("layer_replication"), "layer_replication"),
        (config.get("alora_invocation_tokens"), "Activated LoRA (alora_invocation_tokens)"),
        (isinstance(init, str) and init.lower() not in PLAIN_INITS, f"init_lora_weights: {init}"),
    ]
    if names := [name for applies, name in found if applies]:
        yield fail(f"vLLM does not support the adapter {lora.name}", evidence=f"{CONFIG}: {', '.join(names)}",
                   fix="merge the adapter into its base model (PEFT: merge_and_unload), and serve the result",
                   place=field)  # fmt: skip
    # the rank of an adapter on this machine decides about the flag when the stack is rendered
    if (rank := adapter_rank(config)) and rank > limit and not is_local(lora.path):
        yield fail(f"the rank of the adapter {lora.name} is {rank}, and vLLM accepts ranks up to {limit}",
                   evidence=CONFIG, fix=f"set `max_lora_rank: {round_up_rank(rank)}`", place=field)  # fmt: skip


def _compare_base(inputs: DoctorInputs, model: Any, lora: Any, facts: AdapterFacts, field: str) -> Iterator[Result]:
    trained = str((facts.config or {}).get("base_model_name_or_path") or "")
    served = repository_id(model.model) or model.model
    same = bool(trained) and _plain_name(trained) == _plain_name(served)
    about = inputs.models.get(model.model)
    hidden = about.number("hidden_size", "n_embd", "d_model") if about else None
    fix = f"serve {trained}, or use an adapter for {model.model}" if trained else f"use an adapter for {model.model}"
    if hidden and facts.hidden_sizes and hidden not in facts.hidden_sizes and not same:
        sizes = ", ".join(map(str, facts.hidden_sizes))
        yield fail(f"the adapter {lora.name} was trained for another base model",
                   evidence=f"its layers have the input size {sizes}, and the model's hidden size is {hidden}"
                   + (f"; base model in {CONFIG}: {trained}" if trained else ""), fix=fix, place=field)  # fmt: skip
    # a folder has any name
    elif trained and not same and not is_local(trained) and (not is_local(model.model) or served != model.model):
        yield warn(f"the adapter {lora.name} was trained for {trained}, not for {model.model}",
                   evidence=f"{CONFIG}: base_model_name_or_path",
                   fix=f"{fix}. If both names mean the same weights, no change is needed", place=field)  # fmt: skip


def _plain_name(model: str) -> str:
    """The name of a model without its owner and the suffixes of repackaged weights, for a comparison."""
    return REPACKED.sub("", model.rstrip("/").rpartition("/")[2].lower())
