"""What a supervisor is told: one task a service, as data that goes through a pipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Probe", "Task"]


@dataclass(frozen=True, slots=True)
class Probe:
    """A health check: `command` exits 0 when the service works. Times are seconds, as in `plan.HealthCheck`."""

    command: list[str]
    interval: float
    timeout: float
    retries: int
    start_period: float
    start_interval: float


@dataclass(frozen=True, slots=True)
class Task:
    """One service. `environment` is all that its process gets; `after` maps services to the conditions to wait for.

    `once`: it is to end with 0, like a download. `tries`: starts after a first one that failed (-1: no end).
    `grace` (s) lies between SIGTERM and SIGKILL; logs are files of `log_bytes`, at most `log_files` of them.
    """

    name: str
    role: str
    argv: list[str]
    environment: dict[str, str] = field(repr=False)
    after: dict[str, str] = field(default_factory=dict)
    probe: Probe | None = None
    once: bool = False
    tries: int = 3
    grace: float = 10
    ports: list[str] = field(default_factory=list)
    cpus: list[int] = field(default_factory=list)
    log_bytes: int = 20 << 20
    log_files: int = 5

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        """The task that `dataclasses.asdict` made `data` of."""
        return cls(**{**data, "probe": Probe(**data["probe"]) if data["probe"] else None})
