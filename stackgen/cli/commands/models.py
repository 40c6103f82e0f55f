"""`stackgen models`: searches the catalog, shows a model and the stack that serves it, and gets a newer catalog."""

from __future__ import annotations

from argparse import Namespace
from datetime import date
from typing import Any

from stackgen.catalog import find_variant_parser, load_catalog, match_variant
from stackgen.catalog.flags import Parser, first_version
from stackgen.catalog.search import (
    Budget,
    Found,
    Query,
    find_hardware,
    hardware_names,
    search,
    variant_size,
)
from stackgen.catalog.sizes import parameter_count
from stackgen.cli.commands.output import note, print_data
from stackgen.cli.commands.table import format_table
from stackgen.errors import StackgenError
from stackgen.fit import find_gpu
from stackgen.spec import parse_token_count

__all__ = ["models"]

# option of the command line -> the actions that read it
OWNERS = {
    "task": ("search",), "tools": ("search",), "reasoning": ("search",), "min_size": ("search",),
    "max_size": ("search",), "context": ("search",), "hardware": ("search",), "fits": ("search",), "all": ("search",),
    "variant": ("show",), "gpu": ("show",), "engine_version": ("show",), "hub": ("show",), "gpus": ("search", "show"),
    "sha256": ("sync",), "dry_run": ("sync",), "remove": ("sync",),
}  # fmt: skip

OUTSIDE = (
    "Models outside the catalog work too: write the name from the Hugging Face Hub into stack.yaml, or run "
    "`stackgen init FOLDER --model NAME`. `stackgen fit NAME --gpu GPU` estimates the memory"
)


def models(args: Namespace) -> int:
    """Runs `stackgen models`. Returns 1 if a search finds nothing, otherwise 0."""
    for name, actions in OWNERS.items():
        if getattr(args, name) not in (None, False) and args.action not in actions:
            option = f"--{name.replace('_', '-')}"
            raise StackgenError(
                f"`models {args.action}` has no option {option}", f"the option is for {' and '.join(actions)}"
            )
    if args.gpus is not None and not 1 <= args.gpus <= 64:
        raise StackgenError(f"--gpus: {args.gpus} is not a number of GPUs", "use 1 to 64")
    if args.action == "show":
        from stackgen.cli.commands.models_show import show

        return show(args)
    if args.action == "sync":
        from stackgen.cli.commands.models_sync import sync

        return sync(args)
    return _search(args)


def describe_age(day: str, today: date) -> str:
    """`2026-08-19, 102 days old`."""
    days = (today - date.fromisoformat(day)).days
    return f"{day}, {days} day{'s' if days > 1 else ''} old" if days > 0 else day


def note_catalog(args: Namespace) -> None:
    """Prints which catalog is in use, and how old its newest recipe is."""
    catalog = load_catalog()
    if catalog.problem:
        note(f"stackgen: the synced catalog is not used: {catalog.problem}. `stackgen models sync` replaces it")
    if not args.json:
        snapshot = catalog.snapshot
        commit = f" at {snapshot.commit[:12]}" if snapshot.commit else ""
        age = describe_age(snapshot.updated, date.today())
        note(f"source: {snapshot.source}{commit}, newest recipe from {age}")


def _search(args: Namespace) -> int:
    snapshot = load_catalog().snapshot
    if args.gpus is not None and not args.fits:
        raise StackgenError("--gpus needs --fits GPU", "for example `stackgen models search --fits H100 --gpus 2`")
    budget = None
    if args.fits:
        gpu = find_gpu(args.fits)
        budget = Budget(gpu.memory, args.gpus or 1, gpu.compute)
    # `qwen3:8b`, as in Ollama's library
    words = [word for one in args.words for word in one.split(":") if word and word.lower() != "latest"]
    query = Query(
        tuple(words), args.task or "", args.tools, args.reasoning, _size(args.min_size, "--min-size"),
        _size(args.max_size, "--max-size"), _tokens(args.context),
        find_hardware(snapshot, args.hardware) if args.hardware else "", budget, not args.all,
    )  # fmt: skip
    found = search(snapshot, query)
    names = hardware_names(snapshot)
    rows = [_to_row(one, names) for one in found]
    lines = format_table(("MODEL", "SIZE", "CONTEXT", "TOOLS", "REASONING", "MEMORY", "VERIFIED ON", "RECIPE"), rows)
    data = {"source": _source(), "models": [_to_json(one) for one in found]}
    print_data(args, data, lines or ["no model matches. `stackgen models search --all` lists the whole catalog",
                                   OUTSIDE])  # fmt: skip
    note_catalog(args)
    if budget and found and not args.json:
        command = f"`stackgen fit MODEL --gpu {args.fits}`"
        note(f"the memory comes from the recipes and does not include the context. {command} estimates the total")
    return 0 if found else 1


def _to_row(one: Found, names: dict[str, str]) -> tuple[str, ...]:
    entry, variant = one.entry, one.variant
    context = match_variant(entry, variant).entry.context
    verified = [names[key] for key in entry.verified]
    more = f" +{len(verified) - 3}" if len(verified) > 3 else ""
    size = variant_size(entry, variant) or "?"
    # the active part is that of the entry's own model
    size += f"/{entry.active}" if entry.active and entry.active != entry.parameters == size else ""
    return (variant.model, size, f"{context:,}" if context else "?",
            _parser("tool_call_parser", one) or "-", _parser("reasoning_parser", one) or "-",
            f"{variant.vram_gb} GB {variant.precision}",
            (", ".join(verified[:3]) + more) or "-", entry.updated)  # fmt: skip


def _to_json(one: Found) -> dict[str, Any]:
    entry, variant = one.entry, one.variant
    return {
        "model": entry.model, "repository": variant.model, "variant": variant.name, "provider": entry.provider,
        "tasks": entry.tasks, "parameters": variant_size(entry, variant), "active_parameters": entry.active,
        "context": match_variant(entry, variant).entry.context, "tool_call_parser": _parser("tool_call_parser", one),
        "reasoning_parser": _parser("reasoning_parser", one), "precision": variant.precision,
        "vram_gb": variant.vram_gb,
        "verified": entry.verified, "first_vllm": first_version(entry, variant) or None,
        "updated": entry.updated,
    }  # fmt: skip


def _parser(field: Parser, one: Found) -> str | None:
    fact = find_variant_parser(field, one.entry, one.variant)
    return fact.value if fact else None


def _source() -> dict[str, Any]:
    catalog = load_catalog()
    snapshot = catalog.snapshot
    return {"repository": snapshot.source, "license": snapshot.license, "commit": snapshot.commit,
            "updated": snapshot.updated, "sha256": snapshot.sha256, "file": catalog.path or None,
            "models": len(snapshot.models)}  # fmt: skip


def _size(text: str | None, option: str) -> float | None:
    size = parameter_count(text)
    if text is not None and size is None:
        raise StackgenError(f"{option}: {text!r} is not a number of parameters", "for example 500M, 7B or 1.5T")
    return size


def _tokens(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        tokens = parse_token_count(text)
    except (ValueError, IndexError, OverflowError):
        tokens = 0
    if tokens < 1:
        raise StackgenError(f"--context: {text!r} is not a number of tokens", "for example 8192, 32k or 128k")
    return tokens
