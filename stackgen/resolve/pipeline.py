"""From what the user wrote to what will run, in stages: place, name, assign ports, check, plan engines, add add-ons.

Each stage takes the values of the ones before it and returns its own, with the mistakes that it found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stackgen import engines
from stackgen.engines.base import Context, Engine, Part, Replica
from stackgen.errors import Mistake, SpecError
from stackgen.images.tags import unpinned
from stackgen.plan import Asset, GpuRequest, Logging, Plan, Site, Volume
from stackgen.resolve.addons import gateway, monitoring, webui
from stackgen.resolve.download import HF_TOKEN, downloads, with_download
from stackgen.resolve.naming import name_services
from stackgen.resolve.placement import place
from stackgen.resolve.ports import assign_ports
from stackgen.spec import ModelSpec, StackSpec, is_local

__all__ = ["resolve"]

# each builds on what those before it planned
ADDONS = (gateway, monitoring, webui)
Contexts = Sequence[tuple[Engine, Context]]


def resolve(stack: StackSpec, site: Site, source: str = "stack.yaml") -> Plan:
    """The plan of `stack` at `site`. Raises SpecError with every mistake of the whole stack, not only the first."""
    gpus, overlaps = place(stack, explicit=gateway.wanted(stack, site))
    names, ambiguities = name_services(stack)
    ports, clashes = assign_ports(stack, site)
    contexts = _contexts(stack, site, gpus, names, ports)
    if mistakes := [*overlaps, *ambiguities, *clashes, *_mistakes(stack, site, contexts)]:
        raise SpecError(source, mistakes)
    parts = [engine.plan(context) for engine, context in contexts]
    plan = _assemble(stack, site, contexts, parts)
    for addon in ADDONS:
        plan = addon.extend(stack, site, plan)
    return plan


def _contexts(
    stack: StackSpec,
    site: Site,
    gpus: Mapping[tuple[int, int], GpuRequest | None],
    names: Mapping[tuple[int, int], str],
    ports: Mapping[tuple[int, int], int],
) -> Contexts:
    """Each engine of the stack with the replicas that it plans, in the order of the file."""
    replicas: dict[str, list[Replica]] = {}
    for (index, number), service in names.items():
        model: ModelSpec = stack.models[index]
        request = gpus.get((index, number))
        replicas.setdefault(model.engine, []).append(  # type: ignore[attr-defined]
            Replica(
                spec=model,
                service=service,
                index=number,
                gpus=request,
                gpu_count=_gpu_count(request),
                host_port=ports[index, number],
                path=f"models[{index}]",
            )
        )
    return [(engines.get(name), Context(stack, site, tuple(members))) for name, members in replicas.items()]


def _gpu_count(request: GpuRequest | None) -> int | None:
    """How many GPUs a replica has; None for all of them, whose number is known only when it starts."""
    if request is None:
        return 0
    if request.count == -1 or request.ids[-1:] == ("nvidia.com/gpu=all",):
        return None
    return len(request.ids) or request.count


def _mistakes(stack: StackSpec, site: Site, contexts: Contexts) -> list[Mistake]:
    """What engines and add-ons can't plan."""
    found = [mistake for engine, context in contexts for mistake in engine.mistakes(context)]
    return found + [mistake for addon in ADDONS for mistake in addon.mistakes(stack, site)]


def _assemble(stack: StackSpec, site: Site, contexts: Contexts, parts: Sequence[Part]) -> Plan:
    """One plan of the engines' parts, with the download service where weights come from the Hub."""
    services = [service for part in parts for service in part.services]
    assets = [asset for part in parts for asset in part.assets]
    arguments = () if stack.storage.offline else downloads(contexts)
    if arguments:
        services = with_download(services, contexts, arguments)
        assets.append(Asset("images/common/download.py", "scripts/download.py"))
    log = Logging(stack.logging.max_size, stack.logging.max_file)
    used = {mount.name for service in services for mount in service.mounts if isinstance(mount, Volume)}
    volumes = [("models", stack.storage.volume), *(volume for part in parts for volume in part.volumes)]
    return Plan(
        name=stack.name,
        services=tuple(replace(service, logging=log) for service in services),
        endpoints=tuple(replace(endpoint, exposed=stack.exposed) for part in parts for endpoint in part.endpoints),
        volumes=tuple(dict.fromkeys(volume for volume in volumes if volume[0] in used)),
        networks=tuple(network for part in parts for network in part.networks),
        secrets=(("hf_token", HF_TOKEN),) if arguments else (),
        assets=tuple(sorted(set(assets), key=lambda asset: asset.path)),
        warnings=(*_warnings(stack, site), *(warning for part in parts for warning in part.warnings)),
    )


def _warnings(stack: StackSpec, site: Site) -> list[str]:
    warnings = []
    if stack.exposed and not gateway.wanted(stack, site):
        warnings.append(
            f"ports are open on {stack.bind}; the key guards /v1 only, other paths answer without one: "
            "let the gateway stand before them (gateway: true), or a proxy of your own with an allow-list of paths"
        )
    for model in stack.models:
        if not is_local(model.model) and not model.revision:
            warnings.append(
                f"{model.model} has no revision: a commit keeps two machines from serving different weights"
            )
        warnings += unpinned(model.image)
    return warnings
