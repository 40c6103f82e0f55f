"""Checks of what a server offers besides chat, in the order they run: a line for each."""

from __future__ import annotations

from stackgen.check.verdict import Check

__all__ = ["FEATURES"]

FEATURES: tuple[Check, ...] = ()
