"""What doctor knows about a cluster, as plain data. `stackgen.runtimes.kubernetes.facts` collects it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ClusterFacts", "Node", "Quota", "StorageClass"]


@dataclass(frozen=True, slots=True)
class Node:
    """A node that may get pods. `allocatable` are quantities by resource, `taints` are (key, value, effect).

    `used`: devices that pods on the node request, by resource, without those of the stack itself; None if unknown.
    """

    name: str
    allocatable: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[tuple[str, str, str], ...] = ()
    is_usable: bool = True
    used: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class StorageClass:
    """A storage class. `provisioner` is the driver that makes its volumes."""

    name: str
    provisioner: str
    is_default: bool = False


@dataclass(frozen=True, slots=True)
class Quota:
    """A ResourceQuota: quantities by resource. `used` is without what the stack itself uses."""

    name: str
    hard: Mapping[str, str] = field(default_factory=dict)
    used: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """A cluster, and what the stack wants from it. None means that the fact was not read; `refused` says why.

    - `wanted`: the objects of the manifests. `version`: major and minor of the server.
    - `versions`: what the server offers, such as `policy/v1`. `kinds`: the kinds of objects, such as
      `leaderworkersets.leaderworkerset.x-k8s.io`.
    - `exists`: whether the namespace exists, and `labels` are its labels.
    - `problem` and `remedy`: why the cluster does not answer at all; then nothing else is known.
    - `claims`: the phases of the claims in the namespace, by name. `is_running`: the namespace has pods of the stack.
    """

    context: str
    namespace: str
    wanted: tuple[Mapping[str, Any], ...] = ()
    version: tuple[int, int] | None = None
    versions: tuple[str, ...] | None = None
    nodes: tuple[Node, ...] | None = None
    classes: tuple[StorageClass, ...] | None = None
    claims: Mapping[str, str] | None = None
    exists: bool | None = None
    labels: Mapping[str, str] | None = None
    quotas: tuple[Quota, ...] | None = None
    is_running: bool | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    remedy: str = ""
