"""The stack file for a model of the catalog: its flags become fields, as `stackgen import` reads a command."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stackgen.catalog import Entry, Variant, find_variant_parser
from stackgen.catalog.flags import PARSER_FLAGS, settle
from stackgen.errors import StackgenError
from stackgen.flags import PINNED
from stackgen.importing.source import import_text
from stackgen.importing.stack_file import plan_of

__all__ = ["StackText", "build_stack"]

MAX_GPUS = 64


@dataclass(frozen=True, slots=True)
class StackText:
    """The text of a stack.yaml. `left_out`: flags of the recipe that are not in it, each with the reason."""

    text: str
    left_out: tuple[tuple[str, str], ...]


def build_stack(
    entry: Entry, variant: Variant, gpus: int, version: str = PINNED["vllm"], origin: str = "", is_amd: bool = False
) -> StackText:
    """The stack that serves a variant on `gpus` GPUs, validated as `render` does. `origin`: for the first comment.

    `is_amd`: the GPUs are AMD's, so the stack needs the driver and the image for them.

    Raises StackgenError if the recipe's flags exclude each other or the number of GPUs.
    """
    if not 1 <= gpus <= MAX_GPUS:
        raise StackgenError(f"{variant.model} needs {gpus} GPUs of this kind, but a model can have at most {MAX_GPUS}",
                            "choose a larger GPU with --gpu, or a smaller checkpoint with --variant")  # fmt: skip
    found = settle(entry, variant, version)
    # above the size that the recipe sets, layers can't be split further: stages hold the other layers
    stages = gpus // variant.gpus if variant.gpus and gpus % variant.gpus == 0 else 1
    words = ["vllm", "serve", variant.model, "--tensor-parallel-size", str(gpus // stages), *found.args]
    words += ["--pipeline-parallel-size", str(stages)] if stages > 1 else []
    imported = import_text(shlex.join(words), "the catalog", Path())
    model = dict(imported.assembled.data["models"][0])
    if stages == 1:
        # it is the number of GPUs, which is the default
        model.pop("tensor_parallel_size", None)
    lost = [(text, reason) for _, text, _, reason in imported.ledger.groups("dropped")]
    first = {key: model.pop(key) for key in ("model", "engine", "gpus") if key in model}
    first |= {"engine_version": version} if version != PINNED["vllm"] else {}
    for field in PARSER_FLAGS:
        if (fact := find_variant_parser(field, entry, variant, version)) and not fact.automatic:
            first[field] = fact.value
    left = (*found.left_out, *lost)
    driver = {"gpu_driver": "amd"} if is_amd else {}
    data: dict[str, Any] = {"name": _name(variant.model), **driver, "models": [first | model]}
    text = "".join(f"# {line}\n" for line in _comments(entry, variant, left, origin))
    text += yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)
    plan_of(text, Path())
    return StackText(text, left)


def _comments(entry: Entry, variant: Variant, left: tuple[tuple[str, str], ...], origin: str) -> list[str]:
    lines = [f"From {origin}"] if origin else []
    if left:
        lines.append("Settings of the recipe that are not in this file:")
        lines += [f"  {text}: {reason}"[:200] for text, reason in left]
    if env := {**entry.env, **variant.env}:
        lines.append("Variables of the recipe, which this version may not read. Add those that you need:")
        lines.append(f"  extra_env: {{{', '.join(f'{name}: {_quote(value)}' for name, value in env.items())}}}")
    return lines


def _quote(value: str) -> str:
    return yaml.safe_dump(value, default_style='"', width=1000).strip()


def _name(model: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", model.rpartition("/")[2].lower()).strip("-")[:60].strip("-") or "model"
