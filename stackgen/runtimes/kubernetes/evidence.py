"""The evidence of a stack in a cluster: states, the cluster's messages, and the logs of pods that ended."""

from __future__ import annotations

import re
from contextlib import suppress

from stackgen.diagnose.evidence import LOG_LINES, Evidence, ServiceEvidence
from stackgen.errors import MachineError, StartError
from stackgen.plan import Plan
from stackgen.runtimes.kubernetes.kubectl import Kubectl
from stackgen.runtimes.kubernetes.lifecycle import observe
from stackgen.runtimes.kubernetes.states import ClusterService, PodState
from stackgen.spec import StackSpec

__all__ = ["collect_from_cluster"]

# Kubernetes 1.20 to 1.37, pkg/kubelet/prober/prober.go
PROBE = re.compile(r"(?:Startup|Readiness|Liveness) probe (?:failed|errored)")


def collect_from_cluster(cluster: Kubectl, plan: Plan, spec: StackSpec, secrets: tuple[str, ...]) -> Evidence:
    """Returns the evidence about all services. Raises MachineError if the cluster does not answer."""
    engines = {one.name: one.engine or "" for one in plan.services}
    services = tuple(_describe(cluster, one, engines[one.service]) for one in observe(cluster, plan))
    return Evidence(services, spec=spec, plan=plan, secrets=secrets)


def _describe(cluster: Kubectl, one: ClusterService, engine: str) -> ServiceEvidence:
    if one.is_working:
        # `exited` is what a finished download is called on one machine
        state, code = ("exited", 0) if one.state == "complete" else ("running", None)
        return ServiceEvidence(one.service, one.role, engine, state, "healthy", code, restarts=one.restarts)
    # kubelets put the output of a failed probe into an event, as Docker into the log of health checks
    probes = "\n".join(line for line in one.lines if PROBE.search(line))
    pod = next((pod for pod in one.pods if pod.crashed), None) or next((pod for pod in one.pods if pod.node), None)
    log = _read_log(cluster, pod) if pod else ""
    state = "exited" if pod and pod.crashed else "running" if pod else "created"
    code = pod.exit_code if pod else None
    error = "\n".join(one.lines)
    health = "starting" if state == "running" else ""
    return ServiceEvidence(
        one.service, one.role, engine, state, health, code, restarts=one.restarts, error=error, log=log,
        health_log=probes,
    )  # fmt: skip


def _read_log(cluster: Kubectl, pod: PodState) -> str:
    """The log of the container that ended, also if another one has started in its place."""
    words = [
        "logs",
        pod.name,
        f"--tail={LOG_LINES}",
        *(["--container", pod.crashed] if pod.crashed else ["--all-containers"]),
    ]
    # the kubelet may have removed the log, or not answer; the states still tell something
    with suppress(StartError, MachineError):
        return cluster.run(*words, *(["--previous"] if pod.has_previous else []))
    return ""
