"""Reads the states of a stack's services from the objects of a cluster. Starts no program and sends no request.

Fields: Kubernetes 1.37, `core/v1` PodStatus and `apps/v1` DeploymentStatus. A Deployment counts as
rolled out by the rule of `kubectl rollout status` (`k8s.io/kubectl`, `pkg/polymorphichelpers/rollout_status.go`).
Reasons of waiting containers: `pkg/kubelet/images/types.go` and `pkg/kubelet/kuberuntime/kuberuntime_container.go`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stackgen.kubernetes.names import NAME
from stackgen.plan import Plan, Service

__all__ = ["ClusterService", "PodState", "read_services"]

Object = dict[str, Any]
# kubelets try again, but each of these has failed more than once, or can't succeed without a change
FAILED_WAITS = (
    "CrashLoopBackOff", "CreateContainerConfigError", "CreateContainerError", "ErrImageNeverPull", "ImagePullBackOff",
    "InvalidImageName", "RunContainerError",
)  # fmt: skip
# the kubelet's words for a container that is only waiting for its turn
NORMAL_WAITS = ("ContainerCreating", "PodInitializing", "")
# events that repeat what the status of a pod says
REPEATED = ("BackOff", "FailedScheduling")
# a crash may be a race at the start, so only a repeated one ends the wait
CRASHES = 3


@dataclass(frozen=True, slots=True)
class PodState:
    """One pod. `lines` say why it isn't ready, in the cluster's own words.

    `phase` is pending, starting, waiting, ready, complete, failing or ending. `crashed` is the container that ended,
    "" if none did, and `exit_code` its code.
    """

    name: str
    phase: str
    node: str = ""
    lines: tuple[str, ...] = ()
    restarts: int = 0
    crashed: str = ""
    exit_code: int | None = None
    has_previous: bool = False
    is_stuck: bool = False


@dataclass(frozen=True, slots=True)
class ClusterService:
    """One service of the plan: its pods, how many of them are ready, and how many the cluster should run.

    `state` is ready, complete, absent, or the phase of the pod that is behind. `reason` is the first line that says
    why, and "" for a service that works.
    """

    service: str
    role: str
    state: str
    ready: int
    wanted: int
    pods: tuple[PodState, ...] = ()
    lines: tuple[str, ...] = ()

    @property
    def is_working(self) -> bool:
        return self.state in ("ready", "complete")

    @property
    def is_stuck(self) -> bool:
        """Whether waiting longer can't help."""
        return self.state == "failed" or (not self.is_working and any(pod.is_stuck for pod in self.pods))

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(pod.node for pod in self.pods if pod.node))

    @property
    def restarts(self) -> int:
        return sum(pod.restarts for pod in self.pods)

    @property
    def reason(self) -> str:
        return "" if self.is_working or not self.lines else self.lines[0]


def read_services(plan: Plan, objects: Sequence[Object], events: Sequence[Object] = ()) -> tuple[ClusterService, ...]:
    """Returns the services in the order of the plan. `objects` are pods, Deployments, Jobs and claims of the stack."""
    return tuple(_read_service(service, objects, events) for service in plan.services)


def _read_service(service: Service, objects: Sequence[Object], events: Sequence[Object]) -> ClusterService:
    own = [one for one in objects if one["metadata"].get("labels", {}).get(NAME) == service.name]
    if service.role == "download":
        return _read_job(service, own, objects, events)
    workload = next((one for one in own if one["kind"] == "Deployment"), None)
    found = [one for one in own if one["kind"] == "Pod"]
    pods = tuple(_read_pod(one, objects, events) for one in found)
    size = service.group.size if service.group else 1
    # an autoscaler changes the number in the cluster, and the plan doesn't know it
    wanted = workload["spec"].get("replicas", 1) if workload else service.replicas * size
    ready = sum(pod.phase == "ready" for pod in pods)
    if workload is None and not pods:
        return ClusterService(
            service.name, service.role, "absent", 0, wanted, (), (f"no pod exists for {service.name}",)
        )
    lines = tuple(dict.fromkeys(line for pod in pods for line in pod.lines))
    status = workload.get("status", {}) if workload else {}
    refused = tuple(
        one.get("message", "") for one in status.get("conditions", ())
        if one["type"] == "ReplicaFailure" and one["status"] == "True"
    )  # fmt: skip
    if ready >= wanted and (workload is None or _is_rolled_out(workload, wanted)):
        return ClusterService(service.name, service.role, "ready", ready, wanted, pods)
    behind = next((pod.phase for pod in sorted(pods, key=_rank) if pod.phase not in ("ready", "ending")), "starting")
    state = "pending" if refused and not pods else behind
    return ClusterService(service.name, service.role, state, ready, wanted, pods, (*refused, *lines))


def _rank(pod: PodState) -> int:
    return ("failing", "pending", "waiting", "starting", "ending", "complete", "ready").index(pod.phase)


def _is_rolled_out(workload: Object, wanted: int) -> bool:
    status = workload.get("status", {})
    seen, updated, available, total = (
        int(status.get(name, 0)) for name in ("observedGeneration", "updatedReplicas", "availableReplicas", "replicas")
    )
    return seen >= workload["metadata"].get("generation", 0) and updated >= wanted and total <= updated <= available


def _read_job(
    service: Service, own: list[Object], objects: Sequence[Object], events: Sequence[Object]
) -> ClusterService:
    jobs = sorted(
        (one for one in own if one["kind"] == "Job"), key=lambda one: str(one["metadata"].get("creationTimestamp", ""))
    )
    if not jobs:
        return ClusterService(service.name, service.role, "absent", 0, 1, (), (f"no pod exists for {service.name}",))
    # a changed list of models makes another Job, and the old one may remain
    job = jobs[-1]
    name = job["metadata"]["name"]
    pods = tuple(
        _read_pod(one, objects, events) for one in own
        if one["kind"] == "Pod" and any(owner["name"] == name for owner in one["metadata"].get("ownerReferences", ()))
    )  # fmt: skip
    conditions = {one["type"]: one for one in job.get("status", {}).get("conditions", ()) if one["status"] == "True"}
    if "Complete" in conditions:
        return ClusterService(service.name, service.role, "complete", 1, 1, pods)
    lines = tuple(dict.fromkeys(line for pod in pods for line in pod.lines))
    if "Failed" in conditions:
        failed = conditions["Failed"]
        text = f"{failed.get('reason', 'Failed')}: {failed.get('message', '')}".rstrip(": ")
        return ClusterService(service.name, service.role, "failed", 0, 1, pods, (*lines, text))
    if not pods:
        lines = tuple(_warnings(job, events))
    state = next((pod.phase for pod in sorted(pods, key=_rank)), "pending")
    return ClusterService(service.name, service.role, state, 0, 1, pods, lines)


def _read_pod(pod: Object, objects: Sequence[Object], events: Sequence[Object]) -> PodState:
    name, node, status = pod["metadata"]["name"], pod["spec"].get("nodeName", ""), pod.get("status", {})
    conditions = {one["type"]: one for one in status.get("conditions", ())}
    containers = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    restarts = sum(one.get("restartCount", 0) for one in containers)
    if pod["metadata"].get("deletionTimestamp"):
        return PodState(name, "ending", node, (), restarts)
    if status.get("phase") == "Succeeded":
        return PodState(name, "complete", node, (), restarts)
    if conditions.get("Ready", {}).get("status") == "True":
        return PodState(name, "ready", node, (), restarts)
    scheduled = conditions.get("PodScheduled", {})
    if not node:
        message = (scheduled.get("message", ""),) if scheduled.get("status") == "False" else ()
        return PodState(name, "pending", "", (*filter(None, message), *_claim_problems(pod, objects, events)), restarts)

    lines: list[str] = []
    # an evicted pod has no containers any more
    if status.get("phase") == "Failed" and status.get("reason"):
        lines.append(f"{status['reason']}: {status.get('message', '')}")
    crashed, code, has_previous, stuck = "", None, False, False
    for one in containers:
        waiting = one.get("state", {}).get("waiting", {})
        reason = waiting.get("reason", "")
        if waiting and reason not in NORMAL_WAITS:
            lines.append(f"{reason}: {waiting.get('message', '')}".rstrip(": "))
            stuck |= reason in FAILED_WAITS and (reason != "CrashLoopBackOff" or one.get("restartCount", 0) >= CRASHES)
        before = one.get("lastState", {}).get("terminated")
        ended = one.get("state", {}).get("terminated") or before
        if ended and ended.get("exitCode", 0) and not one.get("ready"):
            crashed, code, has_previous = (
                one["name"],
                ended["exitCode"],
                bool(before) and not one.get("state", {}).get("terminated"),
            )
            lines.append(f"container {one['name']} ended: {ended.get('reason', 'Error')}, exit code {code}")
    # the newest warning explains a wait, such as the answer of the registry, or of a probe
    lines += _warnings(pod, events)
    is_failing = stuck or bool(crashed) or status.get("phase") == "Failed"
    is_waiting = any(one.get("state", {}).get("running") for one in status.get("initContainerStatuses", ()))
    phase = "failing" if is_failing else "waiting" if is_waiting else "starting"
    return PodState(name, phase, node, tuple(dict.fromkeys(lines)), restarts, crashed, code, has_previous, stuck)


def _claim_problems(pod: Object, objects: Sequence[Object], events: Sequence[Object]) -> Iterator[str]:
    """Why the claims of a pod have no volume."""
    names = {
        one["persistentVolumeClaim"]["claimName"]
        for one in pod["spec"].get("volumes", ())
        if "persistentVolumeClaim" in one
    }
    for one in objects:
        is_own = one["kind"] == "PersistentVolumeClaim" and one["metadata"]["name"] in names
        if is_own and one.get("status", {}).get("phase") == "Pending":
            yield from (
                f"claim {one['metadata']['name']}: {text}" for text in _warnings(one, events, ("FailedBinding",))
            )


def _warnings(one: Object, events: Iterable[Object], more: Sequence[str] = ()) -> list[str]:
    """The newest event about the object that warns, or whose reason is in `more`."""
    uid = one["metadata"].get("uid")
    own = [event for event in events if event.get("involvedObject", {}).get("uid") == uid]
    # both repeat what the pod's status says
    warnings = [event for event in own if event.get("type") == "Warning" and event.get("reason") not in REPEATED]
    found = [*warnings, *(event for event in own if event.get("reason") in more)]
    newest = max(found, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default=None)
    return [newest.get("message", "").strip()] if newest else []
