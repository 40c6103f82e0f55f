"""The limits of times that a user sets, such as --timeout, --wait, --watch and --interval: above 0, at most a day."""

from __future__ import annotations

from stackgen.errors import StackgenError

__all__ = ["MAX_SECONDS", "validate_seconds"]

# a day: far beyond it, sockets and timers fail or never end (poll counts milliseconds in 32 bits)
MAX_SECONDS = 86_400.0


def validate_seconds(name: str, value: float, *, zero: bool = False) -> float:
    """Returns `value`. Raises StackgenError if it is not above 0 (`zero` also allows 0) or is longer than a day."""
    # NaN fails every comparison
    if not (0 < value <= MAX_SECONDS or (zero and value == 0)):
        minimum = "at least 0" if zero else "above 0"
        raise StackgenError(f"{name} must be {minimum} and at most {MAX_SECONDS:.0f} s, got {value:g}")
    return value
