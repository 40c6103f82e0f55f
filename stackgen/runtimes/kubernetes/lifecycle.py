"""Starts, observes and deletes a stack in a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from stackgen.errors import StartError
from stackgen.kubernetes.names import INSTANCE, MANAGER
from stackgen.plan import Plan
from stackgen.runtimes.kubernetes.kubectl import CHANGE_LIMIT, Kubectl
from stackgen.runtimes.kubernetes.states import ClusterService, read_services

__all__ = ["CLAIMS", "KINDS", "apply", "delete", "observe", "selector", "wait_until_ready"]

# seconds between two looks; a look is two requests
INTERVAL = 2.0
WORKLOADS = "pods,deployments.apps,jobs.batch,persistentvolumeclaims"
CLAIMS = "persistentvolumeclaims"
# what templates/kubernetes writes: a user may not be allowed to list other kinds. Workloads come first, because nothing
# may restart while the keys and policies of its pods go
KINDS = (
    "scaledobjects.keda.sh", "horizontalpodautoscalers.autoscaling", "deployments.apps",
    "leaderworkersets.leaderworkerset.x-k8s.io", "jobs.batch", "services", "poddisruptionbudgets.policy",
    "resourceclaimtemplates.resource.k8s.io", "networkpolicies.networking.k8s.io", "podmonitors.monitoring.coreos.com",
    "servicemonitors.monitoring.coreos.com", "prometheusrules.monitoring.coreos.com", "configmaps", "secrets", CLAIMS,
)  # fmt: skip


def selector(stack: str) -> tuple[str, str]:
    """The option of kubectl that selects the objects of a stack."""
    return "--selector", f"{INSTANCE}={stack},{MANAGER}=stackgen"


def apply(cluster: Kubectl, manifests: Path) -> str:
    """Applies the folder of manifests on the server. Returns what kubectl printed.

    Raises StartError if the cluster refuses an object. The other objects are applied, and applying again is harmless.
    """
    try:
        return cluster.apply("--kustomize", str(manifests), limit=CHANGE_LIMIT)
    except StartError as error:
        error.hint = _apply_hint(error.output)
        raise


def _apply_hint(text: str) -> str:
    if "no matches for kind" in text:
        return (
            "the cluster does not support this kind: install its operator (LeaderWorkerSet, prometheus-operator, "
            "KEDA), or remove the setting from stack.yaml. For PodDisruptionBudget, use Kubernetes 1.21 or newer"
        )
    if "conflict" in text:
        return (
            "another program has changed these fields. To find it, run `kubectl get KIND NAME --show-managed-fields "
            "-o yaml`. If the stack's values are right, run `kubectl apply --server-side --field-manager "
            "stackgen --force-conflicts -k kubernetes`"
        )
    if "immutable" in text or "Forbidden: updates to" in text:
        return "this field can't change: delete the object (`kubectl delete KIND NAME`), and run `stackgen up` again"
    return "correct stack.yaml, and run `stackgen up` again. Accepted objects stay in the cluster"


def observe(cluster: Kubectl, plan: Plan) -> tuple[ClusterService, ...]:
    """Returns the states of all services of the plan. Raises MachineError if the cluster does not answer."""
    objects = cluster.read(WORKLOADS, *selector(plan.name))
    # events carry no labels of the stack
    return read_services(plan, objects, cluster.read("events"))


def wait_until_ready(
    cluster: Kubectl, plan: Plan, progress: Callable[[str, str], None], timeout: float | None
) -> tuple[ClusterService, ...]:
    """Waits until all services are ready. `timeout` is in seconds; None waits as long as a service may become ready.

    Raises StartError if a service can't become ready without a change, or after `timeout`.
    """
    end = time.monotonic() + timeout if timeout else None
    shown: dict[str, str] = {}
    while True:
        services = observe(cluster, plan)
        for one in services:
            phase = f"{one.state} {one.ready}/{one.wanted}" + (f": {one.reason}" if one.reason else "")
            # the display knows these words
            phase = one.state if one.is_working else phase
            if shown.get(one.service) != phase:
                shown[one.service] = phase
                progress(one.service, phase)
        waiting = [one for one in services if not one.is_working]
        if not waiting:
            return services
        if stuck := [one for one in waiting if one.is_stuck]:
            raise _fail("can't become ready", stuck)
        if end is not None and time.monotonic() >= end:
            raise _fail(f"not ready after {timeout:.0f} seconds", waiting)
        time.sleep(INTERVAL)


def _fail(what: str, services: list[ClusterService]) -> StartError:
    rows = "".join(
        f"\n  {one.service} ({one.ready}/{one.wanted}, {one.state}){': ' if one.reason else ''}{one.reason}"
        for one in services
    )
    return StartError(
        f"{what}:{rows}",
        "run `stackgen diagnose`, which explains the cause. Applied objects keep running until `stackgen down` "
        "deletes them",
    )


def delete(cluster: Kubectl, stack: str, *, claims: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Deletes what has the labels of the stack. Returns the deleted objects, and the claims that stay, as KIND/NAME."""
    # a cluster without an operator lacks its kinds
    known = cluster.kinds()
    kinds = [one for one in KINDS if one in known and (claims or one != CLAIMS)]
    labels = selector(stack)
    found = cluster.run("get", ",".join(kinds), *labels, "--output", "name", "--ignore-not-found").split()
    if found:
        # --wait=false: a pod ends within its grace period, which may be hours for long answers
        cluster.run("delete", *dict.fromkeys(found), "--ignore-not-found", "--wait=false", limit=CHANGE_LIMIT)
    kept = () if claims else cluster.run("get", CLAIMS, *labels, "--output", "name").split()
    return tuple(dict.fromkeys(found)), tuple(kept)
