"""Dialects of servers that no engine of ours runs, and how a dialect is recognized from responses.

Engines declare their own dialect in their own file; `check()` is given those and adds these two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stackgen.plan import Dialect

__all__ = [
    "BUILTIN", "FINISH_REASONS", "OPENAI", "TOGETHER", "dialect_of_models", "finish_problem", "finish_reasons",
]  # fmt: skip

OPENAI = Dialect(
    name="openai",
    unknown_model=(404, "model_not_found"),
    # whatever it is, it may be one of ours behind a proxy, or guard its /v1 alone as they do
    open_paths=("/invocations", "/api/v1/chat/completions", "/completions", "/chat/completions"),
)
# https://docs.together.ai/reference/models-1: GET /models answers with a bare array
TOGETHER = Dialect(
    name="together",
    unknown_model=(404, "model_not_available"),
    # one model of a cloud has what another lacks
    depends=("completions", "embeddings", "tools", "json-schema", "logprobs", "seed"),
    lacks=("tokenize",),
)
BUILTIN: Mapping[str, Dialect] = {dialect.name: dialect for dialect in (OPENAI, TOGETHER)}

# https://platform.openai.com/docs/api-reference/chat/object, `choices[].finish_reason`
FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
# https://docs.together.ai/reference/chat-completions-1 has `eos` besides `stop`
MORE_FINISH_REASONS: Mapping[str, frozenset[str]] = {"together": frozenset({"eos"})}

# `owned_by` in GET /v1/models: recorded from vLLM 0.32 and FastChat 0.2.36; llama.cpp: tools/server/server.cpp
OWNERS: Mapping[str, str] = {"vllm": "vllm", "fastchat": "fastchat", "llamacpp": "llamacpp"}


# these belong to answers that call a tool, or that a filter has cut: the check's question is no reason for either
SPECIAL_FINISH_REASONS = frozenset({"tool_calls", "function_call", "content_filter"})


def finish_reasons(dialect: Dialect) -> frozenset[str]:
    """The finish reasons that a server of this dialect may give to a plain answer."""
    return (FINISH_REASONS - SPECIAL_FINISH_REASONS) | MORE_FINISH_REASONS.get(dialect.name, frozenset())


def finish_problem(reason: str, allowed: frozenset[str]) -> str:
    """What is wrong with a finish reason that is not among those `allowed`; empty for one that is."""
    if reason in allowed:
        return ""
    known = reason in FINISH_REASONS
    return f"finish_reason {reason!r} " + ("does not fit a plain answer" if known else "is not documented")


def dialect_of_models(body: Any) -> str | None:
    """The name of the dialect that a parsed GET /v1/models body shows; None when it shows none."""
    if isinstance(body, list):
        return TOGETHER.name
    data = body.get("data") if isinstance(body, dict) else None
    owners = {str(card.get("owned_by")) for card in data if isinstance(card, dict)} if isinstance(data, list) else set()
    # a gateway over several engines lists several owners and speaks none of their dialects
    found = {OWNERS[owner] for owner in owners if owner in OWNERS}
    return found.pop() if len(found) == 1 else None
