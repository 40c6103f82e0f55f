"""What stands behind an endpoint, as its runtime sees it: data that a runtime gives, judged by two checks.

`containers` runs first: a paused or dead server is named at once, and not after a time-out. `topology` runs last: every
worker and replica proves by itself that it generates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Exercise", "Observer", "ServiceView", "Unobservable"]


class Unobservable(OSError):
    """Nothing can be seen of the services, whatever they do; its words say why. The checks of them are skipped."""


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One service of the stack that the endpoint depends on.

    `front` is who answers at the base URL. `state` is the engine's word (running, paused, restarting, exited, dead,
    created, or absent), `health` healthy, unhealthy, starting or "" where nothing checks it. `digest` is the image's
    id; `image_changed` tells that the tag means another image by now. `gpus_planned`, `gpus_reserved` are ids or
    `count=N`; `gpus_seen` how many the service sees, None where it can't be told. `missing_networks` are networks of
    the plan that it is not on; `published` host addresses that lead to it; `log` its last telling lines.
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


@dataclass(frozen=True, slots=True)
class Exercise:
    """A service's own probe, run inside it: whether it generates (and, for a worker, is registered), and its words."""

    service: str
    ok: bool
    seconds: float
    said: str


class Observer(Protocol):
    """Looks at the services of one endpoint; given by the runtime that started them. All may raise OSError."""

    def services(self) -> tuple[ServiceView, ...]:
        """The state of every service that the endpoint depends on; takes milliseconds."""

    def exercise(self, timeout: float) -> tuple[Exercise, ...]:
        """Runs the own probe of each running service but the front one, each for at most `timeout` seconds."""
