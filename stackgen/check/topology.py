"""The services behind an endpoint, as data from the runtime that started them. Two checks judge this data.

`containers` runs first, so that a paused or dead server is reported at once and not after a timeout. `topology` runs
last: every worker and replica must show that it generates text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Observer", "ProbeResult", "ServiceView", "Unobservable"]


class Unobservable(OSError):
    """The services can't be observed; the message says why. Checks that need them are skipped, not failed."""


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One service of the stack that the endpoint depends on.

    - `front`: whether this service answers at the base URL.
    - `state`: Docker's name (running, paused, restarting, exited, dead, created), or `absent` without a container.
    - `health`: healthy, unhealthy, starting, or "" if there is no health check.
    - `digest`: the id of the image in use; `image_changed`: the tag now points to another image.
    - `gpus_planned`, `gpus_reserved`: GPU ids or `count=N`; `gpus_seen`: how many the service sees, None if unknown.
    - `missing_networks`: networks of the plan that the service is not connected to.
    - `published`: host addresses that forward to the service; `unreachable_ports`: those that accept no connection,
      although the container is healthy. `log`: its last log lines, if the service is down.
    - `drained`: since when and by what it is drained, if the gateway sends no requests to it.
    """

    name: str
    role: str
    front: bool
    state: str
    health: str = ""
    restarts: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    image: str = ""
    digest: str = ""
    image_changed: bool = False
    gpus_planned: tuple[str, ...] = ()
    gpus_reserved: tuple[str, ...] = ()
    gpus_seen: int | None = None
    missing_networks: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    log: str = ""
    unreachable_ports: tuple[str, ...] = ()
    drained: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of a health probe that ran inside a service.

    A service is ok if it generates text and, for a worker, is registered.

    `seconds` is how long the probe took; `output` is what the probe printed, empty after a timeout.
    """

    service: str
    ok: bool
    seconds: float
    output: str


class Observer(Protocol):
    """Observes the services of one endpoint. Runtimes implement this protocol; every method may raise OSError."""

    def services(self) -> tuple[ServiceView, ...]:
        """The state of every service that the endpoint depends on. Takes milliseconds."""

    def run_probes(self, timeout: float) -> tuple[ProbeResult, ...]:
        """Runs the probe of each running service except the front one, each for at most `timeout` seconds."""
