"""Packs replicas onto GPUs: the largest first, each where the least is left over (best fit decreasing).

docs/decisions/placement.md compares it with a solver.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stackgen.fit import Gpu
from stackgen.placement.demand import MARGIN
from stackgen.placement.machine import Device

__all__ = ["Item", "Key", "Packing", "pack"]

Key = tuple[int, int]
# each round puts the replicas first for which there was no room
ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Item:
    """A replica: `key` is (model, replica). It needs `count` GPUs of one of `kinds`, and `share` of each.

    `hosts`: the machines that it may run on; empty: any.
    """

    key: Key
    count: int
    share: float
    kinds: frozenset[Gpu]
    hosts: frozenset[str] = frozenset()

    def may_use(self, host: str, gpu: Gpu) -> bool:
        """Whether GPUs of this kind on this machine are possible."""
        return gpu in self.kinds and (not self.hosts or host in self.hosts)


@dataclass(frozen=True, slots=True)
class Packing:
    """The GPUs of each replica, and the replicas for which there was no room."""

    places: Mapping[Key, tuple[Device, ...]]
    left: tuple[Item, ...]


class _Machine:
    """What is free: whole GPUs by machine, island and kind, and the rest of shared ones in hundredths of a percent."""

    def __init__(self, devices: Sequence[Device], blocked: Iterable[str]) -> None:
        closed = set(blocked)
        hosts = {host: number for number, host in enumerate(dict.fromkeys(one.host for one in devices))}
        order = sorted(devices, key=lambda one: (hosts[one.host], one.index))
        self.at = {one: number for number, one in enumerate(order)}
        self.free: dict[tuple[str, str, Gpu], list[Device]] = defaultdict(list)
        for one in order:
            if one.uuid not in closed:
                self.free[one.group].append(one)
        # replicas of each model by machine
        self.replicas: dict[tuple[int, str], int] = defaultdict(int)
        # integers, because binary floats don't add up to 0.95 exactly
        self.rest: dict[Device, int] = {}
        self.users: dict[Device, set[int]] = defaultdict(set)

    def put(self, item: Item, devices: Sequence[Device]) -> None:
        self.replicas[item.key[0], devices[0].host] += 1
        for one in devices:
            group = self.free[one.group]
            if one in group:
                group.remove(one)
                if item.share < 1:
                    self.rest[one] = _units(1 - MARGIN)
            if item.share < 1:
                self.rest[one] -= _units(item.share)
                self.users[one].add(item.key[0])

    def can_put(self, item: Item, devices: Sequence[Device]) -> bool:
        """Whether a recorded place is still possible."""
        if len(devices) != item.count or len({one.group for one in devices}) != 1:
            return False
        shared = item.share < 1
        return item.may_use(devices[0].host, devices[0].gpu) and all(
            one in self.free[one.group] or (shared and self._has_rest(one, item)) for one in devices
        )

    def find(self, item: Item) -> tuple[Device, ...] | None:
        if item.share < 1 and (shared := self._find_shared(item)):
            return shared
        # the smallest kind leaves the others to larger models, replicas on several machines survive the loss of one,
        # and the fullest island leaves the others whole
        groups = [((gpu.memory, self.replicas[item.key[0], host], len(free), self.at[free[0]]), free)
                  for (host, _, gpu), free in self.free.items()
                  if item.may_use(host, gpu) and len(free) >= item.count]  # fmt: skip
        return tuple(min(groups, key=lambda one: one[0])[1][: item.count]) if groups else None

    def _find_shared(self, item: Item) -> tuple[Device, ...] | None:
        """Of the GPUs that other replicas already share, those with the least memory left."""
        groups: dict[tuple[str, str, Gpu], list[Device]] = defaultdict(list)
        for one in self.rest:
            if item.may_use(one.host, one.gpu) and self._has_rest(one, item):
                groups[one.group].append(one)
        chosen = [sorted(group, key=lambda one: (self.rest[one], self.at[one]))[: item.count]
                  for group in groups.values() if len(group) >= item.count]  # fmt: skip
        # in bytes, because the same share of a smaller GPU is less
        return min((tuple(one) for one in chosen), default=None,
                   key=lambda group: sum(self.rest[one] * one.gpu.memory for one in group))  # fmt: skip

    def _has_rest(self, device: Device, item: Item) -> bool:
        # a second replica on the same GPU would fail with the first one
        return self.rest.get(device, 0) >= _units(item.share) and item.key[0] not in self.users[device]


def pack(
    items: Sequence[Item],
    devices: Sequence[Device],
    kept: Mapping[Key, tuple[Device, ...]] | None = None,
    blocked: Iterable[str] = (),
) -> Packing:
    """Places `items` on `devices`. Places in `kept` stay if they are still possible; `blocked` are UUIDs of others."""
    closed, first = tuple(blocked), set[Key]()
    best: Packing | None = None
    for _ in range(ROUNDS):
        found = _pack_once(items, devices, kept or {}, closed, first)
        if best is None or len(found.left) < len(best.left):
            best = found
        if not found.left or {one.key for one in found.left} <= first:
            break
        first |= {one.key for one in found.left}
    return best or Packing({}, ())


def _pack_once(
    items: Sequence[Item],
    devices: Sequence[Device],
    kept: Mapping[Key, tuple[Device, ...]],
    blocked: tuple[str, ...],
    first: set[Key],
) -> Packing:
    machine, places, left = _Machine(devices, blocked), dict[Key, tuple[Device, ...]](), []
    for item in items:
        if item.key in kept and machine.can_put(item, kept[item.key]):
            places[item.key] = kept[item.key]
            machine.put(item, kept[item.key])
    for item in sorted((one for one in items if one.key not in places), key=lambda one: _order(one, first)):
        if found := machine.find(item):
            places[item.key] = found
            machine.put(item, found)
        else:
            left.append(item)
    return Packing(places, tuple(left))


def _order(item: Item, first: set[Key]) -> tuple[object, ...]:
    """First what is hardest to place: many GPUs, few kinds of GPUs, a large share."""
    least = min((gpu.memory for gpu in item.kinds), default=0)
    return (item.key not in first, -item.count, len(item.kinds), -item.share, -least, item.key)


def _units(share: float) -> int:
    return round(share * 10_000)
