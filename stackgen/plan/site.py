"""The interface of a target: where services run, and how they reach each other and their files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from stackgen.plan.types import Bind, GpuRequest

__all__ = ["GroupNode", "Site"]


@dataclass(frozen=True, slots=True)
class GroupNode:
    """One node of a replica that needs several: its `rank`, its own `address`, and the `leader`'s address.

    In a cluster, the target replaces the texts when the node starts, because all nodes have the same command. The nodes
    meet at the `leader`'s `store_port`. `api_port` is the port of its API; 0: the engine's own.
    """

    rank: str
    address: str
    leader: str
    # the default of vLLM's `--master-port`
    store_port: int = 29501
    api_port: int = 0


class Site(Protocol):
    """Where services run and how they reach each other: containers on a network, or local processes.

    Engines ask the site instead of assuming Docker, so one engine module works for every target.
    """

    @property
    def uses_containers(self) -> bool:
        """Whether services are containers, so that a gateway can be put in front of them."""

    @property
    def is_cluster(self) -> bool:
        """Whether services run on the nodes of a cluster.

        Then the target runs the replicas of a service, chooses GPUs, and does not start or stop services together. No
        service sees this machine's files, and none starts as root.
        """

    @property
    def nameserver(self) -> str:
        """`HOST:PORT` of the DNS server that knows the services; "" for those in /etc/resolv.conf."""

    def url(self, service: str, port: int) -> str:
        """`http://HOST:PORT` at which other services of the stack reach `service`."""

    def own_url(self, service: str, port: int) -> str:
        """`http://HOST:PORT` at which other services reach the very replica of `service` that asks."""

    def group_node(self) -> GroupNode:
        """The node that asks, in a replica that needs several nodes."""

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

    def find_on_disk(self, path: str) -> str:
        """Path at which this program can read the file or folder `path` of the stack file."""

    def mount(self, path: str) -> Bind:
        """The read-only mount that contains the host's file or folder `path` at its `local_path`."""

    def script(self, name: str) -> str:
        """Path at which services see the stack's rendered script `name`."""

    def image_file(self, image: str, name: str) -> str:
        """Path at which services see the file `name` of stackgen's own image `image`."""

    def gpu_environment(self, gpus: GpuRequest | None) -> tuple[tuple[str, str], ...]:
        """Environment variables that restrict a service to its GPUs, if no reservation does."""
