"""Which nodes of a cluster have room for which pods: the best places, and those that a scheduler may choose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stackgen.doctor.cluster_facts import Node
from stackgen.kubernetes.rules.resources import parse_quantity

__all__ = ["fits", "place"]


def fits(node: Node, pod: Mapping[str, Any]) -> bool:
    """Whether the scheduler may choose `node` for `pod`: state, labels and taints."""
    if not node.is_usable or any(node.labels.get(key) != value for key, value in pod.get("nodeSelector", {}).items()):
        return False
    return all(
        effect == "PreferNoSchedule" or any(_tolerates(one, key, value, effect) for one in pod.get("tolerations", ()))
        for key, value, effect in node.taints
    )


def _tolerates(one: Mapping[str, str], key: str, value: str, effect: str) -> bool:
    is_same = one.get("operator") == "Exists" or one.get("value", "") == value
    return one.get("key", key) == key and is_same and one.get("effect", effect) == effect


def place(
    pods: Sequence[tuple[str, int, Mapping[str, Any]]], nodes: Sequence[Node], resource: str, spread: bool = False
) -> Counter[str]:
    """Puts pods on nodes, and returns how many of each workload found none. `pods`: name, number of GPUs, and pod.

    The largest pods are first, each on the first node with room for it: the best that a scheduler can do. With
    `spread`, the smallest are first, each on the emptiest node, as schedulers prefer.
    """
    free = {
        node.name: int(parse_quantity(node.allocatable.get(resource, "0")) or 0) - (node.used or {}).get(resource, 0)
        for node in nodes
    }
    unplaced: Counter[str] = Counter()
    for name, amount, pod in sorted(pods, key=lambda one: one[1] if spread else -one[1]):
        room = [node.name for node in nodes if free[node.name] >= amount and fits(node, pod)]
        if not room:
            unplaced[name] += 1
            continue
        free[max(room, key=lambda one: free[one]) if spread else room[0]] -= amount
    return unplaced
