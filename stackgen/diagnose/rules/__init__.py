"""The rules, from specific to general. The first rule that applies is the cause."""

from __future__ import annotations

from stackgen.diagnose.rule import Rule
from stackgen.diagnose.rules import (
    answers,
    combinations,
    compose_files,
    connection,
    distributed,
    docker,
    engine_faults,
    engine_messages,
    engine_start,
    environment,
    fastchat,
    files,
    gpu,
    gpu_access,
    gpu_driver,
    gpu_image,
    gpu_kernels,
    gpu_setup,
    gpu_visibility,
    hangs,
    host_memory,
    hub_network,
    huggingface,
    image_pull,
    kubernetes,
    llamacpp,
    memory,
    memory_kinds,
    model_format,
    model_names,
    native_parts,
    packages,
    pasted_states,
    refusals,
    requests,
    sglang,
    sizes,
    slow,
    surroundings,
    toolchain,
    vllm,
    windows,
)

__all__ = ["RULES", "get_rule", "has_check_rule"]

RULES: tuple[Rule, ...] = (
    # rules for Compose come before rules for logs: if Compose fails, no service has run
    *docker.COMPOSE_RULES,
    # before image_pull: the fixes for one machine don't apply to the nodes of a cluster
    *kubernetes.RULES,
    # their lines are stackgen's own, and the Python stacks below them look like crashes
    *hangs.RULES,
    # a missing name of the user or of a program looks like an error of the engine's own code
    *environment.RULES,
    *surroundings.RULES,
    *image_pull.RULES,
    *compose_files.RULES,
    # before memory: unified memory and AMD are special cases of its messages
    *memory_kinds.RULES,
    *memory.RULES,
    *host_memory.RULES,
    # before gpu: SG-G016 and SG-G006 read the same CDI message, and SG-G016 is the special case
    *gpu_access.RULES,
    *gpu_driver.RULES,
    *gpu_visibility.RULES,
    *gpu.RULES,
    *gpu_image.RULES,
    *toolchain.RULES,
    *gpu_setup.RULES,
    *gpu_kernels.RULES,
    *native_parts.RULES,
    *distributed.RULES,
    # before the engines: SG-V005 and SG-A008 read the same lines
    *model_format.RULES,
    *engine_start.RULES,
    # after gpu: for a GPU index that does not exist, vLLM also prints a line that SG-V006 matches
    *engine_faults.RULES[:-1],
    *vllm.RULES,
    *sglang.RULES,
    *requests.RULES,
    *answers.RULES,
    *fastchat.RULES,
    *llamacpp.RULES,
    *files.RULES,
    *hub_network.RULES,
    *huggingface.RULES,
    *model_names.RULES,
    *connection.RULES,
    *docker.RULES,
    *slow.RULES,
    *refusals.RULES,
    # these read the grammar of any message, so they come after the rules that know one message
    *packages.RULES,
    *sizes.RULES,
    *combinations.RULES,
    *engine_faults.RULES[-1:],
    # after the rules that know a grammar: they know more about their messages
    *engine_messages.RULES,
    *pasted_states.RULES,
    *windows.RULES,
    # these describe a state; if a more specific cause exists, it explains the state
    *llamacpp.LAST_RULES,
    *connection.LAST_RULES,
    *surroundings.LAST_RULES,
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
    return any(pattern.search(line) for one in RULES if "check" in one.inputs for pattern in one.all_patterns)
