"""The supervisor's input: one task for each service, as data that is sent through a pipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Probe", "Task"]


@dataclass(frozen=True, slots=True)
class Probe:
    """A health check: `command` exits with 0 if the service works. Times are seconds, as in `plan.HealthCheck`."""

    command: list[str]
    interval: float
    timeout: float
    retries: int
    start_period: float
    start_interval: float


@dataclass(frozen=True, slots=True)
class Task:
    """One service.

    - `environment`: the whole environment of the process; hidden in `repr`, because it contains keys.
    - `depends_on`: service name -> the condition to wait for, with Compose's names.
    - `optional`: the services in `depends_on` without which the service also starts, once they stay down.
    - `one_shot`: the service is done when it exits with 0, like a download.
    - `max_retries`: how often a failed start is repeated; -1 means without limit.
    - `stop_grace_period`: seconds between SIGTERM and SIGKILL.
    - `log_bytes`, `log_files`: the size at which a log is rotated, and the number of files.
    """

    name: str
    role: str
    argv: list[str]
    environment: dict[str, str] = field(repr=False)
    depends_on: dict[str, str] = field(default_factory=dict)
    optional: list[str] = field(default_factory=list)
    probe: Probe | None = None
    one_shot: bool = False
    max_retries: int = 3
    stop_grace_period: float = 10
    ports: list[str] = field(default_factory=list)
    cpus: list[int] = field(default_factory=list)
    log_bytes: int = 20 << 20
    log_files: int = 5

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        """The task from the output of `dataclasses.asdict`."""
        return cls(**{**data, "probe": Probe(**data["probe"]) if data["probe"] else None})
