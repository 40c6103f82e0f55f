"""Dialects of servers that stackgen does not run, and the detection of a dialect from responses.

Each engine declares its dialect in its own module. `check()` receives these dialects and adds the two of this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stackgen.plan import CHAT_PATHS, Dialect

__all__ = [
    "BUILTIN",
    "FINISH_REASONS",
    "OPENAI",
    "TOGETHER",
    "allowed_finish_reasons",
    "dialect_from_models",
    "finish_problem",
]  # fmt: skip

OPENAI = Dialect(
    name="openai",
    unknown_model=(404, "model_not_found"),
    open_paths=CHAT_PATHS,
)
# https://docs.together.ai/reference/models-1: GET /models answers with a bare array
TOGETHER = Dialect(
    name="together",
    unknown_model=(404, "model_not_available"),
    # in a cloud, the features depend on the model
    depends=("completions", "embeddings", "tools", "json-schema", "logprobs", "seed"),
    lacks=("tokenize",),
)
BUILTIN: Mapping[str, Dialect] = {dialect.name: dialect for dialect in (OPENAI, TOGETHER)}

# https://platform.openai.com/docs/api-reference/chat/object, `choices[].finish_reason`
FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
# https://docs.together.ai/reference/chat-completions-1 has `eos` besides `stop`
EXTRA_FINISH_REASONS: Mapping[str, frozenset[str]] = {"together": frozenset({"eos"})}

# `owned_by` in GET /v1/models: recorded from vLLM 0.32 and FastChat 0.2.36; llama.cpp: tools/server/server.cpp;
# SGLang: entrypoints/openai/protocol.py
OWNERS: Mapping[str, str] = {"vllm": "vllm", "fastchat": "fastchat", "llamacpp": "llamacpp", "sglang": "sglang"}


# answers that call a tool or were filtered have these finish reasons; the question of the check causes neither
SPECIAL_FINISH_REASONS = frozenset({"tool_calls", "function_call", "content_filter"})


def allowed_finish_reasons(dialect: Dialect) -> frozenset[str]:
    """The finish reasons that a server of this dialect may return for a plain answer."""
    return (FINISH_REASONS - SPECIAL_FINISH_REASONS) | EXTRA_FINISH_REASONS.get(dialect.name, frozenset())


def finish_problem(reason: str, allowed: frozenset[str]) -> str:
    """Returns what is wrong with a finish reason; empty if the reason is `allowed`."""
    if reason in allowed:
        return ""
    known = reason in FINISH_REASONS
    return f"finish_reason {reason!r} " + ("is wrong for a text answer" if known else "is not documented")


def dialect_from_models(body: Any) -> str | None:
    """Returns the name of the dialect that the parsed body of GET /v1/models shows; None if it shows no dialect."""
    if isinstance(body, list):
        return TOGETHER.name
    data = body.get("data") if isinstance(body, dict) else None
    owners = {str(card.get("owned_by")) for card in data if isinstance(card, dict)} if isinstance(data, list) else set()
    # a gateway in front of several engines lists several owners, and no single dialect applies
    names = {OWNERS[owner] for owner in owners if owner in OWNERS}
    return names.pop() if len(names) == 1 else None
