"""An estimate as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stackgen.fit.estimate import FITS, Change, Estimate, format_gib
from stackgen.fit.gpus import GIB, known_gpus
from stackgen.fit.prompts import describe_prompts, longest_prompt

__all__ = ["as_json", "as_lines", "gpu_json", "gpu_lines", "mark_of"]

SYMBOLS = {FITS: ("✓", "32"), "doesn't fit": ("✗", "31")}


def as_json(name: str, found: Estimate, changes: Sequence[Change], gpus: int) -> dict[str, Any]:
    """The object of one model in `stackgen fit --json`. Sizes are bytes, lengths tokens."""
    settings = found.settings
    return {
        "model": name, "engine": settings.engine, "engine_version": ".".join(map(str, settings.version)),
        "verdict": found.verdict, "reason": found.reason,
        "gpu": {"name": found.gpu.name, "memory": found.gpu.memory, "unified": found.gpu.unified, "count": gpus},
        "budget": found.budget, "terms": [asdict(term) for term in found.terms],
        "kv_cache": dict(zip(("low", "expected", "high"), found.cache, strict=True)),
        "needed": dict(zip(("low", "expected", "high"), found.needed, strict=True)),
        "context": found.length, "request_bytes": found.request, "token_bytes": found.token_bytes,
        "kv_tokens": found.tokens, "longest_context": _longest(found), "concurrency": round(found.concurrency, 2),
        "smallest_utilization": found.smallest_utilization, "changes": [asdict(change) for change in changes],
        "doubts": list(found.doubts), "warnings": list(found.warnings),
    }  # fmt: skip


def _longest(found: Estimate) -> int:
    if found.settings.engine != "fastchat" or found.verdict == FITS:
        return found.longest
    return longest_prompt(found, found.settings.max_num_seqs or 1)


def mark_of(verdict: str, color: bool = False) -> str:
    """The symbol in front of a verdict."""
    symbol, code = SYMBOLS.get(verdict, ("?", "33"))
    return f"\033[{code}m{symbol}\033[0m" if color else symbol


def as_lines(name: str, found: Estimate, changes: Sequence[Change], gpus: int, color: bool = False) -> list[str]:
    """The verdict, the number that decides it, the terms, and what would help."""
    mark = mark_of(found.verdict, color)
    where = f"{gpus} x {found.gpu.name}" if gpus > 1 else found.gpu.name
    settings = found.settings
    lines = [f"{mark} {name} {found.verdict} on {where} ({format_gib(found.gpu.memory)} each)" if gpus > 1 else
             f"{mark} {name} {found.verdict} on {where} ({format_gib(found.gpu.memory)})",
             f"  {found.reason}", *(f"  warning: {warning}" for warning in found.warnings)]  # fmt: skip
    has_share = settings.engine == "vllm" or settings.utilization
    share = f", {settings.share:g} of the memory" if has_share else ""
    version = ".".join(map(str, settings.version)) if settings.engine == "vllm" else ""
    memory = "in the machine's memory" if settings.is_cpu else "on each GPU"
    lines.append(f"  {memory}, GiB ({settings.engine}{' ' + version if version else ''}{share}):")
    for term in found.terms:
        lines.append(f"    {term.name:30} {term.bytes / GIB:8.2f}   {_span(term.low, term.high):>15}   {term.source}")
    if not found.has_cache:
        lines.append("  no KV cache: an encoder computes each prompt in one step")
        return lines + [f"  uncertain: {doubt}" for doubt in found.doubts] + _change_lines(changes)
    low, middle, high = found.cache
    lines.append(f"    {'room for the KV cache':30} {middle / GIB:8.2f}   {_span(low, high):>15}   "
                 f"{found.token_bytes / 1024:.1f} KiB for each token")  # fmt: skip
    # FastChat and llama.cpp: the requests of all threads or slots
    times = round(found.request / (found.plan.request_bytes(found.length) or 1))
    needed = f"needed for {f'{times} x ' if times > 1 else ''}{found.length} tokens"
    lines.append(f"    {needed:30} {found.request / GIB:8.2f}")
    if prompts := describe_prompts(found):
        lines.append(f"  {prompts}")
    elif found.longest:
        lines.append(f"  KV cache: about {found.tokens:,} tokens, {found.concurrency:.1f} requests of {found.length} "
                     f"tokens at the same time. Longest context that fits for certain: {found.longest}")  # fmt: skip
    return lines + [f"  uncertain: {doubt}" for doubt in found.doubts] + _change_lines(changes)


def _change_lines(changes: Sequence[Change]) -> list[str]:
    lines = []
    for number, change in enumerate(changes):
        setting = f" (`{change.field}: {change.value}`)" if change.field and change.value else ""
        lines.append(f"  {'to make it fit:' if not number else '            or:'} {change.text}{setting}")
    return lines


def _span(low: int, high: int) -> str:
    return f"{low / GIB:.2f} to {high / GIB:.2f}"


def gpu_lines() -> list[str]:
    """The table of `--list-gpus`."""
    gpus = {gpu.name: gpu for gpu in known_gpus().values()}.values()
    rows = [f"{'GPU':18} {'GiB':>7} {'GB/s':>6} {'compute':>8}  memory"]
    return rows + [f"{gpu.name:18} {gpu.memory / GIB:7.2f} {gpu.bandwidth:6.0f} {gpu.compute:>8}  "
                   f"{'shared with the CPU' if gpu.unified else 'its own'}" for gpu in gpus]  # fmt: skip


def gpu_json() -> list[dict[str, Any]]:
    """The GPUs of `--list-gpus --json`."""
    return [asdict(gpu) for gpu in {gpu.name: gpu for gpu in known_gpus().values()}.values()]
