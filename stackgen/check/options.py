"""Options of a check: its profile (quick, default, deep), its timeouts, its concurrency, and what is too slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from stackgen.errors import StackgenError

__all__ = ["PROFILES", "Options", "Profile"]

Profile = Literal["quick", "default", "deep"]
# a day: waiting longer for a silent server makes no sense, and timers reject infinity
MAX_TIMEOUT = 86_400.0
PROFILES: tuple[str, ...] = get_args(Profile)


@dataclass(frozen=True, slots=True)
class Options:
    """Which checks run, and their limits.

    - `timeout`: the longest silence of a server (s). It bounds connecting (at most 10 s), the wait for a response, the
      whole body, the time between two tokens of a stream, and all paths that `auth` tries together. A stream that keeps
      sending may last ten times as long.
    - `time_limit`: the time for all checks of an endpoint together (s), not counting the wait for readiness. Checks
      that were not reached are reported as not checked, and the endpoint is not ok. None: no limit.
    - `max_models`: the check covers at most this many models of an endpoint. `max_tokens`: the token limit of each
      answer (`quick` uses one token).
    - `select`, `skip`: names of checks; `select` also runs the checks that the selected checks need.
    - `load`: the number of concurrent requests that the check `load` sends.
    - `max_ttft` (s), `min_tokens_per_second`: limits for the figures of `stream`, which fails outside of these limits.
    - `light`: the check is repeated, as a probe or a monitor. It then loads no model, and does not repeat a request
      whose answer was cut off during reasoning. `quick` is always light.
    - `workers`: the number of endpoints that are checked concurrently.

    Raises StackgenError for numbers out of range. `checks.table.select_checks` validates the names of checks.
    """

    profile: Profile = "default"
    timeout: float = 30.0
    # LoRA adapters count as models, and a server may have many
    max_models: int = 8
    max_tokens: int = 32
    select: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    load: int = 4
    max_ttft: float | None = None
    min_tokens_per_second: float | None = None
    workers: int = 32
    time_limit: float | None = None
    light: bool = False

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise StackgenError(f"unknown profile {self.profile!r}", hint=f"known profiles: {', '.join(PROFILES)}")
        for name in ("timeout", "max_models", "max_tokens", "load", "max_ttft", "min_tokens_per_second", "workers",
                     "time_limit"):  # fmt: skip
            value = getattr(self, name)
            # `not (x > 0)` catches NaN as well
            if value is not None and not value > 0:
                raise StackgenError(f"{name.replace('_', '-')} must be above 0, got {value}")
        for name, value in (("timeout", self.timeout), ("time-limit", self.time_limit)):
            if value is not None and value > MAX_TIMEOUT:
                raise StackgenError(
                    f"{name} must be at most {MAX_TIMEOUT:.0f} seconds, got {value:g}",
                    hint="the timeout is the time that the check waits while a server sends nothing",
                )

    @property
    def is_light(self) -> bool:
        """Whether the check must not cause load that a repeated check would add up."""
        return self.light or not self.depth

    @property
    def depth(self) -> int:
        """0 for quick, 1 for default, 2 for deep. A check runs if its own depth is not above this."""
        return PROFILES.index(self.profile)
