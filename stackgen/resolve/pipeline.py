"""Turns a stack file into a plan, in stages: place, name, assign ports, check, plan engines, add add-ons.

Each stage takes the values of earlier stages, and returns its own values and the errors that it found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stackgen import engines
from stackgen.engines.base import Context, Engine, Part, Replica
from stackgen.errors import Mistake, SpecError
from stackgen.images.tags import unpinned_warnings
from stackgen.plan import Asset, GpuRequest, Logging, Plan, Site, Volume
from stackgen.resolve.addons import gateway, monitoring, webui
from stackgen.resolve.download import HF_TOKEN, download_arguments, with_download
from stackgen.resolve.naming import name_services
from stackgen.resolve.placement import place
from stackgen.resolve.ports import assign_ports
from stackgen.spec import ModelSpec, StackSpec, is_local

__all__ = ["resolve"]

# in this order, because each add-on uses what earlier ones planned
ADDONS = (gateway, monitoring, webui)
Contexts = Sequence[tuple[Engine, Context]]


def resolve(stack: StackSpec, site: Site, source: str = "stack.yaml") -> Plan:
    """Returns the plan of `stack` at `site`. Raises SpecError with all errors of the stack, not only the first one."""
    # with a gateway, replicas can be added at any time, so GPUs get explicit indices from the start
    gpus, overlaps = place(stack, explicit=gateway.is_enabled(stack, site))
    names, ambiguities = name_services(stack)
    ports, conflicts = assign_ports(stack, site)
    contexts = _contexts(stack, site, gpus, names, ports)
    # the errors of all stages are raised together, so that one run shows them all
    if mistakes := [*overlaps, *ambiguities, *conflicts, *_find_mistakes(stack, site, contexts)]:
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
    """Pairs each engine of the stack with its replicas, in the order of the file."""
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
    """Number of GPUs of a replica. None for `all`: the number is known only when the engine starts."""
    if request is None:
        return 0
    # the second form is CDI's name for all GPUs
    if request.count == -1 or request.ids[-1:] == ("nvidia.com/gpu=all",):
        return None
    return len(request.ids) or request.count


def _find_mistakes(stack: StackSpec, site: Site, contexts: Contexts) -> list[Mistake]:
    """Collects errors of engines and add-ons."""
    found = [mistake for engine, context in contexts for mistake in engine.mistakes(context)]
    return found + [mistake for addon in ADDONS for mistake in addon.mistakes(stack, site)]


def _assemble(stack: StackSpec, site: Site, contexts: Contexts, parts: Sequence[Part]) -> Plan:
    """Combines the engines' parts into one plan, with a download service if weights come from the Hub."""
    services = [service for part in parts for service in part.services]
    assets = [asset for part in parts for asset in part.assets]
    # offline: the storage must already have all weights
    arguments = () if stack.storage.offline else download_arguments(contexts)
    if arguments:
        services = with_download(services, contexts, arguments)
        assets.append(Asset("images/common/download.py", "scripts/download.py"))
    log = Logging(stack.logging.max_size, stack.logging.max_file)
    # Compose would create volumes that no service mounts
    used = {mount.name for service in services for mount in service.mounts if isinstance(mount, Volume)}
    volumes = [("models", stack.storage.volume), *(volume for part in parts for volume in part.volumes)]
    return Plan(
        name=stack.name,
        services=tuple(replace(service, logging=log) for service in services),
        endpoints=tuple(replace(endpoint, exposed=stack.exposed) for part in parts for endpoint in part.endpoints),
        volumes=tuple(dict.fromkeys(volume for volume in volumes if volume[0] in used)),
        networks=tuple(network for part in parts for network in part.networks),
        secrets=(("hf_token", HF_TOKEN),) if arguments else (),
        # engines share scripts such as supervise.sh
        assets=tuple(sorted(set(assets), key=lambda asset: asset.path)),
        warnings=(*_warnings(stack, site), *(warning for part in parts for warning in part.warnings)),
    )


def _warnings(stack: StackSpec, site: Site) -> list[str]:
    warnings = []
    if stack.exposed and not gateway.is_enabled(stack, site):
        warnings.append(
            f"ports are open on {stack.bind}, but the engines require the key for /v1 only; other paths answer without "
            "a key. Set gateway: true, or put your own proxy with an allow-list of paths in front of the engines"
        )
    for model in stack.models:
        if not is_local(model.model) and not model.revision:
            warnings.append(f"{model.model} has no revision. Pin a commit, so that all machines serve the same weights")
        warnings += unpinned_warnings(model.image)
    return warnings
