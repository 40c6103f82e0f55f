"""The order in which services start, and how long that may take. Follows `depends_on`, as Compose does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stackgen.plan.types import Service

__all__ = ["lost_services", "start_seconds", "start_waves", "starts_without"]


def start_waves(services: Iterable[Service], names: Sequence[str]) -> list[list[str]]:
    """Divides the services `names` into waves: a wave can start when all services of the waves before it are healthy.

    Dependencies outside `names` don't count, because they are running already. Keeps the order of `names`.
    """
    waits = {
        one.name: {other.service for other in one.depends_on} & set(names) for one in services if one.name in names
    }
    waves: list[list[str]] = []
    left = list(names)
    while left:
        # the plan has no cycles; if it had one, the rest would start together instead of never
        wave = [name for name in left if waits.get(name, set()).isdisjoint(left)] or left
        waves.append(wave)
        left = [name for name in left if name not in wave]
    return waves


def starts_without(services: Iterable[Service], broken: Iterable[Service]) -> bool:
    """Whether one of `services` waits for one of `broken`, and can work without it, because it has others."""
    names = {one.name for one in broken}
    optional = [{wait.service for wait in one.depends_on if not wait.required} for one in services]
    return any(one & names and one - names for one in optional)


def lost_services(services: Sequence[Service], names: set[str]) -> set[str]:
    """The services `names`, and all services that can't work without them."""
    lost = set(names)
    # in waves: a service comes after all services that it waits for
    for name in (name for wave in start_waves(services, [one.name for one in services]) for name in wave):
        waits = next(one.depends_on for one in services if one.name == name)
        optional = {wait.service for wait in waits if not wait.required}
        if any(wait.required and wait.service in lost for wait in waits) or (optional and optional <= lost):
            lost.add(name)
    return lost


def start_seconds(services: Sequence[Service]) -> int:
    """Seconds that the slowest chain of services may take until it is healthy: the sum of its start periods."""
    by_name = {one.name: one for one in services}
    seconds: dict[str, int] = {}
    # in waves, so that the time of each dependency is known before it is needed
    for wave in start_waves(services, list(by_name)):
        for name in wave:
            one = by_name[name]
            before = max((seconds.get(other.service, 0) for other in one.depends_on), default=0)
            seconds[name] = before + (one.health.start_period if one.health else 0)
    return max(seconds.values(), default=0)
