"""The data of manifests, one class for each object that the templates in `templates/kubernetes/` print.

Fields have the names of Kubernetes 1.37's API, in snake case; all decisions are made before one of them exists.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Autoscaler", "Claim", "Container", "Env", "Mount", "Pairs", "Peer", "Pod", "PodVolume", "Policy", "Probe",
    "ResourceClaim", "Service", "Source", "Workload",
]  # fmt: skip

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Env:
    """A variable: a `value`, or the `key` of a `secret`, or a `field` of the pod. A variable may be `optional`."""

    name: str
    value: str = ""
    secret: str = ""
    key: str = ""
    field: str = ""
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe: a `command`, or a GET of `path` at the named `port`. Times are in seconds."""

    command: tuple[str, ...] = ()
    path: str = ""
    port: str = ""
    delay: int = 0
    period: int = 10
    timeout: int = 1
    failures: int = 3


@dataclass(frozen=True, slots=True)
class Mount:
    """Mounts the pod's volume `name` at `path`; `sub_path` is one file of it."""

    name: str
    path: str
    read_only: bool = False
    sub_path: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A part of a projected volume: a ConfigMap or a Secret, all of it or the file `key` as `path`."""

    kind: str
    name: str
    key: str = ""
    path: str = ""
    optional: bool = False


@dataclass(frozen=True, slots=True)
class PodVolume:
    """A volume of a pod: a `claim`, a `config_map`, a `secret`, `sources` of a projected one, or else an empty folder.

    `medium` is `Memory` for an empty folder in memory; `size` limits it. `mode` is octal text, as in manifests.
    """

    name: str
    claim: str = ""
    config_map: str = ""
    secret: str = ""
    sources: tuple[Source, ...] = ()
    medium: str = ""
    size: str = ""
    mode: str = ""


@dataclass(frozen=True, slots=True)
class Container:
    """A container; `drain_seconds` is how long it keeps running after the cluster has begun to stop its pod."""

    name: str
    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[Env, ...] = ()
    ports: tuple[tuple[str, int], ...] = ()
    requests: Pairs = ()
    limits: Pairs = ()
    claims: tuple[str, ...] = ()
    startup: Probe | None = None
    liveness: Probe | None = None
    readiness: Probe | None = None
    drain_seconds: int = 0
    read_only: bool = True
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod template. `grace` is in seconds; `spread` are the labels of pods that should be on different nodes,
    and `pack` those of pods that should be on the same nodes.
    """

    labels: Pairs
    containers: tuple[Container, ...]
    init: tuple[Container, ...] = ()
    volumes: tuple[PodVolume, ...] = ()
    annotations: Pairs = ()
    user: int = 2000
    group: int = 0
    fs_group: int = 0
    supplemental_groups: tuple[int, ...] = ()
    grace: int = 30
    restart: str = ""
    node_selector: Pairs = ()
    tolerations: tuple[tuple[str, str, str], ...] = ()
    runtime_class: str = ""
    spread: Pairs = ()
    pack: Pairs = ()
    resource_claims: tuple[tuple[str, str], ...] = ()
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Service:
    """A Service. `headless`: its name has the addresses of all pods. `ports` are (name, port, named target)."""

    name: str
    comment: str
    labels: Pairs
    selector: Pairs
    ports: tuple[tuple[str, int, str], ...]
    type: str = "ClusterIP"
    headless: bool = False


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """Scales a workload between `least` and `most` replicas, so that `target` requests wait for each of them."""

    by: str
    api_version: str
    kind: str
    name: str
    least: int
    most: int
    target: int
    cooldown: int
    server: str = ""
    query: str = ""


@dataclass(frozen=True, slots=True)
class ResourceClaim:
    """A ResourceClaimTemplate for `count` GPUs with at least `memory`, if it is set."""

    name: str
    count: int
    memory: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment, LeaderWorkerSet or Job with everything that belongs to it, which is printed into one file.

    `replicas` is None if an autoscaler sets it. `nodes` are those of a LeaderWorkerSet, whose other nodes run `worker`.
    `surge` and `unavailable` are the limits of a rolling update; without them, all pods end before new ones start.
    """

    kind: str
    name: str
    comment: str
    labels: Pairs
    selector: Pairs
    pod: Pod
    replicas: int | None = 1
    deadline: int = 600
    surge: int | None = None
    unavailable: int | None = None
    nodes: int = 1
    worker: Pod | None = None
    services: tuple[Service, ...] = ()
    disruption: Pairs = ()
    autoscaler: Autoscaler | None = None
    resource_claim: ResourceClaim | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A PersistentVolumeClaim."""

    name: str
    comment: str
    labels: Pairs
    access_mode: str
    size: str
    storage_class: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection: pods with a component in `components`, or a `namespace`, or anybody.

    `ports` are numbers; without any, all ports of all protocols. `dns` is port 53, over UDP too.
    """

    components: tuple[str, ...] = ()
    namespace: str = ""
    ports: tuple[int, ...] = ()
    group: str = ""
    dns: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """A NetworkPolicy for pods with a component in `components` (all pods if empty), or with the label `group`."""

    name: str
    comment: str
    components: tuple[str, ...] = ()
    group: str = ""
    ingress: tuple[Peer, ...] | None = None
    egress: tuple[Peer, ...] | None = None
