"""Rules about objects and what they refer to: names, selectors, budgets, autoscalers, Jobs and LeaderWorkerSets.

Sources: Kubernetes 1.37, `pkg/apis/apps/validation`, `pkg/apis/batch/validation` and apimachinery
`pkg/util/validation` (names); LeaderWorkerSet 0.10.0, `pkg/webhooks`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from stackgen.kubernetes.rules.finding import Finding, Manifests, as_dict, as_list, labels_match

__all__ = [
    "find_bad_groups", "find_bad_names", "find_blocking_budgets", "find_empty_selectors", "find_job_restarts",
    "find_large_config_maps", "find_lost_target_ports", "find_missing_references", "find_replica_conflicts",
    "find_selector_mismatches", "find_surges", "find_twins",
]  # fmt: skip

SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
SERVICE_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
MAX_CONFIG_MAP = 2**20
GPU = re.compile(r".*/gpu")
# names of what a volume or variable refers to: place in the volume, kind of the object
VOLUME_SOURCES = (("configMap", "name", "ConfigMap"), ("secret", "secretName", "Secret"),
                  ("persistentVolumeClaim", "claimName", "PersistentVolumeClaim"))  # fmt: skip


def _name(one: Any) -> str:
    return str(as_dict(one.get("metadata")).get("name", ""))


def _spec(one: Any) -> Any:
    return as_dict(one.get("spec"))


def find_bad_names(manifests: Manifests) -> Iterator[Finding]:
    """Names of objects are DNS names; keys and values of labels have a form of their own."""
    for one in manifests.objects:
        name, is_service = _name(one), one.get("kind") == "Service"
        if len(name) > 253 or not (SERVICE_NAME if is_service else SUBDOMAIN).fullmatch(name):
            yield manifests.finding("name", one, "metadata.name", f"{name!r} is not a valid name")
        metadata = as_dict(one.get("metadata"))
        places = [("metadata", metadata.get("labels"), metadata.get("annotations"))]
        places += [(pod.path, pod.labels, pod.annotations) for pod in manifests.pods if pod.owner is one]
        for path, labels, notes in places:
            for key in (*as_dict(labels), *as_dict(notes)):
                prefix, slash, rest = str(key).rpartition("/")
                if not LABEL_NAME.fullmatch(rest) or (slash and not SUBDOMAIN.fullmatch(prefix)):
                    yield manifests.finding("name", one, path, f"{key!r} is not a valid key for a label or annotation")
            for key, value in as_dict(labels).items():
                if not LABEL_VALUE.fullmatch(str(value)):
                    yield manifests.finding("name", one, path, f"{value!r} is not a valid value for the label {key}")


def find_twins(manifests: Manifests) -> Iterator[Finding]:
    """Two objects of one kind have different names."""
    named = Counter((str(one.get("kind")), _name(one)) for one in manifests.objects)
    for one in manifests.objects:
        if named.pop((str(one.get("kind")), _name(one)), 1) > 1:
            yield manifests.finding("twins", one, "metadata.name", "exists twice")


def find_selector_mismatches(manifests: Manifests) -> Iterator[Finding]:
    """The selector of a workload selects the pods that it makes."""
    for pod in manifests.pods:
        selector = as_dict(_spec(pod.owner).get("selector")).get("matchLabels")
        if pod.owner.get("kind") in ("Deployment", "StatefulSet", "DaemonSet") and not labels_match(
            selector, pod.labels
        ):
            yield manifests.finding("selector", pod.owner, "spec.selector.matchLabels",
                                    "the selector does not match the labels of the pods")  # fmt: skip


def find_empty_selectors(manifests: Manifests) -> Iterator[Finding]:
    """Services, budgets and monitors select at least one pod."""
    for one in manifests.of_kind("Service", "PodDisruptionBudget", "PodMonitor"):
        selector = _spec(one).get("selector")
        wanted = selector if one.get("kind") == "Service" else as_dict(selector).get("matchLabels")
        if wanted and not any(labels_match(wanted, labels) for labels in _all_labels(manifests)):
            yield manifests.finding("selects-nothing", one, "spec.selector", "selects no pod of these manifests")


def _all_labels(manifests: Manifests) -> Iterator[dict[str, str]]:
    for pod in manifests.pods:
        # the controller adds these labels
        added: dict[str, str] = {}
        if pod.owner.get("kind") == "LeaderWorkerSet":
            added["leaderworkerset.sigs.k8s.io/name"] = _name(pod.owner)
            if pod.path.endswith("leaderTemplate"):
                added["leaderworkerset.sigs.k8s.io/worker-index"] = "0"
        yield {**pod.labels, **added}


def find_lost_target_ports(manifests: Manifests) -> Iterator[Finding]:
    """The port that a Service or monitor names is a port of a pod that it selects."""
    places = list(zip(manifests.pods, _all_labels(manifests), strict=True))
    for one in manifests.of_kind("Service", "PodMonitor"):
        is_service = one.get("kind") == "Service"
        selector = _spec(one).get("selector")
        wanted = selector if is_service else as_dict(selector).get("matchLabels")
        pods = [pod for pod, labels in places if labels_match(wanted, labels)]
        names = {
            as_dict(port).get("name")
            for pod in pods for _, container in pod.containers() for port in as_list(container.get("ports"))
        }  # fmt: skip
        for entry in as_list(_spec(one).get("ports" if is_service else "podMetricsEndpoints")):
            port = as_dict(entry).get("targetPort" if is_service else "port")
            if pods and isinstance(port, str) and port not in names:
                yield manifests.finding("target-port", one, "spec", f"no selected pod has a port {port!r}")


def find_missing_references(manifests: Manifests) -> Iterator[Finding]:
    """ConfigMaps, Secrets, claims and resource claims that pods name are part of the manifests.

    Only for kinds that the manifests have at all: others may exist in the cluster.
    """
    known = {f"{one.get('kind')}/{_name(one)}" for one in manifests.objects}
    kinds = {name.partition("/")[0] for name in known}
    known |= manifests.existing
    for pod in manifests.pods:
        for path, kind, name, optional in _references(pod):
            if kind in kinds and f"{kind}/{name}" not in known and not optional:
                yield manifests.finding(
                    "reference", pod.owner, path, f"refers to the {kind} {name!r}, which does not exist"
                )


def _references(pod: Any) -> Iterator[tuple[str, str, str, bool]]:
    for volume in map(as_dict, as_list(pod.spec.get("volumes"))):
        path = f"{pod.path}.spec.volumes"
        for field, key, kind in VOLUME_SOURCES:
            if field in volume:
                source = as_dict(volume[field])
                yield path, kind, str(source.get(key)), bool(source.get("optional"))
        for source in map(as_dict, as_list(as_dict(volume.get("projected")).get("sources"))):
            for field, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
                if field in source:
                    content = as_dict(source[field])
                    yield path, kind, str(content.get("name")), bool(content.get("optional"))
    for claim in map(as_dict, as_list(pod.spec.get("resourceClaims"))):
        if name := claim.get("resourceClaimTemplateName"):
            yield f"{pod.path}.spec.resourceClaims", "ResourceClaimTemplate", str(name), False
    for path, container in pod.containers():
        for entry in map(as_dict, as_list(container.get("env"))):
            source = as_dict(as_dict(entry.get("valueFrom")).get("secretKeyRef"))
            if source:
                yield f"{path}.env", "Secret", str(source.get("name")), bool(source.get("optional"))


def find_blocking_budgets(manifests: Manifests) -> Iterator[Finding]:
    """A budget that allows no pod to stop blocks the drain of a node forever."""
    replicas = {_name(one): _spec(one).get("replicas", 1) for one in manifests.of_kind("Deployment", "LeaderWorkerSet")}
    for one in manifests.of_kind("PodDisruptionBudget"):
        spec = _spec(one)
        least, most = spec.get("minAvailable"), spec.get("maxUnavailable")
        running = replicas.get(_name(one))
        if most in (0, "0", "0%") or least == "100%" or (isinstance(least, int) and running and least >= running):
            yield manifests.finding("budget", one, "spec", "does not let any pod stop, so no node can be drained")


def find_surges(manifests: Manifests) -> Iterator[Finding]:
    """A new pod next to the old one waits for GPUs that the old one has; without either limit, nothing moves."""
    for one in manifests.of_kind("Deployment"):
        strategy = as_dict(_spec(one).get("strategy"))
        if strategy.get("type", "RollingUpdate") == "Recreate":
            continue
        limits = as_dict(strategy.get("rollingUpdate"))
        # 25 % is Kubernetes' own default for both
        surge, unavailable = limits.get("maxSurge", "25%"), limits.get("maxUnavailable", "25%")
        if surge in (0, "0%") and unavailable in (0, "0%"):
            yield manifests.finding("rollout", one, "spec.strategy.rollingUpdate",
                                    "maxSurge and maxUnavailable are both 0, so no pod can be replaced")  # fmt: skip
        elif surge not in (0, "0%") and _has_gpus(manifests, one):
            message = f"maxSurge is {surge}, so the new pod waits for the GPUs of the old pod: set maxSurge to 0"
            yield manifests.finding("rollout", one, "spec.strategy.rollingUpdate", message)


def _has_gpus(manifests: Manifests, one: Any) -> bool:
    return any(
        as_list(pod.spec.get("resourceClaims")) or any(map(GPU.fullmatch, as_dict(resources.get("limits"))))
        for pod in manifests.pods if pod.owner is one
        for _, container in pod.containers() for resources in [as_dict(container.get("resources"))]
    )  # fmt: skip


def find_job_restarts(manifests: Manifests) -> Iterator[Finding]:
    """A Job's pods are not restarted always, which is the default of other pods."""
    for pod in manifests.pods:
        if pod.owner.get("kind") == "Job" and pod.spec.get("restartPolicy", "Always") not in ("Never", "OnFailure"):
            yield manifests.finding("job", pod.owner, f"{pod.path}.spec.restartPolicy", "must be Never or OnFailure")


def find_replica_conflicts(manifests: Manifests) -> Iterator[Finding]:
    """If an object with an autoscaler sets `replicas`, each `kubectl apply` resets the autoscaler's number."""
    fixed = {(one.get("kind"), _name(one)) for one in manifests.objects if "replicas" in _spec(one)}
    fields = {"HorizontalPodAutoscaler": ("minReplicas", "maxReplicas"),
              "ScaledObject": ("minReplicaCount", "maxReplicaCount")}  # fmt: skip
    for one in manifests.of_kind(*fields):
        target = as_dict(_spec(one).get("scaleTargetRef"))
        if (target.get("kind", "Deployment"), target.get("name")) in fixed:
            yield manifests.finding(
                "autoscaler",
                one,
                "spec.scaleTargetRef",
                "the target sets `replicas`, so each apply would undo the scaling",
            )
        least, most = (_spec(one).get(field, 1) for field in fields[str(one["kind"])])
        if isinstance(least, int) and isinstance(most, int) and least > most:
            yield manifests.finding(
                "autoscaler", one, "spec", f"the minimum number of replicas ({least}) is above the maximum ({most})"
            )


def find_bad_groups(manifests: Manifests) -> Iterator[Finding]:
    """What the webhook of LeaderWorkerSets refuses, and the policy with which both nodes wait for each other."""
    rule = "leader-worker-set"
    for one in manifests.of_kind("LeaderWorkerSet"):
        limits = as_dict(as_dict(_spec(one).get("rolloutStrategy")).get("rollingUpdateConfiguration"))
        surge, unavailable = str(limits.get("maxSurge", 0)), str(limits.get("maxUnavailable", 1))
        place = "spec.rolloutStrategy.rollingUpdateConfiguration"
        if surge in ("0", "0%") and unavailable in ("0", "0%"):
            yield manifests.finding(
                rule, one, place, "maxSurge and maxUnavailable are both 0, so no pod can be replaced"
            )
        if re.fullmatch(r"\d+%", surge) and int(surge[:-1]) > 100:
            yield manifests.finding(rule, one, place, f"maxSurge {surge} is above 100%")
        size = as_dict(_spec(one).get("leaderWorkerTemplate")).get("size", 1)
        if isinstance(size, int) and size < 1:
            yield manifests.finding(rule, one, "spec.leaderWorkerTemplate.size", "must be at least 1")
        if _spec(one).get("startupPolicy") == "LeaderReady" and isinstance(size, int) and size > 1:
            message = (
                "with LeaderReady, the other nodes wait for the first node, which is ready only after the others: use "
                "LeaderCreated"
            )
            yield manifests.finding(rule, one, "spec.startupPolicy", message)
        if any(_name(one) == _name(other) for other in manifests.of_kind("Service")):
            message = (
                "a Service has the same name as this LeaderWorkerSet, but the LeaderWorkerSet controller creates its "
                "own Service with this name: rename one of them"
            )
            yield manifests.finding(rule, one, "metadata.name", message)


def find_large_config_maps(manifests: Manifests) -> Iterator[Finding]:
    """A ConfigMap or Secret has at most 1 MiB."""
    for one in manifests.of_kind("ConfigMap", "Secret"):
        size = sum(len(str(value)) for field in ("data", "binaryData") for value in as_dict(one.get(field)).values())
        if size > MAX_CONFIG_MAP:
            yield manifests.finding("size", one, "data", f"has {size} bytes, but at most 1 MiB is allowed")
