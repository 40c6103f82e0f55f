"""How llama-server divides its context among its slots: `--ctx-size`, the comment in compose.yaml, and a warning.

Build 11434, `src/llama-context.cpp`, and the running server: with `--parallel`, each slot gets its part of the context,
also of the model's own one. Without it, 4 slots share one KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackgen.engines.base import Replica
from stackgen.spec import parse_token_count

__all__ = ["context_size", "describe_replica", "warn_of_slots"]


def context_size(model: Any) -> int | None:
    """The value of `--ctx-size`; None: without the flag, llama-server uses the model's own context."""
    length = _length(model)
    return length * (model.max_num_seqs or 1) if length else None


def describe_replica(replica: Replica) -> str:
    """The comment of the service: what it serves, and how the context is divided."""
    model, slots, length = replica.spec, replica.spec.max_num_seqs or 1, _length(replica.spec)
    text = f"llama.cpp serving {model.model}{replica.ordinal}"
    if model.models_dir:
        text += f": {model.models_max or 1} of {len(model.served_names)} models loaded at a time"
    if not length:
        return text + (f"; {slots} slots divide the model's own context" if slots > 1 else "")
    return text + (f"; {slots} x {length:,} tokens of context" if model.max_num_seqs else
                   f"; all requests share {length:,} tokens")  # fmt: skip


def warn_of_slots(model: Any, path: str) -> Iterator[str]:
    """A warning if each request gets only a part of the model's own context."""
    slots = model.max_num_seqs or 1
    if slots > 1 and not _length(model):
        yield (
            f"{path}.max_num_seqs: without a number in max_model_len, llama-server divides the model's own context by "
            f"{slots}, so each request gets only 1/{slots} of it. Set max_model_len to the context that each request "
            "needs"
        )


def _length(model: Any) -> int:
    return 0 if model.max_model_len in (None, "auto", "-1") else parse_token_count(model.max_model_len)
