"""Turns a stack file into a plan, in stages: place, name, assign ports, check, plan engines, add add-ons.

Each stage takes the values of earlier stages, and returns its own values and the errors that it found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stackgen import engines
from stackgen.catalog import find_parsers
from stackgen.catalog.sizes import packaged_weight_bytes
from stackgen.engines.base import Context, Engine, Part, Replica
from stackgen.errors import Mistake, SpecError
from stackgen.flags import PINNED
from stackgen.images.tags import unpinned_warnings
from stackgen.plan import Asset, Dependency, Endpoint, GpuRequest, GroupNode, Logging, Plan, Service, Site, Volume
from stackgen.resolve.addons import gateway, monitoring, webui
from stackgen.resolve.cluster import (
    count_nodes,
    find_cluster_mistakes,
    find_cluster_warnings,
    find_image_warnings,
    gpus_of_node,
    one_replica,
    with_replicas,
)
from stackgen.resolve.download import HF_TOKEN, download_arguments, download_assets, with_download
from stackgen.resolve.egress import find_unreachable, with_egress
from stackgen.resolve.exposure import find_exposure_warnings
from stackgen.resolve.extras import dollar_warnings, with_extras
from stackgen.resolve.naming import name_services
from stackgen.resolve.placement import find_start_order, find_unplaced, place, sharing_warnings
from stackgen.resolve.ports import assign_ports
from stackgen.resolve.replaced import find_replaced
from stackgen.resolve.unused import find_unused, find_unused_in_cluster
from stackgen.resolve.whole_nodes import find_whole_node_warnings, with_packing
from stackgen.spec import ModelSpec, StackSpec, is_local
from stackgen.spec.types import guess_parameters

__all__ = ["resolve"]

# parameters of 16 bits from which a CPU answers too slowly for a chat: all weights are read from memory for each token
LARGE_ON_CPU = 3e9
# the name of a quantized file contains its bits; Q4_K_M has almost 5 bits for each weight
GGUF_BITS = re.compile(r"(?i)(?<![a-z0-9])i?q([1-8])(?=[_.-])")
# most machines have at most 8 GPUs
USUAL_GPUS = 8
PARSER = re.compile(r"models\[(\d+)\]\.(tool_call_parser|reasoning_parser)")
# in this order, because each add-on uses what earlier ones planned
ADDONS = (gateway, monitoring, webui)
Contexts = Sequence[tuple[Engine, Context]]


def resolve(
    stack: StackSpec,
    site: Site,
    source: str = "stack.yaml",
    remote: Sequence[Endpoint] = (),
    whole: StackSpec | None = None,
    nodes: Mapping[int, GroupNode] | None = None,
) -> Plan:
    """Returns the plan of `stack` at `site`. Raises SpecError with all errors of the stack, not only the first one.

    `remote` are the endpoints on other machines for the gateway, and `whole` is the stack with their models, too.
    `nodes` are this machine's parts of models that several machines compute together, by the model's index.
    """
    # first, because a replica without GPUs would cause further errors
    if unplaced := find_unplaced(stack, site.is_cluster):
        raise SpecError(source, unplaced)
    # a cluster runs the replicas of one service, and chooses the GPUs itself
    planned = one_replica(stack) if site.is_cluster else stack
    # with a gateway, replicas can be added at any time, so GPUs get explicit indices from the start; and a container
    # with AMD's devices sees all GPUs, unless a variable names some
    gpus, overlaps = (
        ({(index, 0): gpus_of_node(model, stack) for index, model in enumerate(stack.models)}, [])
        if site.is_cluster
        else place(stack, explicit=gateway.is_enabled(stack, site) or stack.gpu_driver == "amd")
    )
    names, ambiguities = name_services(planned)
    ports, conflicts = assign_ports(planned, site)
    contexts = _contexts(stack, site, gpus, names, ports, nodes or {})
    # the errors of all stages are raised together, so that one run shows them all
    if mistakes := [*overlaps, *ambiguities, *conflicts, *_find_mistakes(stack, site, contexts, whole or stack)]:
        raise SpecError(source, mistakes)
    replaced, warnings = find_replaced(contexts)
    if replaced:
        raise SpecError(source, replaced)
    parts = [engine.plan(context) for engine, context in contexts]
    waits = {names[key]: sorted(names[other] for other in others) for key, others in find_start_order(gpus).items()}
    plan = _assemble(stack, site, contexts, parts, waits)
    if site.is_cluster:
        models = {names[key]: stack.models[key[0]] for key in names}
        services = [with_replicas(one, models) for one in plan.services]
        plan = replace(plan, services=with_packing(services, models, stack))
    plan = replace(plan, endpoints=(*plan.endpoints, *remote)) if remote else plan
    for addon in ADDONS:
        plan = addon.extend(whole or stack, site, plan)
    plan = with_extras(plan, {names[index, number]: stack.models[index] for index, number in names}, site)
    # last, because NO_PROXY lists all services
    plan = with_egress(stack, site, plan)
    warnings += find_unreachable(stack, site, plan)
    if site.is_cluster:
        warnings += [*find_cluster_warnings(stack), *find_whole_node_warnings(stack)]
        warnings += [*find_image_warnings(plan.services, stack), *find_unused_in_cluster(stack)]
    else:
        warnings += [*sharing_warnings(stack, gpus), *find_unused(stack, site, plan), *dollar_warnings(stack)]
    return replace(plan, warnings=(*plan.warnings, *warnings)) if warnings else plan


def _contexts(
    stack: StackSpec,
    site: Site,
    gpus: Mapping[tuple[int, int], GpuRequest | None],
    names: Mapping[tuple[int, int], str],
    ports: Mapping[tuple[int, int], int],
    groups: Mapping[int, GroupNode],
) -> Contexts:
    """Pairs each engine of the stack with its replicas, in the order of the file."""
    replicas: dict[str, list[Replica]] = {}
    for (index, number), service in names.items():
        model: ModelSpec = stack.models[index]
        request = gpus.get((index, number))
        nodes = count_nodes(model, stack) if site.is_cluster else len(model.host) if index in groups else 1
        count = _gpu_count(request)
        replicas.setdefault(model.engine, []).append(  # type: ignore[attr-defined]
            Replica(
                spec=model,
                service=service,
                index=number,
                gpus=request,
                gpu_count=count * nodes if count else count,
                host_port=ports[index, number],
                path=f"models[{index}]",
                nodes=nodes,
                shared=site.is_cluster,
                node=groups.get(index),
                weight_bytes=0 if is_local(model.model) else packaged_weight_bytes(model.model),
            )
        )
    return [(engines.get(name), Context(stack, site, tuple(members))) for name, members in replicas.items()]


def _gpu_count(request: GpuRequest | None) -> int | None:
    """Number of GPUs of a replica. None for `all`: the number is known only when the engine starts."""
    if request is None:
        return 0
    # the second form is CDI's name for all GPUs
    if request.count == -1 or request.ids[-1:] == ("nvidia.com/gpu=all",):
        return None
    return len(request.ids) or request.count


def _find_mistakes(stack: StackSpec, site: Site, contexts: Contexts, whole: StackSpec) -> list[Mistake]:
    """Collects errors of engines and add-ons; `whole` is the stack with the models on other machines."""
    found = find_cluster_mistakes(stack) if site.is_cluster else []
    found += [_with_parser(one, stack) for engine, context in contexts for one in engine.mistakes(context)]
    return found + [mistake for addon in ADDONS for mistake in addon.mistakes(whole, site)]


def _with_parser(mistake: Mistake, stack: StackSpec) -> Mistake:
    """An error about an unknown parser of vLLM, with the parser that the catalog names for the model.

    A parser with a similar name can be that of other models: Qwen3-8B needs `hermes`, and not `qwen3_xml`.
    """
    place = PARSER.fullmatch(mistake.path)
    model: Any = stack.models[int(place[1])] if place else None
    if place is None or model.engine != "vllm":
        return mistake
    field: Any = place[2]
    facts = find_parsers(field, model.model, model.engine_version or PINNED["vllm"])
    if not facts or any(mistake.hint == f"did you mean {fact.value}?" for fact in facts):
        return mistake
    fact = facts[0]
    hint = f"use {fact.value}, which {fact.origin} names"
    if fact.automatic:
        hint = f"remove the field: vLLM sets {fact.value} itself"
    return replace(mistake, hint=hint)


def _wait_for_shared_gpus(service: Service, waits: Mapping[str, Sequence[str]]) -> Service:
    """Delays the start of `service` until the services that use its GPUs before it are healthy."""
    more = tuple(Dependency(name, "service_healthy") for name in waits.get(service.name, ()))
    return replace(service, depends_on=service.depends_on + more)


def _assemble(
    stack: StackSpec, site: Site, contexts: Contexts, parts: Sequence[Part], waits: Mapping[str, Sequence[str]]
) -> Plan:
    """Combines the engines' parts into one plan, with a download service if weights come from the Hub.

    `waits` maps a service to the services whose GPUs it shares and which start before it.
    """
    services = [_wait_for_shared_gpus(service, waits) for part in parts for service in part.services]
    assets = [asset for part in parts for asset in part.assets]
    # offline: the storage must already have all weights
    arguments = () if stack.storage.offline else download_arguments(contexts)
    if arguments:
        services = with_download(services, contexts, arguments)
        assets += download_assets(services[0])
        names = ["download.py", "store_owner.py", *(["vocabulary.py"] if "--vocabulary" in arguments else [])]
        assets += (Asset(f"images/common/{name}", f"scripts/{name}") for name in names)
    log = Logging(stack.logging.max_size, stack.logging.max_file)
    # Compose would create volumes that no service mounts
    used = {mount.name for service in services for mount in service.mounts if isinstance(mount, Volume)}
    volumes = [("models", stack.storage.volume), *(volume for part in parts for volume in part.volumes)]
    shared = tuple(dict.fromkeys(volume for volume in volumes if volume[0] in used))
    return Plan(
        name=stack.name,
        services=tuple(replace(service, logging=log) for service in services),
        endpoints=tuple(replace(endpoint, exposed=stack.exposed) for part in parts for endpoint in part.endpoints),
        volumes=shared,
        # weights and compile caches outlive every stack: see docs/decisions/storage.md
        shared_volumes=tuple(name for _, name in shared),
        networks=tuple(network for part in parts for network in part.networks),
        # only the download service gets the token: the engines run offline (docs/decisions/storage.md)
        secrets=(("hf_token", HF_TOKEN),) if arguments else (),
        # engines share scripts such as supervise.sh
        assets=tuple(sorted(set(assets), key=lambda asset: asset.path)),
        warnings=(*_warnings(stack, site, parts), *(warning for part in parts for warning in part.warnings)),
    )


def _warnings(stack: StackSpec, site: Site, parts: Sequence[Part]) -> list[str]:
    warnings = find_exposure_warnings(stack, site, [one for part in parts for one in part.endpoints])
    for index, model in enumerate(stack.models):
        is_split = site.is_cluster or getattr(model, "split_hosts", False)
        if not is_split and type(model.gpus) is int and model.gpus > USUAL_GPUS:
            warnings.append(
                f"models[{index}].gpus: all {model.gpus} GPUs of a replica must be in one machine. To use several "
                "machines, set `target: kubernetes`, or `hosts` and `split_hosts`"
            )
        named = [(model.model, model.revision)]
        named += [(lora.path, lora.revision) for lora in getattr(model, "lora_adapters", ())]
        warnings += [
            f"{name} has no revision. Pin a commit, so that all machines serve the same weights"
            for name, revision in named
            if not is_local(name) and not revision
        ]
        warnings += unpinned_warnings(model.image)
        size = guess_parameters(model.model) or 0
        bits = GGUF_BITS.search(f"{getattr(model, 'file', None) or model.model}.")
        if model.gpus == 0 and size * (min(16, int(bits[1]) + 1) if bits else 16) / 16 >= LARGE_ON_CPU:
            warnings.append(
                f"{model.model} has about {size / 1e9:g} billion parameters and runs on the CPU, with a few tokens per "
                "second. To use a GPU, set `gpus: 1` (a count) or `gpus: [0]` (indices)"
            )
    return warnings
