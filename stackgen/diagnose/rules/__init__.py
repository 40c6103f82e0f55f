"""The rules, from specific to general. The first rule that applies is the cause."""

from __future__ import annotations

from stackgen.diagnose.rule import Rule
from stackgen.diagnose.rules import (
    admission,
    answers,
    architectures,
    between_ranks,
    client_connections,
    client_errors,
    clients,
    combinations,
    compose_files,
    connection,
    context_length,
    cuda_libraries,
    databases,
    device_plugins,
    distributed,
    docker,
    engine_faults,
    engine_messages,
    engine_start,
    environment,
    envoy,
    evictions,
    fastchat,
    files,
    gpu,
    gpu_access,
    gpu_driver,
    gpu_image,
    gpu_kernels,
    gpu_platform,
    gpu_reservations,
    gpu_setup,
    gpu_visibility,
    hangs,
    health_checks,
    helm,
    host_lines,
    host_memory,
    host_setup,
    hub_network,
    huggingface,
    image_pull,
    kubernetes,
    kubernetes_events,
    llamacpp,
    llamacpp_checks,
    llamacpp_router,
    lmcache,
    memory,
    memory_kinds,
    model_code,
    model_format,
    model_names,
    model_runner,
    monitoring,
    native_parts,
    packages,
    pasted_states,
    podman_cdi,
    probes,
    proxies,
    proxy_starts,
    proxy_variables,
    refusals,
    request_forms,
    requested_paths,
    requests,
    sglang,
    sizes,
    slow,
    streams,
    surroundings,
    toolchain,
    toolkit_hooks,
    vllm,
    volumes,
    weights,
    windows,
)

__all__ = ["RULES", "get_rule", "has_check_rule"]

RULES: tuple[Rule, ...] = (
    # rules for Compose come before rules for logs: if Compose fails, no service has run
    *docker.COMPOSE_RULES,
    # before image_pull: the fixes for one machine don't apply to the nodes of a cluster
    *admission.RULES,
    *helm.RULES,
    *device_plugins.RULES,
    *volumes.RULES,
    *evictions.RULES,
    *kubernetes.RULES,
    *probes.RULES,
    *kubernetes_events.RULES,
    # their lines are stackgen's own, and the Python stacks below them look like crashes
    *hangs.RULES,
    # a missing name of the user or of a program looks like an error of the engine's own code
    *environment.RULES,
    *surroundings.RULES,
    *proxies.RULES,
    *proxy_variables.RULES,
    *proxy_starts.RULES,
    *clients.RULES,
    *client_connections.RULES,
    *client_errors.RULES,
    *requested_paths.RULES,
    *request_forms.RULES,
    *envoy.RULES,
    *streams.RULES,
    *databases.RULES,
    *monitoring.RULES,
    *host_setup.RULES,
    *host_lines.RULES,
    # before image_pull: an image for a test is often pulled after the failure
    *model_runner.RULES,
    *image_pull.RULES,
    *compose_files.RULES,
    # before cuda_libraries and gpu_driver: their messages have another cause below torch's symmetric memory
    *between_ranks.RULES,
    # before memory: unified memory and AMD are special cases of its messages
    *memory_kinds.RULES,
    *memory.RULES,
    *host_memory.RULES,
    # before gpu: SG-G016 and SG-G006 read the same CDI message, and SG-G016 is the special case
    *gpu_access.RULES,
    *podman_cdi.RULES,
    *gpu_driver.RULES,
    *toolkit_hooks.RULES,
    # before gpu_visibility: a reservation that Podman ignored explains the missing driver
    *gpu_reservations.RULES,
    *gpu_platform.RULES,
    *gpu_visibility.RULES,
    *gpu.RULES,
    *gpu_image.RULES,
    *toolchain.RULES,
    *cuda_libraries.RULES,
    *gpu_setup.RULES,
    *gpu_kernels.RULES,
    *native_parts.RULES,
    *distributed.RULES,
    # before sizes: LMCache's buffers are not the model's
    *lmcache.RULES,
    # before the engines: SG-V005 and SG-A008 read the same lines
    *model_code.RULES,
    *model_format.RULES,
    *weights.RULES,
    *engine_start.RULES,
    # after gpu: for a GPU index that does not exist, vLLM also prints a line that SG-V006 matches
    *engine_faults.RULES[:-1],
    *vllm.RULES,
    *architectures.RULES,
    *sglang.RULES,
    *requests.RULES,
    *context_length.RULES,
    *answers.RULES,
    *fastchat.RULES,
    *llamacpp_checks.RULES,
    *llamacpp_router.RULES,
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
    *health_checks.RULES,
    *windows.RULES,
    # these describe a state; if a more specific cause exists, it explains the state
    *llamacpp.LAST_RULES,
    *connection.LAST_RULES,
    *llamacpp_checks.LAST_RULES,
    *surroundings.LAST_RULES,
    *pasted_states.LAST_RULES,
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
