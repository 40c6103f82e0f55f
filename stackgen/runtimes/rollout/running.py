"""What `up` does with a stack that is already running: it asks before it interrupts a healthy service."""

from __future__ import annotations

from dataclasses import dataclass

from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.gateway import has_gateway
from stackgen.runtimes.compose.lifecycle import status
from stackgen.runtimes.rollout.drift import find_containers
from stackgen.runtimes.rollout.rolling import Rollout, plan_rollout
from stackgen.stack.folder import Stack

__all__ = ["StartPlan", "plan_start"]


@dataclass(frozen=True, slots=True)
class StartPlan:
    """How `up` starts a stack.

    `rollout` is carried out first, because running services change behind a gateway. `downtime` contains a sentence for
    each service whose requests will fail. `recreate` are the services whose containers Compose may replace after that;
    None: all.
    """

    rollout: Rollout | None = None
    downtime: tuple[str, ...] = ()
    recreate: tuple[str, ...] | None = None


def plan_start(stack: Stack) -> StartPlan:
    """Returns how to start `stack`, which may be running. Writes nothing. Raises MachineError without Docker.

    Services that are not healthy serve nobody, so they are replaced without a question.
    """
    containers = find_containers(stack.plan.name)
    if not any(container.running for container in containers.values()):
        return StartPlan()
    rollout = plan_rollout(stack)
    healthy = {one.service for one in status(stack.plan) if one.state == "running" and one.health in ("", "healthy")}
    in_use = healthy.intersection(rollout.changed) | {name for name in rollout.removed if containers[name].running}
    gateway = containers.get(SERVICE)
    # behind a gateway that has stopped, no replica gets requests
    if not in_use or (gateway and not gateway.running):
        return StartPlan(recreate=(*rollout.added, *rollout.changed))
    if gateway and has_gateway(stack.plan):
        return StartPlan(rollout=rollout, downtime=rollout.downtime, recreate=())
    return StartPlan(downtime=rollout.downtime)
