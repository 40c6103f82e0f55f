"""Collects facts about a cluster for doctor. What this user may not read stays unknown, with the server's reason.

Fields: Kubernetes 1.37, `core/v1` Node and ResourceQuota, `storage.k8s.io/v1` StorageClass.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import yaml

from stackgen.doctor.cluster_facts import ClusterFacts, Node, Quota, StorageClass
from stackgen.errors import MachineError, StartError
from stackgen.kubernetes.names import INSTANCE, MANAGER
from stackgen.kubernetes.rules.resources import parse_quantity
from stackgen.plan import Plan
from stackgen.render.templating import RenderedFile
from stackgen.runtimes.kubernetes.kubectl import Kubectl

__all__ = ["collect_cluster_facts"]

T = TypeVar("T")
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
# a pod that has ended uses nothing
ENDED = ("Succeeded", "Failed")


def collect_cluster_facts(cluster: Kubectl, plan: Plan, files: Iterable[RenderedFile]) -> ClusterFacts:
    """Returns what this user can read. Raises MachineError if the cluster does not answer at all."""
    refused: dict[str, str] = {}

    def read(name: str, look: Callable[[], T]) -> T | None:
        try:
            return look()
        except (MachineError, StartError) as error:
            refused[name] = " ".join(error.message.split())
            return None

    # the only request that every user may make: if it fails, nothing else works
    version = _version(json.loads(cluster.run("get", "--raw", "/version")))
    if version is None:
        refused["version"] = "the server reports no version"
    exists, labels = _namespace(cluster, refused)
    own = f"{INSTANCE}={plan.name},{MANAGER}=stackgen"
    return ClusterFacts(
        context=cluster.context,
        namespace=cluster.namespace,
        wanted=tuple(_objects(files)),
        version=version,
        versions=read("versions", lambda: tuple(cluster.run("api-versions").split())),
        nodes=read("nodes", lambda: _nodes(cluster, plan)),
        classes=read("classes", lambda: tuple(map(_class, cluster.read("storageclasses")))),
        claims=read("claims", lambda: {
            one["metadata"]["name"]: one.get("status", {}).get("phase", "") for one in cluster.read("pvc")}),
        exists=exists,
        labels=labels,
        quotas=read("quotas", lambda: tuple(map(_quota, cluster.read("resourcequotas")))),
        is_running=read("pods", lambda: bool(cluster.read("pods", "--selector", own))),
        refused=refused,
    )  # fmt: skip


def _version(answer: Any) -> tuple[int, int] | None:
    """Major and minor version of the server; None if it was built without them, as test builds are."""
    texts = (f"{answer.get('major')}.{answer.get('minor')}", str(answer.get("gitVersion", "")).removeprefix("v"))
    found = next(filter(None, (re.match(r"([1-9]\d*)\.(\d+)", text) for text in texts)), None)
    return (int(found[1]), int(found[2])) if found else None


def _objects(files: Iterable[RenderedFile]) -> Iterable[dict[str, Any]]:
    for file in files:
        # the kustomization itself is no object of the cluster
        if file.path.endswith(".yaml") and "/" not in file.path and file.path != "kustomization.yaml":
            found = yaml.load_all(file.text, yaml.CSafeLoader)
            yield from (one for one in found if isinstance(one, dict) and "kind" in one and "metadata" in one)


def _namespace(cluster: Kubectl, refused: dict[str, str]) -> tuple[bool | None, dict[str, str] | None]:
    try:
        text = cluster.run("get", "namespace", cluster.namespace, "--ignore-not-found", "--output", "json")
    except (MachineError, StartError) as error:
        refused["namespace"] = " ".join(error.message.split())
        return None, None
    return (True, json.loads(text)["metadata"].get("labels", {})) if text.strip() else (False, None)


def _nodes(cluster: Kubectl, plan: Plan) -> tuple[Node, ...]:
    found = cluster.read("nodes")
    try:
        used = _used(cluster.read("pods", "--all-namespaces"), cluster.namespace, plan.name)
    # the right to read the pods of others is rare
    except (MachineError, StartError):
        used = None
    return tuple(_node(one, used) for one in found)


def _used(pods: list[dict[str, Any]], namespace: str, stack: str) -> dict[str, Counter[str]]:
    used: dict[str, Counter[str]] = {}
    for pod in pods:
        node, labels = pod["spec"].get("nodeName"), pod["metadata"].get("labels", {})
        is_own = pod["metadata"]["namespace"] == namespace and labels.get(INSTANCE) == stack
        if not node or is_own or pod.get("status", {}).get("phase") in ENDED:
            continue
        for container in pod["spec"]["containers"]:
            for name, value in container.get("resources", {}).get("limits", {}).items():
                # a resource of a device plugin
                if "/" in name:
                    used.setdefault(node, Counter())[name] += int(parse_quantity(value) or 0)
    return used


def _node(one: dict[str, Any], used: dict[str, Counter[str]] | None) -> Node:
    name, spec, status = one["metadata"]["name"], one["spec"], one.get("status", {})
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", ()))
    return Node(
        name, status.get("allocatable", {}), one["metadata"].get("labels", {}),
        tuple((each["key"], each.get("value", ""), each["effect"]) for each in spec.get("taints", ())),
        ready and not spec.get("unschedulable"), None if used is None else used.get(name, {}),
    )  # fmt: skip


def _class(one: dict[str, Any]) -> StorageClass:
    is_default = one["metadata"].get("annotations", {}).get(DEFAULT_CLASS) == "true"
    return StorageClass(one["metadata"]["name"], one["provisioner"], is_default)


def _quota(one: dict[str, Any]) -> Quota:
    status = one.get("status", {})
    return Quota(one["metadata"]["name"], status.get("hard") or one["spec"].get("hard", {}), status.get("used", {}))
