"""The rules, from specific to general: the first that applies is the cause."""

from __future__ import annotations

from stackgen.diagnose.rule import Rule
from stackgen.diagnose.rules import (
    connection,
    docker,
    fastchat,
    files,
    gpu,
    llamacpp,
    memory,
    requests,
    slow,
    vllm,
)
from stackgen.diagnose.rules import (
    huggingface as hub,
)
from stackgen.diagnose.rules import (
    model_names as names,
)

__all__ = ["RULES", "known", "rule"]

# what Compose refuses comes before what services log: nothing ran then
RULES: tuple[Rule, ...] = (
    *docker.FIRST,
    *memory.RULES,
    *gpu.RULES,
    *vllm.RULES,
    *requests.RULES,
    *fastchat.RULES,
    *llamacpp.RULES,
    *files.RULES,
    *hub.RULES,
    *names.RULES,
    *connection.RULES,
    *docker.RULES,
    *slow.RULES,
    *llamacpp.LAST,
    *connection.LAST,
)


def rule(id: str) -> Rule:
    """The rule with this id; KeyError where there is none."""
    for one in RULES:
        if one.id == id.upper():
            return one
    raise KeyError(id)


def known(check: str, told: str) -> bool:
    """Whether a rule has words for what a check told."""
    line = f"{check}: {told}"
    return any(pattern.search(line) for one in RULES if "check" in one.places for pattern in one.patterns)
