"""An endpoint that was found, and those of a stack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stackgen import engines
from stackgen.check.target import Target
from stackgen.envfile import read_env
from stackgen.plan import Dialect, Endpoint, Plan

if TYPE_CHECKING:
    from stackgen.stack import Stack

__all__ = ["Found", "dialects", "from_plan", "of_stack"]


@dataclass(frozen=True, slots=True)
class Found:
    """A target; `stack` and `endpoint` tell what runs it, where that is a stack of ours."""

    target: Target
    stack: Stack | None = None
    endpoint: Endpoint | None = None


def dialects() -> dict[str, Dialect]:
    """The engines' dialects by name."""
    return {name: engines.get(name).dialect for name in engines.names()}


def from_plan(plan: Plan, folder: Path) -> list[Target]:
    """The endpoints of a plan, with the key from `folder/.env`."""
    env = read_env(folder)
    return [
        Target.from_endpoint(endpoint, env.get(endpoint.api_key) or None, exposed=endpoint.exposed)
        for endpoint in plan.endpoints
    ]


def of_stack(stack: Stack) -> list[Found]:
    """The endpoints that a stack starts."""
    targets = from_plan(stack.plan, stack.folder)
    return [Found(target, stack, endpoint) for target, endpoint in zip(targets, stack.plan.endpoints, strict=True)]
