"""The models behind the gateway, and their replicas: backends and servers of HAProxy."""

from __future__ import annotations

from dataclasses import dataclass

from stackgen.resolve.addons.gateway_errors import path_error_body

__all__ = ["Backend", "Server", "hex_name"]


@dataclass(frozen=True, slots=True)
class Server:
    """A replica: its service name, and its port inside the network. `host` is another name to connect to.

    In a cluster, `host` has the addresses of all replicas of the service, which take up to `slots` entries. A server
    that `is_remote` is the gateway of another machine, which has `weight` replicas.
    """

    name: str
    port: int
    host: str = ""
    slots: int = 0
    weight: int = 1
    is_remote: bool = False

    @property
    def replicas(self) -> int:
        """Most replicas behind it."""
        return self.slots or self.weight

    @property
    def entries(self) -> tuple[str, ...]:
        """Its names in HAProxy: one, or one for each slot."""
        # HAProxy numbers the entries of a template from 1
        return tuple(f"{self.name}-{number + 1}" for number in range(self.slots)) or (self.name,)

    @property
    def address(self) -> str:
        """`HOST:PORT` to connect to."""
        host = self.host or self.name
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Backend:
    """One model: its served names, its replicas, and how their health is probed.

    `probe_path` is requested every `probe_interval` seconds, with a timeout of `probe_timeout` seconds. `probe_body`
    is the body of a request for one token, "" for a GET. `max_concurrent_requests` is per replica; HAProxy queues the
    rest. `router` is in front of the replicas for requests that benefit from a prefix cache. `missing_paths` are API
    paths that other engines serve, and this one doesn't.
    """

    name: str
    engine: str
    names: tuple[str, ...]
    servers: tuple[Server, ...]
    probe_path: str
    probe_body: str
    max_concurrent_requests: int
    probe_interval: int
    probe_timeout: int
    fall: int
    router: Server | None = None
    api_paths: tuple[str, ...] = ()
    missing_paths: tuple[str, ...] = ()

    @property
    def is_remote(self) -> bool:
        """Whether replicas are on other machines."""
        return any(server.is_remote for server in self.servers)

    @property
    def probe_uri(self) -> str:
        """`probe_path`, with the model for gateways of other machines. Engines ignore it."""
        return f"{self.probe_path}?model={hex_name(self.names[0])}" if self.is_remote else self.probe_path

    @property
    def path_error(self) -> str:
        """Body of the response to a request for a missing path: a HAProxy log format."""
        message = f"MODEL is served by {self.engine}, which has no PATH. It has {', '.join(self.api_paths)}"
        return path_error_body(message)

    @property
    def task_error(self) -> str:
        """Body of the response if the engine lacks a path for this model: a HAProxy log format."""
        message = f"The {self.engine} server of MODEL has no PATH for this kind of model"
        return path_error_body(message)

    @property
    def calm_requests(self) -> int:
        """Requests in flight up to which a replica is not busy, even if the other replicas have none."""
        return max(1, min(4, self.max_concurrent_requests // 2))

    @property
    def total_concurrent_requests(self) -> int:
        """Sum of the max concurrent requests of all replicas."""
        return self.max_concurrent_requests * self.replicas

    @property
    def replicas(self) -> int:
        """Most replicas of the model."""
        return sum(server.replicas for server in self.servers)


def hex_name(name: str) -> str:
    """Returns a served name as the keys of the maps: hex, so that no name can break their format."""
    return name.encode().hex().upper()
