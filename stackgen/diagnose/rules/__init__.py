"""The rules, from specific to general. The first rule that applies is the cause."""

from __future__ import annotations

from stackgen.diagnose.rule import Rule
from stackgen.diagnose.rules import (
    connection,
    docker,
    fastchat,
    files,
    gpu,
    gpu_driver,
    host_memory,
    huggingface,
    llamacpp,
    memory,
    model_names,
    requests,
    slow,
    vllm,
)

__all__ = ["RULES", "get_rule", "has_check_rule"]

RULES: tuple[Rule, ...] = (
    # rules for Compose come before rules for logs: if Compose fails, no service has run
    *docker.COMPOSE_RULES,
    *memory.RULES,
    *host_memory.RULES,
    *gpu_driver.RULES,
    *gpu.RULES,
    *vllm.RULES,
    *requests.RULES,
    *fastchat.RULES,
    *llamacpp.RULES,
    *files.RULES,
    *huggingface.RULES,
    *model_names.RULES,
    *connection.RULES,
    *docker.RULES,
    *slow.RULES,
    # these describe a state; if a more specific cause exists, it explains the state
    *llamacpp.LAST_RULES,
    *connection.LAST_RULES,
)


def get_rule(id: str) -> Rule:
    """The rule with this id, in any case. Raises KeyError if there is none."""
    for one in RULES:
        if one.id == id.upper():
            return one
    raise KeyError(id)


def has_check_rule(check: str, message: str) -> bool:
    """Whether a rule explains the message of a check."""
    line = f"{check}: {message}"
    return any(pattern.search(line) for one in RULES if "check" in one.inputs for pattern in one.patterns)
