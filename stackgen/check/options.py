"""How deep a check looks, how long it waits and what counts as too slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from stackgen.errors import StackgenError

__all__ = ["PROFILES", "Options", "Profile"]

Profile = Literal["quick", "default", "deep"]
# a day: no server is silent for longer and still worth waiting for, and timers take no infinity
LONGEST_TIMEOUT = 86_400.0
PROFILES: tuple[str, ...] = get_args(Profile)


@dataclass(frozen=True, slots=True)
class Options:
    """What is checked, and how.

    `timeout` (s) is the longest silence of a server: it bounds connecting (at most 10 s of it), the wait for an answer
    and its whole body, the time between two tokens of a stream, and all paths that `auth` tries together. A stream that
    goes on may last ten times as long. At most
    `max_models` models of an endpoint are asked, for `max_tokens` tokens each (`quick`: one token). `select` and `skip`
    are names of checks: the first adds what those need. `load` requests are sent at once by the check of that name.
    `max_ttft` (s) and `min_tokens_per_second` turn figures of `stream` into failures. `workers` endpoints are checked
    at the same time.
    Raises StackgenError for numbers that make no sense; names of checks are looked at by `checks.choose`.
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

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise StackgenError(f"unknown profile {self.profile!r}", f"known are: {', '.join(PROFILES)}")
        for name in ("timeout", "max_models", "max_tokens", "load", "max_ttft", "min_tokens_per_second", "workers"):
            value = getattr(self, name)
            # `not (x > 0)` catches NaN as well
            if value is not None and not value > 0:
                raise StackgenError(f"{name.replace('_', '-')} must be above 0, and is {value}")
        if self.timeout > LONGEST_TIMEOUT:
            raise StackgenError(f"timeout must be at most {LONGEST_TIMEOUT:.0f} seconds, and is {self.timeout:g}",
                                "it is the longest silence of a server that is waited for")  # fmt: skip

    @property
    def depth(self) -> int:
        """0 quick, 1 default, 2 deep: a check runs when its own depth is not above it."""
        return PROFILES.index(self.profile)
