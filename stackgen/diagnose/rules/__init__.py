"""The rules, from specific to general: the first that applies is the cause."""

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
    # what Compose rejects comes before what services log: if Compose fails, nothing has run
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
    # these describe a state, which every more specific cause explains
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
