"""Checks that press a server: wrong requests, then many at once; a wedge that they cause or find shows here."""

from __future__ import annotations

from stackgen.check.late.errors import errors
from stackgen.check.late.load import load
from stackgen.check.verdict import Check

__all__ = ["LATE"]

LATE: tuple[Check, ...] = (
    Check("errors", errors, "wrong requests are refused clearly, and it works on", needs=("chat",), depth=2),
    Check("load", load, "requests at once are all answered, each with its own answer", needs=("chat",), per_model=True,
          exhaustive=False, depth=2),
)  # fmt: skip
