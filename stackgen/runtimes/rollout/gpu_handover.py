"""Order a rollout by GPUs: a service can start only after the service that uses its GPU has stopped.

GPUs are compared by the ids they were requested with; "all" overlaps with every id. Only services of engines count:
DCGM's exporter also uses all GPUs, but blocks no service.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from stackgen import engines
from stackgen.plan import Plan, Service

__all__ = [
    "engine_of", "first_replica_of", "gpu_ids", "gpus_overlap", "order_updates", "removals_blocking", "reserved_gpus",
]  # fmt: skip

ALL = "all"
# the prefix of a CDI device name; what follows is the id
CDI_PREFIX = "nvidia.com/gpu="
GpusByService = Mapping[str, frozenset[str]]


def gpu_ids(names: Iterable[str], count: int = 0) -> frozenset[str]:
    """Returns the ids of GPUs requested by name, or by `count` (-1: all). For a count, Docker gives the first ones.

    Source: moby 28.5, daemon/nvidia_linux.go, `countToDevices`.
    """
    if count < 0:
        return frozenset({ALL})
    return frozenset(name.removeprefix(CDI_PREFIX) for name in names) or frozenset(map(str, range(count)))


def reserved_gpus(service: Service) -> frozenset[str]:
    """Returns the ids of the GPUs that the plan reserves for an engine's service; none for other services."""
    return gpu_ids(service.gpus.ids, service.gpus.count) if service.gpus and service.engine else frozenset()


def gpus_overlap(first: frozenset[str], second: frozenset[str]) -> bool:
    """Whether the two sets of GPU ids have a GPU in common."""
    return bool(first & second) or bool(first and second and ALL in first | second)


def removals_blocking(plan: Plan, starting: Iterable[str], removed: Iterable[str], in_use: GpusByService) -> list[str]:
    """Returns the services of `removed` that must stop first, because a service of `starting` needs their GPU."""
    wanted = frozenset(chain.from_iterable(reserved_gpus(plan.service(name)) for name in starting))
    return [name for name in removed if gpus_overlap(wanted, in_use.get(name, frozenset()))]


def order_updates(plan: Plan, names: Sequence[str], in_use: GpusByService) -> list[tuple[str, list[str]]]:
    """Returns the services `names` in the order to update them, each with the services to stop before it.

    A service that takes over a GPU comes after the service that gives it up. Only a cycle needs a service to stop.
    """
    remaining, current, steps = list(names), dict(in_use), []

    def blockers(name: str) -> list[str]:
        # GPUs that the service already uses are not blocked
        new = reserved_gpus(plan.service(name)) - in_use.get(name, frozenset())
        return [other for other in remaining if other != name and gpus_overlap(new, current.get(other, frozenset()))]

    while remaining:
        # if no service is free, the rest is a cycle: the first service breaks the cycle
        name = next((candidate for candidate in remaining if not blockers(candidate)), remaining[0])
        steps.append((name, blockers(name)))
        # a stopped service uses no GPU in the steps that follow
        current |= dict.fromkeys(steps[-1][1], frozenset())
        remaining.remove(name)
    return steps


def engine_of(name: str) -> str:
    """Returns the engine of the service `name`, even if no plan contains that service; "" for other services."""
    return next((engine for engine in engines.names() if name.startswith(f"{engine}-")), "")


def first_replica_of(plan: Plan, name: str) -> str:
    """Returns the first replica in the plan of the model whose further replica was `name`, or ""."""
    # further replicas are named after the first, with -2, -3, …
    first = re.sub(r"-\d+$", "", name)
    return first if first != name and any(service.name == first for service in plan.services) else ""
