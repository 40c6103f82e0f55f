"""TODO monitoring."""

from __future__ import annotations

from stackgen.errors import Mistake
from stackgen.plan import Plan, Site
from stackgen.spec import StackSpec

__all__ = ["extend", "mistakes"]


def mistakes(stack: StackSpec, site: Site) -> list[Mistake]:
    """What can't work."""
    return []


def extend(stack: StackSpec, site: Site, plan: Plan) -> Plan:
    """The plan with it."""
    return plan
