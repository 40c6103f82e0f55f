"""The types of a plan: services, volumes, networks, endpoints. Independent of engine and target.

All decisions are made before a plan exists: templates only print it, and runtimes only start it. All types are frozen
and all sequences are tuples, so plans can be compared and hashed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from stackgen.plan.dialect import Deviation, Dialect

__all__ = [
    "Asset", "Bind", "Build", "Dependency", "Deviation", "Dialect", "Document", "Endpoint", "EnvRef", "GpuRequest",
    "HealthCheck", "Logging", "Mount", "Network", "Plan", "Port", "Service", "Site", "Tmpfs", "Volume",
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
    """Builds an image from `context` (relative to the rendered folder) instead of pulling it."""

    context: str
    args: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A command that runs inside the container and exits 0 if the service works. Times are in seconds.

    Failures don't count during `start_period`, in which the check runs every `start_interval` (Compose >= 2.20.2 and
    Docker Engine >= 25; older versions ignore it).
    """

    command: tuple[str, ...]
    interval: int = 30
    timeout: int = 20
    retries: int = 3
    start_period: int = 300
    start_interval: int = 5


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """GPUs that a service reserves: either `ids` (indices or UUIDs) or a `count` (-1: all).

    `driver` is `nvidia`, `cdi` (ids are full CDI names) or `amd` (device files instead of a reservation).
    """

    driver: Literal["nvidia", "cdi", "amd"]
    count: int = 0
    ids: tuple[str, ...] = ()


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
    """Delays the start of a service until the service `service` has reached `condition`."""

    service: str
    condition: Condition


@dataclass(frozen=True, slots=True)
class Logging:
    """Log rotation of the json-file driver: files of `max_size` (`10m`), at most `max_file` of them."""

    max_size: str
    max_file: int


@dataclass(frozen=True, slots=True)
class Service:
    """One container or local process: what it runs, what it needs, and how its health is checked."""

    name: str
    role: Role
    comment: str
    image: str
    command: tuple[str, ...]
    engine: str = ""
    entrypoint: tuple[str, ...] = ()
    environment: tuple[tuple[str, str | EnvRef], ...] = ()
    build: Build | None = None
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
    cpuset: str = ""
    ipc: str = ""
    shm_size: str = ""
    stop_grace_period: int = 10
    stop_signal: str = ""
    logging: Logging | None = None


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


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the stack. An `internal` network has no outgoing connections and no published ports."""

    name: str
    internal: bool = False


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

    `volumes` are (key in the Compose file, name in Docker) pairs; `secrets` are (name, file that holds it) pairs;
    `warnings` are for the user, one sentence each.
    """

    name: str
    services: tuple[Service, ...]
    endpoints: tuple[Endpoint, ...]
    volumes: tuple[tuple[str, str], ...] = ()
    networks: tuple[Network, ...] = ()
    secrets: tuple[tuple[str, EnvRef], ...] = ()
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


class Site(Protocol):
    """Where services run and how they reach each other: containers on a network, or local processes.

    Engines ask the site instead of assuming Docker, so one engine module works for every target.
    """

    @property
    def uses_containers(self) -> bool:
        """Whether services are containers, so that a gateway can be put in front of them."""

    def url(self, service: str, port: int) -> str:
        """`http://HOST:PORT` at which other services of the stack reach `service`."""

    def local_url(self, service: str, port: int) -> str:
        """`http://127.0.0.1:PORT` at which `service` reaches itself, for its health check."""

    def public_url(self, address: str, port: int) -> str:
        """The base URL, ending in `/v1`, of a port published on this machine."""

    def listen(self, service: str, port: int, *, host_port: int = 0) -> tuple[str, int]:
        """Address and port that `service` must bind. `host_port` is 0 if the port is not reachable from the host."""

    def models_dir(self) -> str:
        """The shared model storage, as a path that services see."""

    def cache_dir(self) -> str:
        """A persistent, writable folder for compile caches, as a path that services see."""

    def home_dir(self) -> str:
        """A writable home folder for the services."""

    def local_path(self, path: str) -> str:
        """Path at which services see the host's file or folder `path`."""

    def host_path(self, path: str) -> str:
        """Path on the host for `path` in the stack file."""

    def script(self, name: str) -> str:
        """Path at which services see the stack's rendered script `name`."""

    def image_file(self, image: str, name: str) -> str:
        """Path at which services see the file `name` of stackgen's own image `image`."""

    def gpu_environment(self, gpus: GpuRequest | None) -> tuple[tuple[str, str], ...]:
        """Environment variables that restrict a service to its GPUs, if no reservation does."""
