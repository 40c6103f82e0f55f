"""What `status --watch` sees of a stack in a cluster: pods, and why a service is not ready."""

from __future__ import annotations

from collections.abc import Callable

from stackgen.plan import Plan
from stackgen.runtimes.compose.lifecycle import ServiceState
from stackgen.runtimes.kubernetes.kubectl import Kubectl
from stackgen.runtimes.kubernetes.lifecycle import observe
from stackgen.runtimes.kubernetes.states import ClusterService
from stackgen.runtimes.kubernetes.topology import docker_words
from stackgen.runtimes.observation.follow import Look, ServiceLook

__all__ = ["ClusterFollower"]


class ClusterFollower:
    """Looks at one stack again and again. Used by one thread."""

    source = "cluster"

    def __init__(self, open_plan: Callable[[], Plan], cluster: Kubectl) -> None:
        self.plan, self._cluster = open_plan(), cluster

    def look(self) -> Look:
        """The stack now. Raises MachineError if the cluster does not answer."""
        return Look(tuple(map(_look, observe(self._cluster, self.plan))))


def _look(one: ClusterService) -> ServiceLook:
    state, health = docker_words(one)
    exit_code = 0 if one.state == "complete" else None
    found = ServiceState(one.service, one.role, state, health, one.restarts, exit_code)
    pods = f"{one.ready}/{one.wanted} pods"
    return ServiceLook(found, since=pods, line=one.reason, note=f"{pods}{': ' if one.reason else ''}{one.reason}")
