"""Times that a person or program gives: in seconds, and small enough for every clock and socket."""

from __future__ import annotations

from stackgen.errors import StackgenError

__all__ = ["LONGEST", "seconds"]

# a day; sockets and timers fail or never end far beyond it (poll counts milliseconds in 32 bits)
LONGEST = 86_400.0


def seconds(name: str, value: float, *, zero: bool = False) -> float:
    """`value` as it is. Raises StackgenError where it is not above 0 (with `zero`: below 0) or longer than a day."""
    # NaN fails every comparison
    if not (0 < value <= LONGEST or (zero and value == 0)):
        least = "not below 0" if zero else "above 0"
        raise StackgenError(f"{name} must be {least} and at most {LONGEST:.0f} s, and is {value:g}")
    return value
