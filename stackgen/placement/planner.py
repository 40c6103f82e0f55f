"""Chooses the number of GPUs of each model, packs all replicas, and explains each place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stackgen.fit import Gpu
from stackgen.placement.demand import MARGIN, Demand
from stackgen.placement.machine import WHOLE, Device
from stackgen.placement.pack import Item, Key, pack

__all__ = ["Place", "Plan", "plan_places"]

# each attempt gives one model without room more and smaller GPUs
ATTEMPTS = 16


@dataclass(frozen=True, slots=True)
class Place:
    """The GPUs of one replica, and why: `is_kept` if they were recorded before. () if there is no room."""

    demand: Demand
    replica: int
    devices: tuple[Device, ...]
    why: str
    others: tuple[str, ...]
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """All places. `moving_helps`: there is room for all if recorded places are given up.

    `blocked`: the GPUs that were not available, by UUID, and who has each.
    """

    devices: tuple[Device, ...]
    places: tuple[Place, ...]
    blocked: Mapping[str, str]
    moving_helps: bool = False

    @property
    def is_complete(self) -> bool:
        return all(one.devices for one in self.places)


def plan_places(
    demands: Sequence[Demand],
    devices: Sequence[Device],
    kept: Mapping[Key, tuple[Device, ...]] | None = None,
    blocked: Mapping[str, str] | None = None,
) -> Plan:
    """Places all replicas of `demands`. `blocked`: who has a GPU already, by UUID. The result is deterministic."""
    closed, kept = blocked or {}, kept or {}
    places = _search(demands, devices, kept, closed)
    missing = any(len(places.get((one.index, number), ())) == 0 for one in demands for number in range(one.replicas))
    helps = False
    if missing and kept:
        again = _search(demands, devices, {}, closed)
        helps = all(again.get((one.index, number)) for one in demands for number in range(one.replicas))
    found = [_explain(one, number, places, devices, kept, closed) for one in demands for number in range(one.replicas)]
    return Plan(tuple(devices), tuple(found), closed, helps)


def _search(
    demands: Sequence[Demand],
    devices: Sequence[Device],
    kept: Mapping[Key, tuple[Device, ...]],
    blocked: Iterable[str],
) -> dict[Key, tuple[Device, ...]]:
    # replicas of a model have the same number of GPUs: `gpus` is divided evenly among them
    counts = {one.index: _first_count(one, kept) for one in demands}
    best: dict[Key, tuple[Device, ...]] = {}
    for _ in range(ATTEMPTS):
        items = [_item(one, number, counts[one.index]) for one in demands if counts[one.index]
                 for number in range(one.replicas)]  # fmt: skip
        found = pack(items, devices, kept, blocked)
        if len(found.places) > len(best):
            best = dict(found.places)
        failed = {item.key[0] for item in found.left}
        larger = [(one.index, min(count for count in one.counts() if count > counts[one.index])) for one in demands
                  if one.index in failed and any(count > counts[one.index] for count in one.counts())]  # fmt: skip
        if not larger:
            break
        counts[larger[0][0]] = larger[0][1]
    return best


def _first_count(demand: Demand, kept: Mapping[Key, tuple[Device, ...]]) -> int:
    recorded = len(kept.get((demand.index, 0), ()))
    possible = demand.counts()
    return recorded if recorded in possible else next(iter(possible), 0)


def _item(demand: Demand, replica: int, count: int) -> Item:
    kinds = frozenset(one.gpu for one in demand.options if one.count == count)
    hosts = frozenset({demand.host_of(replica)} - {""})
    return Item((demand.index, replica), count, demand.share, kinds, hosts)


def _explain(
    demand: Demand,
    replica: int,
    places: Mapping[Key, tuple[Device, ...]],
    devices: Sequence[Device],
    kept: Mapping[Key, tuple[Device, ...]],
    blocked: Mapping[str, str],
) -> Place:
    key = (demand.index, replica)
    chosen = places.get(key, ())
    count = len(chosen)
    used = {one.uuid for each in places.values() for one in each} | set(blocked)
    host = demand.host_of(replica)
    possible = [one for one in devices if host in ("", one.host)]
    kinds = sorted({one.gpu for one in possible}, key=lambda gpu: (gpu.memory, gpu.name))
    others = tuple(f"{gpu.name}: {_why_not(demand, gpu, chosen, possible, used)}" for gpu in kinds
                   if not chosen or gpu != chosen[0].gpu)  # fmt: skip
    if not chosen:
        return Place(demand, replica, (), "no room", others)
    fewer = {count: text for (gpu, count), text in demand.refused.items() if gpu == chosen[0].gpu}
    if fewer and max(fewer) < count:
        most = max(fewer)
        others = (f"{most} GPU{'s' * (most > 1)} of {chosen[0].gpu.name} instead of {count}: {fewer[most]}", *others)
    [option] = [one for one in demand.options if one.gpu == chosen[0].gpu and one.count == count]
    why = [option.text + (" on each GPU" if count > 1 else "")]
    if count > 1:
        why.append("no NVLink: over PCIe" if chosen[0].island == WHOLE else f"in the island {chosen[0].island}")
    if host:
        why.append(f"`host: {host}`")
    if demand.share < 1:
        why.append(f"takes {demand.share:.0%} of the GPU; {MARGIN:.0%} of a shared GPU stay free")
    is_kept = kept.get(key) == chosen
    if is_kept:
        why.append("recorded before")
    elif gone := [one for one in kept.get(key, ()) if one.uuid in blocked]:
        why.append(f"moved, because {gone[0].label}, recorded before, is used by {blocked[gone[0].uuid]}")
    return Place(demand, replica, chosen, "; ".join(why), others, is_kept)


def _why_not(demand: Demand, gpu: Gpu, chosen: Sequence[Device], devices: Sequence[Device], used: Iterable[str]) -> str:
    fitting = [one.count for one in demand.options if one.gpu == gpu]
    if not fitting:
        # with the most GPUs that the machine has, because more would be the next idea
        refused = {count: text for (kind, count), text in demand.refused.items() if kind == gpu}
        total = sum(one.gpu == gpu for one in devices)
        count = max((one for one in refused if one <= total), default=min(refused))
        # and with the fewest, which may lack less memory than the user thinks
        return "; ".join(f"with {one} GPU{'s' * (one > 1)}: {refused[one]}" for one in sorted({min(refused), count}))
    taken = set(used)
    free: dict[tuple[str, str, Gpu], int] = {}
    for one in devices:
        if one.gpu == gpu and one.uuid not in taken:
            free[one.group] = free.get(one.group, 0) + 1
    most, least = max(free.values(), default=0), min(fitting)
    if most < least:
        if least == 1:
            return "all GPUs are taken"
        # the reason is why fewer are not enough
        fewer = "".join(f"; with {count}: {text}" for (kind, count), text in sorted(
            demand.refused.items(), key=lambda one: one[0][1]) if kind == gpu and count < least)  # fmt: skip
        return f"{least} needed in one island, {most} free{fewer}"
    if not chosen:
        return f"each replica needs {least}, and stackgen found no plan with {least} each that places more replicas"
    if least > len(chosen):
        return f"needs {least} GPUs instead of {len(chosen)}"
    return "fits too, but stays free for larger models" if gpu.memory > chosen[0].gpu.memory else "fits too"
