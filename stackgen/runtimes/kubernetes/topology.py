"""What the check sees of a stack in a cluster: the states of the services behind an endpoint."""

from __future__ import annotations

from stackgen.check.topology import ProbeResult, ServiceView, Unobservable
from stackgen.errors import MachineError, StartError
from stackgen.plan import Endpoint, Plan
from stackgen.runtimes.kubernetes.kubectl import Kubectl
from stackgen.runtimes.kubernetes.lifecycle import observe
from stackgen.runtimes.kubernetes.states import ClusterService

__all__ = ["ClusterObserver", "docker_words"]


class ClusterObserver:
    """Observes the pods of a stack."""

    def __init__(self, cluster: Kubectl, plan: Plan, endpoint: Endpoint) -> None:
        self._cluster, self._plan, self._endpoint = cluster, plan, endpoint

    def services(self) -> tuple[ServiceView, ...]:
        """See `Observer`. Raises Unobservable if the cluster does not answer."""
        front, behind = self._endpoint.service, {*self._endpoint.replicas, *self._endpoint.workers}
        try:
            found = {one.service: one for one in observe(self._cluster, self._plan)}
        except (MachineError, StartError) as error:
            raise Unobservable(" ".join(error.message.split())) from None
        return tuple(_view(one, name == front) for name, one in found.items() if name == front or name in behind)

    def run_probes(self, timeout: float) -> tuple[ProbeResult, ...]:
        """Returns no results: the kubelets run the generating probes, and a pod that is ready has passed them."""
        return ()


def docker_words(one: ClusterService) -> tuple[str, str]:
    """The state and the health of a service, in the words for containers that the check and `status --watch` know."""
    if one.is_working:
        return ("exited", "") if one.state == "complete" else ("running", "healthy")
    if one.state in ("starting", "waiting"):
        return "running", "starting"
    if one.ready:
        # some replicas work
        return "running", "unhealthy"
    return {"absent": "absent", "pending": "created", "ending": "exited"}.get(one.state, "restarting"), ""


def _view(one: ClusterService, front: bool) -> ServiceView:
    state, health = docker_words(one)
    code = next((pod.exit_code for pod in one.pods if pod.exit_code is not None), None)
    is_killed = any("OOMKilled" in line for line in one.lines)
    return ServiceView(
        one.service, one.role, front, state, health, one.restarts, code, oom_killed=is_killed, log=one.reason
    )
