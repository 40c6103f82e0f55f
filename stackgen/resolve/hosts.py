"""A stack on several machines: each runs its own stack, and the first one's gateway sends requests to the others.

The engines of a machine are behind its own gateway, which checks the key and the path. So no engine is reachable from
the network, whatever it answers without a key (docs/decisions/hosts.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from stackgen.errors import Mistake, SpecError
from stackgen.plan import Endpoint, GroupNode, Plan, Remote, Site
from stackgen.resolve import pipeline
from stackgen.resolve.addons.backends import Gateway
from stackgen.resolve.host_mistakes import find_host_mistakes, hosts_of, is_split
from stackgen.resolve.placement import find_unplaced
from stackgen.spec import GatewaySpec, StackSpec

__all__ = ["resolve", "stack_of_host"]

# settings of the gateway that also count on the other machines; clients' keys and TLS are the first one's
SHARED = ("allow", "max_body", "timeout", "routing", "prefix_bytes", "max_queue", "queue_timeout", "image")


# the default of vLLM's `--master-port`: of the first model on several machines; others get the next ports
FIRST_PORT = 29501


def resolve(stack: StackSpec, site: Site, source: str = "stack.yaml") -> Plan:
    """Returns the plan of `stack` at `site`: with `hosts`, that of its machine `host`. Raises SpecError."""
    # without a place, it is unknown which machine runs the model
    unplaced = find_unplaced(stack, is_cluster=False) if stack.hosts and not site.is_cluster else []
    if mistakes := unplaced or find_host_mistakes(stack, site):
        raise SpecError(source, mistakes)
    if not stack.hosts:
        return pipeline.resolve(stack, site, source)
    if not stack.host:
        hint = f"`stackgen render` writes a folder for each of {', '.join(stack.hosts)}"
        raise SpecError(source, [Mistake("hosts", "this stack runs on several machines", hint=hint)])
    if stack.is_behind_front:
        return _resolve_part(stack, stack.host, site, source)
    remote = [one for host in stack.hosts if host != stack.front for one in _find_remote(stack, host, site, source)]
    plan = _resolve_part(stack, stack.front, site, source, remote)
    # HAProxy has replicas and hosts side by side
    if taken := sorted({one.name for one in plan.services} & set(stack.hosts)):
        what, hint = "is also the name of a service", "rename the host"
        raise SpecError(source, [Mistake(f"hosts.{name}", what, hint=hint) for name in taken])
    return plan


def stack_of_host(stack: StackSpec, host: str) -> StackSpec:
    """The part of `stack` that the machine `host` runs."""
    here = stack.hosts[host]
    changes: dict[str, object] = {
        "host": host,
        "models": tuple(one for one in stack.models if host in hosts_of(one, stack)),
        "gpu_driver": here.gpu_driver or stack.gpu_driver,
        "cpu_arch": here.cpu_arch or stack.cpu_arch,
    }
    if here.storage_path:
        changes["storage"] = stack.storage.model_copy(update={"path": here.storage_path})
    gateway = stack.gateway or GatewaySpec()
    if host != stack.front:
        changes |= {
            "bind": here.address,
            "port": here.port or stack.port,
            "gateway": GatewaySpec(**{name: getattr(gateway, name) for name in SHARED}),
            "ui": None,
            "endpoints": (),
            "models": tuple(one.model_copy(update={"fallback": None}) for one in changes["models"]),  # type: ignore[attr-defined]
        }
    return stack.model_copy(update=changes)


def _resolve_part(stack: StackSpec, host: str, site: Site, source: str, remote: Sequence[Endpoint] = ()) -> Plan:
    """The plan of one machine. Errors name the models as the file does."""
    part = stack_of_host(stack, host)
    elsewhere = [one for one in stack.models if remote and host not in hosts_of(one, stack)]
    # a router is next to its replicas
    others = [
        one.model_copy(update={"cache_aware": False}) if hasattr(one, "cache_aware") else one for one in elsewhere
    ]
    whole = part.model_copy(update={"models": (*part.models, *others)})
    try:
        return pipeline.resolve(part, site, source, remote, whole, _nodes(stack, host))
    except SpecError as error:
        order = [one for one in stack.models if host in hosts_of(one, stack)] + elsewhere
        places = [next(index for index, one in enumerate(stack.models) if one is model) for model in order]
        raise SpecError(error.source, [_restore_place(one, places) for one in error.mistakes]) from None


def _nodes(stack: StackSpec, host: str) -> dict[int, GroupNode]:
    """The part of the machine `host` in models that several machines compute together, by the index on `host`."""
    found, port = {}, FIRST_PORT
    here = [one for one in stack.models if host in hosts_of(one, stack)]
    for model in filter(is_split, stack.models):
        # an equal model may be twice in the file
        index = next((place for place, one in enumerate(here) if one is model), None)
        if index is not None:
            addresses = [stack.hosts[one].address or "" for one in model.host]
            rank = model.host.index(host)
            found[index] = GroupNode(str(rank), addresses[rank], addresses[0], port, port + 1)
        # the machines agree about the ports, whatever else they run
        port += 2
    return found


def _restore_place(mistake: Mistake, places: Sequence[int]) -> Mistake:
    def restore(found: re.Match[str]) -> str:
        return f"models[{places[int(found[1])]}]"

    path, text, hint = (
        re.sub(r"models\[(\d+)\]", restore, one) for one in (mistake.path, mistake.message, mistake.hint)
    )
    return replace(mistake, path=path, message=text, hint=hint)


def _find_remote(stack: StackSpec, host: str, site: Site, source: str) -> list[Endpoint]:
    """The endpoints that the gateway of the machine `host` offers to the first machine."""
    here, plan = stack.hosts[host], _resolve_part(stack, host, site, source)
    data = [one.data for one in plan.documents if isinstance(one.data, Gateway)]
    backends = {backend.names: backend for backend in (data[0].backends if data else ())}
    return [
        replace(
            endpoint,
            service=host,
            workers=(),
            replicas=(),
            max_concurrent_requests=backends[endpoint.models].max_concurrent_requests,
            remote=Remote(
                host, here.address or "", here.port or stack.port, backends[endpoint.models].engine,
                backends[endpoint.models].replicas,
            ),
        )
        for endpoint in plan.endpoints
    ]  # fmt: skip
