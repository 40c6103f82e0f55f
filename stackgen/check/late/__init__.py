"""Checks that press a server: wrong requests, then many at once; a wedge that they cause or find shows here."""

from __future__ import annotations

from stackgen.check.verdict import Check

__all__ = ["LATE"]

LATE: tuple[Check, ...] = ()
