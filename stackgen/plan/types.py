"""The types of a plan: services, volumes, networks, endpoints. Independent of engine and target.

All decisions are made before a plan exists: templates only print it, and runtimes only start it. All types are frozen
and all sequences are tuples, so plans can be compared and hashed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from stackgen.plan.dialect import Deviation, Dialect
from stackgen.plan.remote import Remote

__all__ = [
    "Asset", "Bind", "Build", "Dependency", "Deviation", "Dialect", "Document", "Endpoint", "EnvRef", "GpuRequest",
    "Group", "HealthCheck", "Logging", "Mount", "Network", "Plan", "Port", "Service", "Tmpfs", "Volume",
]  # fmt: skip

Role = Literal["download", "engine", "controller", "worker", "api", "router", "gateway", "monitoring", "ui"]
Condition = Literal["service_started", "service_healthy", "service_completed_successfully"]


@dataclass(frozen=True, slots=True)
class EnvRef:
    """A value that is read from `.env` when the stack starts, so that no rendered file contains it.

    `required` is the message that Compose prints if the variable is missing. If `required` is empty, `default` is used.
    `alternative` is the name of a second variable, used if the first variable of a required value is empty. Compose
    can't require one of two variables, so the service itself must refuse to start without both.
    """

    name: str
    required: str = ""
    default: str = ""
    alternative: str = ""


@dataclass(frozen=True, slots=True)
class Build:
    """Builds an image from `context` (relative to the rendered folder) instead of pulling it.

    `secrets` are names of the plan's build secrets, which only the build sees.
    """

    context: str
    # pairs instead of a dict, because a plan must be hashable
    args: tuple[tuple[str, str | EnvRef], ...] = ()
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A command that runs inside the container and exits 0 if the service works. Times are in seconds.

    Failures don't count during `start_period`, in which the check runs every `start_interval` (Compose >= 2.20.2 and
    Docker Engine >= 25; older versions ignore it). `ready_path` answers 200 to a GET without a key as long as the
    service can take requests; "" if there is no such path.
    """

    command: tuple[str, ...]
    interval: int = 30
    timeout: int = 20
    retries: int = 3
    start_period: int = 300
    start_interval: int = 2
    ready_path: str = ""


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """GPUs that a service reserves: either `ids` (indices or UUIDs) or a `count` (-1: all).

    `driver` is `nvidia`, `cdi` (ids are full CDI names) or `amd` (device files instead of a reservation).
    """

    driver: Literal["nvidia", "cdi", "amd"]
    count: int = 0
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """The nodes of one replica that needs several: `size` of them, of which the first answers requests.

    The other nodes run `command`, and `health` checks them. The first node waits for them at its `port`.
    """

    size: int
    command: tuple[str, ...]
    health: HealthCheck
    port: int


@dataclass(frozen=True, slots=True)
class Volume:
    """A named volume mounted at `target`."""

    name: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Bind:
    """A host path (or one relative to the rendered folder, starting with `./`) mounted at `target`."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """An in-memory file system at `target` with mount `options`."""

    target: str
    options: str = ""


Mount = Volume | Bind | Tmpfs


@dataclass(frozen=True, slots=True)
class Port:
    """Publishes port `container` of the service as `address:host` on this machine."""

    address: str
    host: int
    container: int


@dataclass(frozen=True, slots=True)
class Dependency:
    """Delays the start of a service until the service `service` has reached `condition`.

    If it is not `required`, the service also starts when `service` has failed (Compose >= 2.20.2).
    """

    service: str
    condition: Condition
    required: bool = True


@dataclass(frozen=True, slots=True)
class Logging:
    """Log rotation of the json-file driver: files of `max_size` (`10m`), at most `max_file` of them."""

    max_size: str
    max_file: int


@dataclass(frozen=True, slots=True)
class Service:
    """One container or local process: what it runs, what it needs, and how its health is checked.

    In a cluster, the target runs `replicas` of it, and at most `max_replicas` (0: a fixed number), each on the nodes of
    `group`. `gpus` are then those of one node. `weights` are the arguments of `download.py` for what the service loads.
    With a `host_address`, the service uses its machine's network, and others connect to this address. A service that
    `follows` a machine computes for the service there, and answers no requests. With `pack`, replicas prefer the nodes
    of other packed replicas, so that other nodes remain whole.
    """

    name: str
    role: Role
    comment: str
    image: str
    command: tuple[str, ...]
    engine: str = ""
    entrypoint: tuple[str, ...] = ()
    environment: tuple[tuple[str, str | EnvRef], ...] = ()
    build: Build | None = None
    # false for an image that another service of the stack builds
    pull: bool = True
    platform: str = ""
    gpus: GpuRequest | None = None
    mounts: tuple[Mount, ...] = ()
    ports: tuple[Port, ...] = ()
    # port inside the network, for a service that publishes none
    internal_port: int = 0
    networks: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    depends_on: tuple[Dependency, ...] = ()
    health: HealthCheck | None = None
    restart: str = "no"
    user: str = ""
    read_only: bool = True
    init: bool = False
    cap_add: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    group_add: tuple[str, ...] = ()
    cpuset: str = ""
    ipc: str = ""
    shm_size: str = ""
    # Docker's own default
    stop_grace_period: int = 10
    stop_signal: str = ""
    logging: Logging | None = None
    replicas: int = 1
    max_replicas: int = 0
    group: Group | None = None
    weights: tuple[str, ...] = ()
    host_address: str = ""
    follows: str = ""
    pack: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible URL that the stack offers to its users.

    - `base_url` ends in `/v1`; `api_key` is the name of the variable in `.env` that contains the key.
    - `service` is the service that answers; `workers` are the services behind this service.
    - `models`: served model names that must be listed.
    - `exposed`: whether other machines can reach the endpoint.
    - `groups`: the served names of each model behind the endpoint; empty if all names belong to one model.
    - `max_concurrent_requests`: the limit of each replica; 0 if unknown.
    - `replicas`: services across which a gateway balances the requests.
    - `open_paths`: paths that answer without a key in this stack; the dialect lists those of the server alone.
    - `remote`: a machine that answers, if no replica is on this one. For the gateway, `service` is the machine's name.
    """

    name: str
    service: str
    base_url: str
    models: tuple[str, ...]
    dialect: Dialect
    api_key: str = "STACKGEN_API_KEY"
    workers: tuple[str, ...] = ()
    exposed: bool = False
    groups: tuple[tuple[str, ...], ...] = ()
    max_concurrent_requests: int = 0
    replicas: tuple[str, ...] = ()
    open_paths: tuple[str, ...] = ()
    remote: Remote | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """A network. An `internal` one has no outgoing connections and no published ports; an `external` one exists."""

    name: str
    internal: bool = False
    external: bool = False


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that is copied next to the Compose file: template name, and path in the rendered folder."""

    template: str
    path: str


@dataclass(frozen=True, slots=True)
class Document:
    """A file that is rendered next to the Compose file. `data` is the only object that its template receives.

    `language` determines how expressions are quoted: `yaml`, `haproxy`, or `text` for values that are quoted already.
    """

    template: str
    path: str
    language: Literal["yaml", "haproxy", "text"]
    data: Any


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole stack, ready to be printed or started.

    `volumes` are (key in the Compose file, name in Docker) pairs; `shared_volumes` are the names of those that all
    stacks share, and that no stack removes. `secrets` and `build_secrets` are (name, file that holds it) pairs.
    `warnings` are for the user, one sentence each.
    """

    name: str
    services: tuple[Service, ...]
    endpoints: tuple[Endpoint, ...]
    volumes: tuple[tuple[str, str], ...] = ()
    shared_volumes: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    secrets: tuple[tuple[str, EnvRef], ...] = ()
    build_secrets: tuple[tuple[str, str], ...] = ()
    assets: tuple[Asset, ...] = ()
    documents: tuple[Document, ...] = ()
    env_file: str = ".env"
    # two plans that run the same services are equal, even if their warnings differ
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def service(self, name: str) -> Service:
        """Returns the service called `name`. Raises KeyError if there is none."""
        for service in self.services:
            if service.name == name:
                return service
        raise KeyError(name)
