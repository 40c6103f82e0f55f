"""Reads facts from the recipes of vLLM, and leaves their texts out.

Source: github.com/vllm-project/recipes at commit 8959cf64189c71d36e11c6a30335f923f261b1f7 (2026-08-21), Apache-2.0:
`models/<org>/<repo>.yaml`, whose fields CLAUDE.md there describes, and `taxonomy.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from stackgen.catalog.entry import Entry, Hardware, Snapshot, Variant, hash_models
from stackgen.errors import StackgenError

__all__ = ["LICENSE", "SOURCE", "build_snapshot", "read_hardware", "read_recipe"]

SOURCE, LICENSE = "vllm-project/recipes", "Apache-2.0"
# the features whose flags a model needs; others, such as speculative decoding, are choices
FEATURES = ("tool_calling", "reasoning")
# they have fields of their own in an entry
PARSERS = {"--tool-call-parser": "tool_call_parser", "--reasoning-parser": "reasoning_parser",
           "--chat-template": "chat_template"}  # fmt: skip
SWITCH = "--enable-auto-tool-choice"


def read_recipe(data: Any, name: str) -> Entry:
    """The facts of one recipe, parsed from YAML. `name`: of the file, for errors. Raises StackgenError."""
    try:
        return _read(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise StackgenError(f"{name}: stackgen does not know this format of a recipe: {problem[:300]}",
                        "the format of the recipes may have changed: upgrade stackgen, or use its own catalog "
                        "(`stackgen models sync --remove`)")  # fmt: skip


def _read(data: Mapping[str, Any]) -> Entry:
    meta, model = data["meta"], data["model"]
    features = data.get("features") or {}
    args = [*_words(model.get("base_args")), *(word for key in FEATURES if key in features
                                               for word in _words(features[key].get("args")))]  # fmt: skip
    found, args = _split(args)
    hardware = meta.get("hardware") or {}
    version, variants = str(model["min_vllm_version"]), data["variants"]
    return Entry(
        model=model["model_id"], provider=meta["provider"], tasks=tuple(meta["tasks"]),
        architecture=model["architecture"], parameters=_count(model.get("parameter_count")),
        active=_count(model.get("active_parameters")), context=model.get("context_length") or None,
        first_version=_version(version), nightly=version == "nightly" or bool(model.get("nightly_required")),
        omni="omni" in meta["tasks"] or bool(data.get("omni")), updated=str(meta["date_updated"]),
        args=tuple(args), env=_environment(model.get("base_env")),
        verified=tuple(sorted(key for key, state in hardware.items() if state == "verified")),
        unsupported=tuple(sorted(key for key, state in hardware.items() if state == "unsupported")),
        variants=tuple(_variant(name, one, model["model_id"]) for name, one in variants.items()), **found,
    )  # fmt: skip


def _variant(name: str, data: Mapping[str, Any], model: str) -> Variant:
    found, args = _split(_words(data.get("extra_args")))
    # a parser of one checkpoint stays a flag
    args += [word for flag, field in PARSERS.items() if field in found for word in (flag, found[field])]
    size = data.get("tp")
    return Variant(
        name=name, model=data.get("model_id") or model, precision=str(data["precision"]),
        vram_gb=data["vram_minimum_gb"], args=tuple(args), env=_environment(data.get("extra_env")),
        # a mapping has a size for each GPU, and none for all
        gpus=size if isinstance(size, int) else None, hardware=tuple(sorted(data.get("supported_hardware") or ())),
        first_version=_version(str(data.get("min_vllm_version") or "")),
    )  # fmt: skip


def _words(args: Any) -> list[str]:
    words = [str(one) for one in args or ()]
    # a few recipes have a flag and its value in one text
    return [part for word in words for part in (word.split(" ", 1) if word.startswith("--") else [word])]


def _split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The fields that flags of `PARSERS` set, and the other flags."""
    found: dict[str, str] = {}
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag in PARSERS:
            found[PARSERS[flag]] = value if equals else next(rest, "")
        elif flag != SWITCH:
            others.append(word)
    return found, others


def _environment(data: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in sorted((data or {}).items())}


def _version(text: str) -> str | None:
    return text if re.fullmatch(r"\d+(\.\d+){1,3}", text) else None


def _count(value: Any) -> str | None:
    return value if isinstance(value, str) and re.fullmatch(r"[\d.]+[MBT]", value) else None


def read_hardware(taxonomy: Any) -> dict[str, Hardware]:
    """The hardware that taxonomy.yaml describes. Raises StackgenError."""
    try:
        return {
            str(key): Hardware(name=one["display_name"], vendor=one["brand"], gpus=one["gpu_count"],
                               vram_gb=one["vram_gb"])
            for key, one in taxonomy["hardware_profiles"].items()
        }  # fmt: skip
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise StackgenError(f"taxonomy.yaml: stackgen does not know this format: {type(error).__name__}",
                            "the format of the recipes may have changed") from None  # fmt: skip


def build_snapshot(recipes: Iterable[tuple[str, Any]], taxonomy: Any, commit: str | None) -> Snapshot:
    """The snapshot of all recipes, each as (name of the file, parsed YAML). Raises StackgenError."""
    entries = sorted((read_recipe(data, name) for name, data in recipes), key=lambda one: one.model.lower())
    for first, second in pairwise(entries):
        if first.model.lower() == second.model.lower():
            raise StackgenError(f"two recipes are for {first.model}", "one of the two files is a copy: remove the copy")
    if not entries:
        raise StackgenError("there is no recipe: models/<organization>/<model>.yaml",
                            f"pass a checkout of github.com/{SOURCE}")  # fmt: skip
    draft = Snapshot(schema=1, source=SOURCE, license=LICENSE, commit=commit, sha256="0" * 64,
                     updated=max(one.updated for one in entries), hardware=read_hardware(taxonomy),
                     models=tuple(entries))  # fmt: skip
    return draft.model_copy(update={"sha256": hash_models(draft.to_json())})
