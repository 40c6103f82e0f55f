"""An endpoint that was found, and those of a stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stackgen import engines
from stackgen.check.target import Target
from stackgen.plan import Bind, Dialect, Endpoint, Plan
from stackgen.stack.envfile import read_env

if TYPE_CHECKING:
    from stackgen.stack.folder import Stack

__all__ = ["Found", "dialects", "from_plan", "of_stack", "unique"]

# where `gateway: {tls: generate}` puts its own
GENERATED = ("gateway", "tls", "site.crt")


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
        replace(
            Target.from_endpoint(endpoint, env.get(endpoint.api_key) or None, exposed=endpoint.exposed),
            ca_file=_certificate(plan, endpoint, folder),
        )
        for endpoint in plan.endpoints
    ]


def _certificate(plan: Plan, endpoint: Endpoint, folder: Path) -> str | None:
    """The certificate that was generated for this endpoint, which no other machine vouches for."""
    mounts = plan.service(endpoint.service).mounts
    paths = [folder / one.source for one in mounts if isinstance(one, Bind) and one.target == "/tls/site.crt"]
    return next((str(path) for path in paths if path.parts[-3:] == GENERATED and path.exists()), None)


def of_stack(stack: Stack) -> list[Found]:
    """The endpoints that a stack starts."""
    targets = from_plan(stack.plan, stack.folder)
    return [Found(target, stack, endpoint) for target, endpoint in zip(targets, stack.plan.endpoints, strict=True)]


def unique(targets: Sequence[Target]) -> list[Target]:
    """`targets` under names that differ: reports, pages and series are found by name."""
    taken: set[str] = set()
    found = []
    for target in targets:
        name, number = target.name, 1
        while name in taken:
            number += 1
            name = f"{target.name}-{number}"
        taken.add(name)
        found.append(target if name == target.name else replace(target, name=name))
    return found
