"""What will run: services, volumes, networks, endpoints. Neutral of engine and target.

Every decision is taken before a plan exists. Templates and runtimes print or start what stands here and
decide nothing. All types are frozen; sequences are tuples, so that a plan can be compared and hashed.
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
    """A value that is taken from `.env` when the stack starts, so that it stands in no rendered file.

    `required` is the message that Compose prints when it is missing; without one it is `default` then. `other` is a
    second name of a required one, which counts where the first has no value; the service itself must refuse to start
    with neither.
    """

    name: str
    required: str = ""
    default: str = ""
    other: str = ""


@dataclass(frozen=True, slots=True)
class Build:
    """An image that is built from `context` (relative to the rendered folder) instead of pulled."""

    context: str
    args: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A command that runs inside the container and exits 0 when the service works. Times are seconds.

    `start_period` is how long failures don't count; during it the check runs every `start_interval`
    (Compose >= 2.20.2 and engine >= 25; older ones ignore it).
    """

    command: tuple[str, ...]
    interval: int = 30
    timeout: int = 20
    retries: int = 3
    start_period: int = 300
    start_interval: int = 5


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """GPUs that a service reserves: either `ids` (indices or UUIDs) or a `count`, where -1 is all.

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
    """A memory file system at `target` with mount `options`."""

    target: str
    options: str = ""


Mount = Volume | Bind | Tmpfs


@dataclass(frozen=True, slots=True)
class Port:
    """`address:host` on the machine leads to `container` in the service."""

    address: str
    host: int
    container: int


@dataclass(frozen=True, slots=True)
class Dependency:
    """A service starts only when `service` has reached `condition`."""

    service: str
    condition: Condition


@dataclass(frozen=True, slots=True)
class Logging:
    """Log rotation of the json-file driver: files of `max_size` (`10m`), at most `max_file` of them."""

    max_size: str
    max_file: int


@dataclass(frozen=True, slots=True)
class Service:
    """One container (or one local process): what it runs, what it needs, and how it proves that it works."""

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
    # the port inside, of a service that publishes none
    listens: int = 0
    networks: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    depends_on: tuple[Dependency, ...] = ()
    health: HealthCheck | None = None
    restart: str = "no"
    user: str = ""
    read_only: bool = True
    init: bool = False
    cap_add: tuple[str, ...] = ()
    group_add: tuple[str, ...] = ()
    cpuset: str = ""
    ipc: str = ""
    shm_size: str = ""
    stop_grace_period: int = 10
    stop_signal: str = ""
    logging: Logging | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible URL that the stack offers to its users.

    `base_url` ends in `/v1`; `api_key` names the variable of `.env` that holds the key; `models` are the
    served model names that must be listed; `service` is who answers; `workers` are behind it. `exposed` tells that
    other machines may reach it. `groups` are the names of each model behind it (empty: all are one model's), `slots`
    how many requests each replica works on at once (0: nobody said). `replicas` are the services that a gateway
    spreads the requests over.
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
    slots: int = 0
    replicas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the stack; an `internal` one reaches nothing outside and publishes no port."""

    name: str
    internal: bool = False


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that is rendered beside the Compose file: template name and path in the rendered folder."""

    template: str
    path: str


@dataclass(frozen=True, slots=True)
class Document:
    """A file that is rendered beside the Compose file from `data`, the one object its template gets.

    `language` says how expressions are quoted: `yaml`, `haproxy`, or `text` for what is quoted already.
    """

    template: str
    path: str
    language: Literal["yaml", "haproxy", "text"]
    data: Any


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole stack, ready to be printed or started.

    `volumes` are (key in the file, name in the engine) pairs; `secrets` (name, file that holds it) pairs;
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
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def service(self, name: str) -> Service:
        """The service called `name`; KeyError when there is none."""
        for service in self.services:
            if service.name == name:
                return service
        raise KeyError(name)


class Site(Protocol):
    """Where services stand and how they reach each other: containers on a network, or local processes.

    An engine asks its site instead of assuming Docker, so one engine file serves every target.
    """

    @property
    def containers(self) -> bool:
        """Whether services are containers, so that one can stand before others."""

    def url(self, service: str, port: int) -> str:
        """`http://HOST:PORT` under which other services of the stack reach `service`."""

    def local_url(self, service: str, port: int) -> str:
        """`http://127.0.0.1:PORT` under which `service` reaches itself, for its own health check."""

    def public_url(self, address: str, port: int) -> str:
        """The base URL, ending in `/v1`, of a port published on this machine."""

    def listen(self, service: str, port: int, *, host_port: int = 0) -> tuple[str, int]:
        """Address and port that `service` must bind; `host_port` is set for one that is reached from the host."""

    def models_dir(self) -> str:
        """The folder of the shared model storage as the services see it."""

    def cache_dir(self) -> str:
        """A persistent, writable folder for compile caches as the services see it."""

    def home_dir(self) -> str:
        """A writable folder for all that programs leave in their home."""

    def local_path(self, path: str) -> str:
        """A file or folder of the host as the services see it."""

    def host_path(self, path: str) -> str:
        """A path of the stack file as the host sees it."""

    def script(self, name: str) -> str:
        """A rendered script of the stack as the services see it."""

    def image_file(self, image: str, name: str) -> str:
        """A file that our own image holds, as the services see it."""

    def gpu_environment(self, gpus: GpuRequest | None) -> tuple[tuple[str, str], ...]:
        """Variables that limit a service to its GPUs where no reservation does."""
