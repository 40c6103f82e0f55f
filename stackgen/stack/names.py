"""Warnings about models: folders that look like repositories of the Hub, parsers of other models, long contexts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackgen.flags import PINNED
from stackgen.spec import GatewaySpec, StackSpec, is_local, parse_token_count
from stackgen.spec.sources import is_gguf_repository

if TYPE_CHECKING:
    from stackgen.catalog import Fact
    from stackgen.catalog.flags import Parser

__all__ = ["find_better_parser", "find_name_warnings", "find_non_thinking"]

# vLLM's parsers that read the same format: in vLLM 0.32.0, most of these groups are one class
# (vllm/tool_parsers/__init__.py). Llama 4 writes JSON or Python calls, and vLLM's documentation has parsers for both
SAME_FORMAT: dict[Parser, tuple[frozenset[str], ...]] = {
    "reasoning_parser": (
        frozenset({"qwen3", "deepseek_r1"}), frozenset({"glm45", "glm47"}),
        frozenset({"minimax_m2", "minimax_m2_append_think"}),
    ),
    "tool_call_parser": (
        frozenset({"llama3_json", "llama4_json"}), frozenset({"llama4_json", "pythonic", "llama4_pythonic"}),
        frozenset({"hermes", "qwen3_json"}), frozenset({"qwen3_xml", "qwen3_coder"}), frozenset({"glm45", "glm47"}),
        # sources differ about DeepSeek-V3.2-Exp
        frozenset({"deepseek_v31", "deepseek_v32"}),
    ),
}  # fmt: skip
# with a chat template of the user's, a model of the vendor may write any of these
SAME_VENDOR = (
    frozenset({"llama3_json", "llama4_json", "pythonic", "llama4_pythonic"}),
    frozenset({"hermes", "qwen3_json", "qwen3_xml", "qwen3_coder"}),
    frozenset({"deepseek_v3", "deepseek_v31", "deepseek_v32", "deepseek_v4", "deepseek_v41"}),
    frozenset({"granite", "granite-20b-fc", "granite4"}), frozenset({"minimax_m2", "minimax_m3"}),
    frozenset({"kimi_k2", "kimi_k3"}),
)  # fmt: skip
ANY_FORMAT = frozenset({"hf", "auto", "response_template"})
# SGLang's parsers that take an answer without tags as reasoning (0.5.23, sglang/srt/parser/reasoning_parser.py)
ALWAYS_REASONING = frozenset({
    "deepseek-r1", "qwen3-thinking", "gpt-oss", "minimax", "step3", "step3p5", "gigachat35",
})  # fmt: skip
# vLLM then accepts a length beyond the model's limit
ALLOWED = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"


# families that take images, by their names: a quantized copy has the same name. Gemma 3 takes none at 270M and 1B
IMAGES = re.compile(
    r"(?i)(?<![a-z])(VL|vision|pixtral|llava|internvl|minicpm-v|omni|gemma-3-(?!1b|270m)|gemma-4|llama-4)(?![a-z])"
)
# a photo of a phone has up to 5 MB, and a third more as base64
PHOTO_MIB = 8


def find_name_warnings(spec: StackSpec, base: Path, has_gateway: bool = False) -> list[str]:
    """The warnings for all models of `spec`. `base`: the folder of the stack file."""
    found: list[str] = []
    for index, model in enumerate(spec.models):
        found += _find_folders(model, f"models[{index}]", base)
        found += _find_other_repository(model, f"models[{index}].model")
        for field in SAME_FORMAT if model.engine in ("vllm", "sglang") else ():
            if getattr(model, field):
                found += _find_other_parser(model, field, f"models[{index}].{field}")
        found += _find_long_context(model, f"models[{index}].max_model_len")
        found += _find_small_bodies(spec, model) if has_gateway else ()
    return found


def _find_small_bodies(spec: StackSpec, model: Any) -> Iterator[str]:
    size = (spec.gateway or GatewaySpec()).max_body
    is_chosen = spec.gateway and "max_body" in spec.gateway.model_fields_set
    if (
        not is_chosen
        and int(size[:-1]) < PHOTO_MIB
        and IMAGES.search(model.model)
        and model.engine in ("vllm", "sglang")
    ):
        yield (f"{model.model} accepts images, but the gateway answers 413 to a request of more than {size[:-1]} MiB, "
               "such as one with a photo. To allow photos, set `gateway: {max_body: 20m}`. To keep the limit, set "
               f"`gateway: {{max_body: {size}}}`")  # fmt: skip


def _find_folders(model: Any, path: str, base: Path) -> Iterator[str]:
    adapters = getattr(model, "lora_adapters", ())
    named = [(f"{path}.model", model.model)]
    named += [(f"{path}.lora_adapters[{number}].path", lora.path) for number, lora in enumerate(adapters)]
    for field, name in named:
        if not is_local(name) and (base / name).is_dir():
            yield (f"{field}: {name} is read as a repository of the Hub, but a folder of this name exists here: write "
                   f"./{name} if you mean the folder")  # fmt: skip


def _find_other_repository(model: Any, path: str) -> Iterator[str]:
    name = model.model
    if model.engine != "llamacpp" and is_gguf_repository(name):
        yield (f"{path}: {name} looks like a repository of GGUF files, which {model.engine} does not load. For GGUF "
               f"files, set `engine: llamacpp` and `file`. For {model.engine}, use the repository of the original "
               "model")  # fmt: skip
    # the Hub has old models without an organization, such as gpt2; the catalog takes time to load
    if "/" not in name and not is_local(name):
        match = _catalog().find_model(name)
        meant = match.variant.model if match else f"ORGANIZATION/{name}"
        if match or _catalog().find_parser("tool_call_parser", name):
            yield (f"{path}: {name} has no organization, and the Hub has only a few old models without one: write "
                   f"{meant}")  # fmt: skip


def _find_other_parser(model: Any, field: Parser, path: str) -> Iterator[str]:
    given = getattr(model, field)
    if fact := find_better_parser(model, field):
        says = f"vLLM sets {fact.value} itself: remove the field"
        if not fact.automatic:
            says = f"{fact.origin} ({fact.date}) names {fact.value}"
        yield f"{path}: the parser {given} is for other models. For {model.model}, {says}"
    elif field == "reasoning_parser" and (source := find_non_thinking(model)):
        yield (f"{path}: {model.model} is not a reasoning model ({source}), so the parser {given} may treat its "
               "whole answer as reasoning. Remove the field")  # fmt: skip


def _find_long_context(model: Any, path: str) -> Iterator[str]:
    """A warning if vLLM refuses the length, as far as the catalog knows the model's limit."""
    text = getattr(model, "max_model_len", None)
    if model.engine != "vllm" or text in (None, "auto", "-1") or is_local(model.model) or ALLOWED in model.extra_env:
        return
    # they can raise the limit
    if any(word.replace("_", "-").startswith("--hf-overrides") for word in model.extra_args):
        return
    match, wanted = _catalog().find_model(model.model), parse_token_count(text)
    if match and match.entry.context and wanted > match.entry.context:
        yield (f"{path} is {wanted}, but the limit of {model.model} is probably {match.entry.context} tokens, and vLLM "
               f"refuses more ({match.entry.model}, {match.entry.updated})")  # fmt: skip


def _catalog() -> Any:
    # many stacks need nothing of the catalog, which takes time to load
    from stackgen import catalog

    return catalog


def find_non_thinking(model: Any) -> str:
    """The source that says that a model with a reasoning parser does not think; empty if none says so.

    Also empty if the parser of SGLang leaves an answer without reasoning as it is.
    """
    if model.engine == "sglang" and model.reasoning_parser not in ALWAYS_REASONING:
        return ""
    return str(_catalog().find_non_thinking(model.model))


def find_better_parser(model: Any, field: Parser, given: str = "") -> Fact | None:
    """The parser that the catalog names for a model of vLLM or SGLang, if the model's parser reads another format.

    `given` is a parser that `extra_args` sets.
    """
    given = given or getattr(model, field)
    if model.engine == "sglang":
        known: list[Fact] = _catalog().find_sglang_parsers(field, model.model)
        if field == "tool_call_parser" and _has_template(model):
            return None
        return None if not known or given in ANY_FORMAT | {fact.value for fact in known} else known[0]
    tag = re.search(r":v?(\d+\.\d+\.\d+)", model.image or "")
    version = tag[1] if tag else model.engine_version or PINNED["vllm"]
    facts: tuple[Fact, ...] = _catalog().find_parsers(field, model.model, version)
    groups = SAME_FORMAT[field] + (SAME_VENDOR if _has_template(model) else ())
    same = {given}.union(*(group for group in groups if given in group))
    if not facts or given in ANY_FORMAT or any(fact.value in same for fact in facts):
        return None
    return facts[0]


def _has_template(model: Any) -> bool:
    words = {word.partition("=")[0] for word in model.extra_args}
    return bool(model.chat_template or "--chat-template" in words)
