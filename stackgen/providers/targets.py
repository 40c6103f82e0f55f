"""Targets together with the stack that runs them, and the targets of a stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stackgen import engines
from stackgen.check.target import Target
from stackgen.plan import Dialect, Endpoint, Plan
from stackgen.providers.certificate import find_certificate, is_generated, name_in_certificate
from stackgen.stack.envfile import read_env
from stackgen.stack.secrets import collect_secrets

if TYPE_CHECKING:
    from stackgen.stack.folder import Stack

__all__ = ["ResolvedTarget", "dialects", "targets_from_plan", "targets_from_stack", "with_unique_names"]


@dataclass(frozen=True, slots=True)
class ResolvedTarget:
    """A target, its stack, and its endpoint in the plan; stack and endpoint are None for servers that no stack runs."""

    target: Target
    stack: Stack | None = None
    endpoint: Endpoint | None = None


def dialects() -> dict[str, Dialect]:
    """The dialects of all engines, by name."""
    return {name: engines.get(name).dialect for name in engines.names()}


def targets_from_plan(plan: Plan, folder: Path) -> list[Target]:
    """The plan's endpoints as targets, with their keys from `folder/.env`."""
    env, secrets = read_env(folder), collect_secrets(folder)
    found = []
    for endpoint in plan.endpoints:
        # a server bound to 0.0.0.0 is exposed although its URL contains 127.0.0.1; only the plan has this fact
        target = Target.from_endpoint(endpoint, env.get(endpoint.api_key) or None, exposed=endpoint.exposed)
        ca_file = server_name = None
        if certificate := find_certificate(plan, endpoint, folder):
            # the user's own certificate is verified against the system's CAs
            if is_generated(certificate):
                ca_file = str(certificate)
            else:
                server_name = name_in_certificate(certificate)
        found.append(replace(target, ca_file=ca_file, server_name=server_name, secrets=secrets))
    return found


def targets_from_stack(stack: Stack) -> list[ResolvedTarget]:
    """Returns the endpoints that the stack itself serves, in plan order, without entries under its `endpoints:`."""
    targets = targets_from_plan(stack.plan, stack.folder)
    # strict: targets_from_plan returns one target per endpoint
    return [
        ResolvedTarget(target, stack, endpoint) for target, endpoint in zip(targets, stack.plan.endpoints, strict=True)
    ]


def with_unique_names(targets: Sequence[Target]) -> list[Target]:
    """`targets` with `-2`, `-3`, … appended to repeated names."""
    # reports, status pages and time series are keyed by name
    taken: set[str] = set()
    result = []
    for target in targets:
        name, number = target.name, 1
        while name in taken:
            number += 1
            name = f"{target.name}-{number}"
        taken.add(name)
        result.append(target if name == target.name else replace(target, name=name))
    return result
