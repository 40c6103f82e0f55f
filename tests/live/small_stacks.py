"""Stacks of one small model or of the stand-in, and what `stackgen diagnose` finds in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.live.stacks import LiveStack

__all__ = ["find_causes", "first_finding", "standin_stack", "tiny_vllm_stack", "vllm_entry"]


def vllm_entry(image: str, model: Path | str, **fields: Any) -> dict[str, Any]:
    """A model of a stack file: vLLM on the CPU with little memory."""
    return {
        "model": str(model), "engine": "vllm", "image": image, "served_names": ["tiny"], "max_model_len": 512,
        "cpu_kv_cache_gib": 1, "enforce_eager": True,
    } | fields  # fmt: skip


def tiny_vllm_stack(
    folder: Path, name: str, image: str, model: Path, *, port: int, restart: str = "on-failure:1", **fields: Any
) -> LiveStack:
    """A stack with one vLLM service, `vllm-tiny`."""
    entry = vllm_entry(image, model, **fields)
    return LiveStack(folder, {"name": f"sgtest-{name}", "port": port, "restart": restart, "models": [entry]})


def standin_stack(folder: Path, name: str, image: str, *, port: int, **fields: Any) -> LiveStack:
    """The same stack with the stand-in for vLLM, which reads no weights."""
    (folder / "model").mkdir(exist_ok=True)
    return tiny_vllm_stack(folder, name, image, folder / "model", port=port, **fields)


def find_causes(stack: LiveStack, *args: str) -> list[dict[str, Any]]:
    """Returns the findings of `stackgen diagnose`, which must have some."""
    found: list[dict[str, Any]] = json.loads(stack.stackgen("diagnose", str(stack.folder), "--json", *args, code=1))[
        "findings"
    ]
    return found


def first_finding(stack: LiveStack, *args: str) -> dict[str, Any]:
    """Returns the first finding of `stackgen diagnose`, the most likely cause."""
    return find_causes(stack, *args)[0]
