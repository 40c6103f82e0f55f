"""`stackgen models show`: what is known about a model, each value with its origin, and the stack that serves it."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from datetime import date
from pathlib import Path
from typing import Any

from stackgen.catalog import (
    Entry,
    Match,
    Variant,
    find_access,
    find_model,
    find_variant_parser,
    load_catalog,
    match_variant,
)
from stackgen.catalog.entry import Snapshot
from stackgen.catalog.flags import PARSER_FLAGS, first_version, why_not
from stackgen.catalog.lookup import is_same_kind
from stackgen.catalog.search import (
    SHARE,
    Budget,
    fits,
    hardware_names,
    memory_floor,
    suggest_names,
    variant_size,
    weight_bytes,
)
from stackgen.check.huggingface import HubLookup, look_up_model
from stackgen.cli.commands.fit_models import find_model as find_weights
from stackgen.cli.commands.fit_models import make_hub
from stackgen.cli.commands.models import describe_age, note_catalog
from stackgen.cli.commands.output import note, print_data
from stackgen.errors import StackgenError
from stackgen.fit import Gpu, Settings, estimate, find_gpu
from stackgen.fit.deployment import engine_version
from stackgen.fit.gpus import observed_gpu
from stackgen.flags import PINNED, known_versions
from stackgen.importing.catalog_entry import MAX_GPUS, StackText, build_stack
from stackgen.runtimes.observation.gpu_tools import read_nvidia_facts, run_tool
from stackgen.spec.sources import explain_ollama, find_ollama_model

__all__ = ["show"]

DEFAULT_GPU = "H200"
# share of the usable memory above which weights leave little for the KV cache
TIGHT = 0.6
# more GPUs than a machine usually has
NODE = 8


def show(args: Namespace) -> int:
    """Runs `stackgen models show`. Returns 1 if stackgen has no engine for the model, or its weights don't fit."""
    if len(args.words) != 1:
        raise StackgenError("`models show` needs one model", "for example `stackgen models show Qwen/Qwen3-8B`")
    snapshot, version = load_catalog().snapshot, _version(args)
    match = _find(snapshot, args.words[0], args.variant)
    entry, variant = match.entry, match.variant
    gpu, origin = _gpu(args)
    gpus = args.gpus or _count(entry, variant, gpu)
    reason = why_not(entry, variant, version)
    stack = None
    if not reason and gpus <= MAX_GPUS:
        stack = build_stack(entry, variant, gpus, version, _origin(snapshot, entry), gpu.is_amd)
    hub = make_hub(None, Path(), False)
    lookup = look_up_model(variant.model, None, hub.token, hub.endpoint) if args.hub else None
    fit = _fit(variant, gpu, gpus, version) if lookup and stack else None
    too_large = weight_bytes(entry, variant) > gpu.memory * SHARE * gpus
    data = {
        **_to_json(match, version, reason, lookup, gpu, gpus, stack, fit),
        "weights_fit": not too_large if weight_bytes(entry, variant) else None,
    }
    lines = _to_lines(match, version, lookup, gpu, fit)
    if stack:
        lines += ["", f"stack.yaml for {gpus} × {gpu.name} ({'does not fit' if too_large else origin}):", "",
                  *stack.text.rstrip().splitlines()]  # fmt: skip
    print_data(args, data, lines)
    note_catalog(args)
    for text in _warnings(reason, gpus, gpu) if not args.json else ():
        note(text)
    if too_large and not reason and not args.json:
        note(_describe_too_large(entry, variant, gpu, gpus))
    elif stack and not args.json and memory_floor(entry, variant) > gpu.memory * SHARE * gpus:
        note(_describe_short(entry, variant, gpu, gpus))
    elif stack and not args.json and memory_floor(entry, variant) > TIGHT * gpu.memory * SHARE * gpus:
        context = f"The context of {entry.context:,} tokens" if entry.context else "The whole context"
        count = f" --gpus {gpus}" if gpus > 1 else ""
        note(f"warning: the weights leave little memory for the KV cache. {context} may not fit, and then vLLM doesn't "
             f"start. Set a shorter max_model_len: `stackgen fit {variant.model} --gpu {gpu.name}{count} "
             "--max-model-len 8K` estimates it")  # fmt: skip
    return 1 if reason or too_large else 0


def _describe_too_large(entry: Entry, variant: Variant, gpu: Gpu, gpus: int) -> str:
    need, room = (f"{size / 10**9:.0f} GB" for size in (weight_bytes(entry, variant), gpu.memory * SHARE * gpus))
    return (f"stackgen: {variant.model} does not fit on {gpus} × {gpu.name}: its weights need about {need}, and vLLM "
            f"uses {room} of the memory. To make the weights fit, {_way_out(entry, variant, gpu, gpus)}")  # fmt: skip


def _describe_short(entry: Entry, variant: Variant, gpu: Gpu, gpus: int) -> str:
    """The weights fit, but what the recipe counts besides them does not."""
    need, room = (f"{size / 10**9:.0f} GB" for size in (memory_floor(entry, variant), gpu.memory * SHARE * gpus))
    count = f" --gpus {gpus}" if gpus > 1 else ""
    return (f"warning: {variant.model} may not start on {gpus} × {gpu.name}, even with a short context: vLLM's recipe "
            f"counts {need}, and vLLM uses {room} of the memory. `stackgen fit {variant.model} --gpu {gpu.name}{count} "
            f"--max-model-len 8K` estimates it. To be sure, {_way_out(entry, variant, gpu, gpus)}")  # fmt: skip


def _way_out(entry: Entry, variant: Variant, gpu: Gpu, gpus: int) -> str:
    budget = Budget(gpu.memory, gpus, gpu.compute)
    able = [one for one in entry.variants if not why_not(entry, one) and fits(entry, one, budget)]
    # more bits are more exact, but without room for the context, vLLM doesn't start
    roomy = [one for one in able if memory_floor(entry, one) <= TIGHT * gpu.memory * SHARE * gpus]
    best = max(roomy or able, key=lambda one: memory_floor(entry, one), default=None)
    smaller = f"choose --variant {best.name}, or " if best else ""
    return f"{smaller}use --gpus {_count(entry, variant, gpu)} or a larger GPU"


def _version(args: Namespace) -> str:
    version: str = args.engine_version or PINNED["vllm"]
    if version not in known_versions("vllm"):
        raise StackgenError(f"--engine-version: stackgen has no table of vLLM {version}, so it can't check the flags",
                            f"known versions: {', '.join(known_versions('vllm'))}")  # fmt: skip
    return version


def _hint_of_ollama(name: str) -> str:
    model = find_ollama_model(name)
    return f"run `stackgen models show {model}`" if model else ""


def _find(snapshot: Snapshot, name: str, variant: str | None) -> Match:
    match = find_model(name)
    if match is None:
        if explanation := explain_ollama(name):
            raise StackgenError(f"{name} {explanation}", _hint_of_ollama(name))
        close = suggest_names(snapshot, name)
        hint = f"did you mean {', '.join(close)}?" if close else "`stackgen models search WORD` searches the catalog."
        outside = "Models outside the catalog work too: write the name into stack.yaml, or run `stackgen render MODEL`"
        raise StackgenError(f"the catalog has no model {name!r}", f"{hint} {outside}")
    if variant is None:
        return match
    found = [one for one in match.entry.variants if variant.lower() in (one.name.lower(), one.precision.lower())]
    exact = [one for one in found if one.name.lower() == variant.lower()]
    if not found:
        known = ", ".join(one.name for one in match.entry.variants)
        raise StackgenError(f"--variant: {match.entry.model} has no variant {variant!r}", f"its variants: {known}")
    # of the whole recipe: the entry of another checkpoint has less
    whole = next(one for one in snapshot.models if one.model == match.entry.model)
    return match_variant(whole, (exact or found)[0])


def _gpu(args: Namespace) -> tuple[Gpu, str]:
    """The GPU to plan for, and why it is this one."""
    if args.gpu:
        return find_gpu(args.gpu), "--gpu"
    gpus: Any = read_nvidia_facts(run_tool).get("gpus") or ()
    if known := [one for one in gpus if one.memory_total]:
        least = min(known, key=lambda one: one.memory_total)
        return observed_gpu(least.name, least.memory_total, least.compute), "of this machine"
    return find_gpu(DEFAULT_GPU), "choose another one with --gpu"


def _count(entry: Entry, variant: Variant, gpu: Gpu) -> int:
    """The smallest power of two of GPUs that holds the recipe's figure, or the recipe's own size if it is larger."""
    need = math.ceil(memory_floor(entry, variant) / (gpu.memory * SHARE))
    # a power of two divides the attention heads of nearly all models
    return max(1 << max(0, need - 1).bit_length(), variant.gpus or 1)


def _origin(snapshot: Snapshot, entry: Entry) -> str:
    commit = f" at {snapshot.commit[:12]}" if snapshot.commit else ""
    return f"{snapshot.source}{commit}, recipe from {entry.updated}, checked by stackgen"


def _fit(variant: Variant, gpu: Gpu, gpus: int, version: str) -> dict[str, Any]:
    """What `stackgen fit` says, next to the recipe's figure. GiB on all GPUs together."""
    try:
        model = find_weights(variant.model, Path(), make_hub(None, Path(), False))
        found = estimate(model, Settings(version=engine_version(f":{version}"), tensor_parallel=gpus), gpu)
    except StackgenError as error:
        return {"error": error.message}
    total = sum(one.bytes for one in found.terms) * gpus
    recipe = variant.vram_gb * 10**9
    return {"verdict": found.verdict, "reason": found.reason, "gib": round(total / 2**30, 2),
            "recipe_gib": round(recipe / 2**30, 2),
            "difference": round(recipe / total - 1, 3) if total else None}  # fmt: skip


def _facts(match: Match, version: str, lookup: HubLookup | None) -> list[tuple[str, Any, str, str]]:
    """Each value as (name, value, origin, day of the origin)."""
    entry, variant = match
    recipe, access = "vLLM's recipe for the model", find_access(entry.model)
    if not is_same_kind(entry, variant):
        recipe = f"vLLM's recipe for {entry.model}"
    rows: list[tuple[str, Any, str, str]] = []
    for field in PARSER_FLAGS:
        fact = find_variant_parser(field, entry, variant, version)
        origin = (
            f"{fact.origin} sets it: no field is needed" if fact and fact.automatic else fact.origin if fact else ""
        )
        rows.append((field, fact.value if fact else None, origin, fact.date if fact else ""))
    rows += [
        ("chat_template", entry.chat_template or "the model's own", recipe, entry.updated),
        ("first_vllm", first_version(entry, variant) or None, recipe, entry.updated),
        ("context", entry.context, recipe, entry.updated),
        ("verified", entry.verified, recipe, entry.updated),
        ("unsupported", entry.unsupported, recipe, entry.updated),
    ]
    today = date.today().isoformat()
    answered = lookup is not None and lookup.state in ("ok", "gated")
    hub = ("the Hub", today)
    license, gated = (lookup.license, lookup.gated) if answered and lookup else ("", None)
    rows.append(("license", license or access.license or None, *(hub if license else (access.source, access.date))))
    rows.append(("gated", access.gated if gated is None else gated, *((access.source, access.date) if gated is None
                                                                      else hub)))  # fmt: skip
    return rows


def _to_json(
    match: Match, version: str, reason: str, lookup: HubLookup | None, gpu: Gpu, gpus: int, stack: StackText | None,
    fit: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    entry, variant = match
    return {
        "model": entry.model, "repository": variant.model, "variant": variant.name, "provider": entry.provider,
        "tasks": entry.tasks, "architecture": entry.architecture, "parameters": entry.parameters,
        "active_parameters": entry.active, "engine_version": version, "problem": reason or None,
        "facts": {name: {"value": value, "origin": origin or None, "date": day or None}
                  for name, value, origin, day in _facts(match, version, lookup)},
        "hub": lookup.state if lookup else None,
        "variants": [{"name": one.name, "repository": one.model, "precision": one.precision, "vram_gb": one.vram_gb,
                      "problem": why_not(entry, one, version) or None} for one in entry.variants],
        "gpu": gpu.name, "gpus": gpus, "fit": fit, "stack": stack.text if stack else None,
        "left_out": [{"flag": text, "reason": why} for text, why in stack.left_out] if stack else [],
    }  # fmt: skip


def _to_lines(match: Match, version: str, lookup: HubLookup | None, gpu: Gpu, fit: dict[str, Any] | None) -> list[str]:
    entry, variant = match
    size = variant_size(entry, variant) or "unknown size"
    size += f", {entry.active} active" if entry.active and entry.active != entry.parameters == size else ""
    names, today = hardware_names(load_catalog().snapshot), date.today()
    lines = [f"{variant.model}", f"  {entry.provider}, {', '.join(entry.tasks)}, {entry.architecture}, {size}"]
    for name, value, origin, day in _facts(match, version, lookup):
        # the whole source is in --json
        short = ", ".join(origin.split(", ")[:2])
        source = f"   ({short}, {describe_age(day, today)})" if value not in (None, ()) and origin else ""
        lines.append(f"  {name:<17} {_text(name, value, names)}{source}")
    lines.append("  memory of all GPUs, by the recipe, without the context:")
    for one in entry.variants:
        mark = "*" if one == variant else " "
        need = f"{_count(entry, one, gpu)} × {gpu.name}"
        lines.append(f"  {mark} {one.name:<16} {one.precision:<8} {one.vram_gb:>6} GB  {need:<12} {one.model}")
    if fit:
        lines.append(f"  fit               {_fit_text(fit)}")
    return lines


def _text(name: str, value: Any, names: dict[str, str]) -> str:
    if isinstance(value, tuple):
        return ", ".join(names.get(key, key.upper()) for key in value) or "-"
    if value is None:
        # a recipe without a parser is no proof that there is none, but none is set
        return "-" if name.endswith("_parser") else "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _fit_text(fit: dict[str, Any]) -> str:
    if "error" in fit:
        return f"unknown: {fit['error']}"
    return (f"{fit['verdict']}: {fit['gib']} GiB without the KV cache, and the recipe's figure is "
            f"{fit['recipe_gib']} GiB ({fit['difference']:+.0%})")  # fmt: skip


def _warnings(reason: str, gpus: int, gpu: Gpu) -> list[str]:
    found = [f"stackgen: {reason}, so there is no stack.yaml"] if reason else []
    if not reason and gpus > MAX_GPUS:
        found.append(f"stackgen: {gpus} × {gpu.name} are more than the {MAX_GPUS} GPUs that a model can have. Choose a "
                     "smaller checkpoint with --variant, or a larger GPU with --gpu")  # fmt: skip
    elif not reason and gpus > NODE:
        found.append(f"stackgen: {gpus} × {gpu.name} are more GPUs than most machines have")
    elif not reason and sys.stdout.isatty():
        found.append(
            "next: save this text as stack.yaml in a new folder, then run `stackgen doctor` and `stackgen fit` there"
        )
    return found
