"""Models of a cluster that need whole nodes, and models whose pods may occupy a part of every node.

A scheduler places each pod alone. Two replicas with 4 GPUs on two nodes of 8 GPUs leave 8 GPUs free, but no whole node
(docs/decisions/kubernetes.md, "Whole nodes").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stackgen.plan import Service
from stackgen.resolve.cluster import count_gpus, count_nodes, gpus_of_node
from stackgen.spec import ModelSpec, StackSpec
from stackgen.spec.cluster import KubernetesSpec

__all__ = ["find_whole_node_warnings", "with_packing"]

_Selector = frozenset[tuple[str, str]]
WHERE = "docs/how-to/run-on-kubernetes.md"


def find_whole_node_warnings(stack: StackSpec) -> list[str]:
    """Warns of each model that needs whole nodes, which pods of other models may occupy in part."""
    found = []
    for index, others in _blocked(stack).items():
        nodes = count_nodes(stack.models[index], stack)
        where = f"each of {nodes} nodes" if nodes > 1 else "one node"
        need = f"{count_gpus(stack.models[index]) // nodes} free GPUs on {where}"
        # the user knows models by name, and two entries may have the same one
        names = " and ".join(dict.fromkeys(stack.models[other].model for other in others))
        found.append(
            f"models[{index}]: a replica of {stack.models[index].model} needs {need}, but pods of {names} may run on "
            f"these nodes, and then the replica waits forever. The manifests ask the scheduler to pack {names} on as "
            "few nodes as possible, but the scheduler does not guarantee this. To be certain, label the nodes, and "
            f"give each of these models its own kubernetes.node_selector ({WHERE}, Models that need whole nodes)"
        )
    return found


def with_packing(services: Sequence[Service], models: Mapping[str, ModelSpec], stack: StackSpec) -> tuple[Service, ...]:
    """`services`, packed if their pods could otherwise occupy nodes that another model needs as a whole.

    `models` are the models by the name of their service.
    """
    # by identity, because two models may be equal
    packed = {id(stack.models[other]) for others in _blocked(stack).values() for other in others}
    return tuple(replace(one, pack=True) if id(models.get(one.name)) in packed else one for one in services)


def _blocked(stack: StackSpec) -> dict[int, list[int]]:
    """Index of each model that needs whole nodes -> indices of the models that can occupy them in part."""
    cluster, found = stack.cluster, {}
    # models with equal selectors are compared once: a stack may have a thousand models
    groups: dict[_Selector, list[int]] = {}
    for index, model in enumerate(stack.models):
        # pods that fill a node leave no part of it over
        if count_gpus(model) % cluster.gpus_per_node and count_nodes(model, stack) == 1:
            groups.setdefault(_selector(model, cluster), []).append(index)
    gpus = {key: sum(count_gpus(stack.models[one]) * _most_replicas(stack.models[one]) for one in group)
            for key, group in groups.items()}  # fmt: skip
    for index, model in enumerate(stack.models):
        request = gpus_of_node(model, stack)
        free = cluster.gpus_per_node - (request.count if request else 0)
        # a replica on a part of one node finds room more easily than whole nodes
        if request is None or (free and count_nodes(model, stack) == 1):
            continue
        own = _selector(model, cluster)
        meeting = [key for key in groups if not _is_apart(own, key)]
        if sum(gpus[key] for key in meeting) > free:
            found[index] = sorted(other for key in meeting for other in groups[key])
    return found


def _most_replicas(model: ModelSpec) -> int:
    return max(model.replicas, (model.kubernetes.max_replicas or 0) if model.kubernetes else 0)


def _selector(model: ModelSpec, cluster: KubernetesSpec) -> _Selector:
    """The labels of the nodes on which the pods of `model` may run."""
    return frozenset((cluster.node_selector | (model.kubernetes.node_selector if model.kubernetes else {})).items())


def _is_apart(one: _Selector, other: _Selector) -> bool:
    """Whether no node can run both: their node selectors want different values of a label."""
    wanted = dict(other)
    return any(wanted.get(key, value) != value for key, value in one)
