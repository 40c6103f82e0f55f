"""Who must go before whom: services that get a GPU which another one still holds.

GPUs are compared by the ids that they go by; "all" meets every one. Only services of engines count: DCGM's exporter
holds all GPUs as well, and is in nobody's way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from stackgen import engines
from stackgen.plan import Plan, Service

__all__ = ["claimed", "clash", "early", "engine_of", "gpu_ids", "replica_of", "turns"]

ALL = "all"
CDI = "nvidia.com/gpu="
Held = Mapping[str, frozenset[str]]


def gpu_ids(named: Iterable[str], count: int = 0) -> frozenset[str]:
    """GPUs that were asked for by name, or by a count, for which Docker gives the first ones (-1: all).

    Source: moby 28.5, daemon/nvidia_linux.go, `countToDevices`.
    """
    if count < 0:
        return frozenset({ALL})
    return frozenset(one.removeprefix(CDI) for one in named) or frozenset(map(str, range(count)))


def claimed(service: Service) -> frozenset[str]:
    """The GPUs that a service of the plan gets for its engine."""
    return gpu_ids(service.gpus.ids, service.gpus.count) if service.gpus and service.engine else frozenset()


def clash(some: frozenset[str], others: frozenset[str]) -> bool:
    """Whether a GPU is in both."""
    return bool(some & others) or bool(some and others and ALL in some | others)


def early(plan: Plan, starting: Iterable[str], removed: Iterable[str], held: Held) -> list[str]:
    """Those of `removed` that hold a GPU which one of `starting` gets: they must be gone before."""
    wanted = frozenset(chain.from_iterable(claimed(plan.service(name)) for name in starting))
    return [name for name in removed if clash(wanted, held.get(name, frozenset()))]


def turns(plan: Plan, names: Sequence[str], held: Held) -> list[tuple[str, list[str]]]:
    """The order in which services that run are made anew, each with those that must be stopped before it.

    One that gets a GPU of another comes after it; only where they go round in a circle somebody has to be stopped.
    """
    rest, holding, found = list(names), dict(held), []

    def before(name: str) -> list[str]:
        new = claimed(plan.service(name)) - held.get(name, frozenset())
        return [one for one in rest if one != name and clash(new, holding.get(one, frozenset()))]

    while rest:
        name = next((one for one in rest if not before(one)), rest[0])
        found.append((name, before(name)))
        holding |= dict.fromkeys(found[-1][1], frozenset())
        rest.remove(name)
    return found


def engine_of(name: str) -> str:
    """The engine whose service is called `name`, which may stand in no plan any more; "" where it is none's."""
    return next((engine for engine in engines.names() if name.startswith(f"{engine}-")), "")


def replica_of(plan: Plan, name: str) -> str:
    """The first replica of the model whose further replica `name` was; "" where the plan has none."""
    first = re.sub(r"-\d+$", "", name)
    return first if first != name and any(one.name == first for one in plan.services) else ""
