"""The check `apis`: what works with an endpoint, for each model and each API that clients use."""

from __future__ import annotations

from stackgen.check.checks.apis.table import apis

__all__ = ["apis"]
