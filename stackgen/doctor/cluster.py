"""Checks of a cluster: its version and kinds, GPUs, storage, Pod Security, and quotas.

Sources: Kubernetes 1.37, API reference: policy/v1 since 1.21, autoscaling/v2 since 1.23,
resource.k8s.io/v1 since 1.34; "Resource Quotas" (names of resources), "Pod Security Standards" (labels), "Storage
Classes" (the annotation of the default class). Access modes of drivers: kubernetes-csi.github.io/docs/drivers, and the
README of rancher/local-path-provisioner 0.0.37.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from stackgen.doctor.cluster_facts import ClusterFacts, Quota
from stackgen.doctor.cluster_nodes import fits, place
from stackgen.doctor.finding import DoctorInputs, Result, Results, fail, ok, unknown, warn
from stackgen.kubernetes.rules import find_mistakes
from stackgen.kubernetes.rules.resources import parse_quantity

__all__ = ["check_gpus", "check_kinds", "check_quota", "check_security", "check_storage", "check_version"]

# the versions of the server in which these groups appeared, and the programs that bring the others
SERVER = {"policy/v1": "1.21", "autoscaling/v2": "1.23", "resource.k8s.io/v1": "1.34"}
OPERATORS = {
    "leaderworkerset.x-k8s.io": (
        "install the controller of LeaderWorkerSet (lws.sigs.k8s.io), which starts models on several nodes"
    ),
    "monitoring.coreos.com": (
        "install the Prometheus operator, which reads PodMonitors and rules, or set `monitoring: false`"
    ),
    "keda.sh": "install KEDA, which scales models, or set `kubernetes.autoscaling: {by: hpa}`",
}
# drivers of disks, which one node mounts at a time
ONE_NODE = (
    "ebs.csi.aws.com", "disk.csi.azure.com", "diskplugin.csi.alibabacloud.com", "rancher.io/local-path",
)  # fmt: skip
OLDEST = (1, 25)
LEVEL = "pod-security.kubernetes.io/enforce"
RIGHT = "ask the cluster's administrator for permission to read this, or run `{}` yourself"
ON_DEMAND = "if the cluster starts nodes on demand, it may still start a node for the pod"


def _facts(inputs: DoctorInputs) -> ClusterFacts:
    return inputs.cluster or ClusterFacts("", "")


def _unread(facts: ClusterFacts, name: str, what: str, command: str) -> Result:
    return unknown(f"{what}: not checked", evidence=facts.refused.get(name, ""), fix=RIGHT.format(command))


def check_version(inputs: DoctorInputs) -> Results:
    """The server answers, and is one that the manifests are written for."""
    facts = _facts(inputs)
    if facts.problem:
        yield fail(f"the cluster was not checked: {facts.problem}", fix=facts.remedy)
        return
    if facts.version is None:
        yield _unread(facts, "version", "the version of the server", "kubectl version")
        return
    seen = f"Kubernetes {facts.version[0]}.{facts.version[1]} (context {facts.context})"
    if facts.version < OLDEST:
        yield warn(
            f"the server is older than {OLDEST[0]}.{OLDEST[1]}, and stackgen's manifests were not tested with it",
            evidence=seen, fix="use a newer cluster; older API servers don't enforce Pod Security",
        )  # fmt: skip
    else:
        yield ok("the server is new enough", evidence=seen)


def check_kinds(inputs: DoctorInputs) -> Results:
    """The server knows the version of every rendered object."""
    facts = _facts(inputs)
    if facts.versions is None:
        yield _unread(facts, "versions", "the kinds that the server supports", "kubectl api-versions")
        return
    wanted: dict[str, list[str]] = {}
    for one in facts.wanted:
        wanted.setdefault(one["apiVersion"], []).append(one["kind"])
    missing = {version: kinds for version, kinds in wanted.items() if version not in facts.versions}
    for version, kinds in missing.items():
        newer = f"use Kubernetes {SERVER[version]} or newer" if version in SERVER else "use a newer cluster"
        fix = OPERATORS.get(version.rpartition("/")[0], newer)
        yield fail(f"the server does not support {' and '.join(dict.fromkeys(kinds))} ({version})", fix=fix)
    if not missing:
        yield ok("the server supports the kinds of all manifests", evidence=", ".join(sorted(wanted)))


def _pods(facts: ClusterFacts) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Name, number and pod of each workload; the pods of a LeaderWorkerSet are alike for the scheduler."""
    for one in facts.wanted:
        spec = one.get("spec", {})
        name = one["metadata"]["name"]
        if one["kind"] in ("Deployment", "Job"):
            yield name, spec.get("replicas", 1), spec["template"]["spec"]
        elif one["kind"] == "LeaderWorkerSet":
            group = spec["leaderWorkerTemplate"]
            leader = group.get("leaderTemplate")
            if leader:
                yield name, spec.get("replicas", 1), leader["spec"]
            workers = group.get("size", 1) - bool(leader)
            yield name, spec.get("replicas", 1) * workers, group["workerTemplate"]["spec"]


def _requests(pod: Mapping[str, Any], which: str = "requests") -> dict[str, Decimal]:
    total: dict[str, Decimal] = defaultdict(Decimal)
    for container in pod["containers"]:
        for name, value in container.get("resources", {}).get(which, {}).items():
            total[name] += parse_quantity(value) or Decimal()
    return total


def check_gpus(inputs: DoctorInputs) -> Results:
    """Nodes offer the GPUs and other devices that the pods request, through a device plugin."""
    facts = _facts(inputs)
    wanted = [
        (name, resource, int(number), pod) for name, count, pod in _pods(facts)
        # only resources of device plugins have a domain
        for resource, number in _requests(pod).items() if "/" in resource for _ in range(count)
    ]  # fmt: skip
    if not wanted:
        return
    if facts.nodes is None:
        yield _unread(facts, "nodes", "the GPUs of the nodes", "kubectl describe nodes")
        return
    has_uses = all(node.used is not None for node in facts.nodes)
    for resource in dict.fromkeys(one[1] for one in wanted):
        own = [one for one in wanted if one[1] == resource]
        sizes = {node.name: int(parse_quantity(node.allocatable.get(resource, "0")) or 0) for node in facts.nodes}
        seen = ", ".join(f"{name}: {size}" for name, size in sizes.items() if size) or "no node offers it"
        if not any(sizes.values()):
            yield fail(
                f"no node offers {resource}", evidence=f"checked nodes: {len(sizes)}",
                fix=f"install the vendor's device plugin, and check `kubectl describe nodes`; {ON_DEMAND}",
            )  # fmt: skip
            continue
        placeable, told = [], set[str]()
        for name, _, amount, pod in own:
            if any(sizes[node.name] >= amount for node in facts.nodes if fits(node, pod)):
                placeable.append((name, amount, pod))
                continue
            if name in told:
                continue
            told.add(name)
            yield fail(
                f"no node that {name} may use has {amount} × {resource}", evidence=seen,
                fix="compare `kubernetes.gpus_per_node`, `node_selector` and `tolerations` with `kubectl describe "
                f"nodes`; {ON_DEMAND}",
            )  # fmt: skip
        unplaced = place(placeable, facts.nodes, resource)
        for name, count in unplaced.items():
            yield warn(
                f"{count} {'pod' if count == 1 else 'pods'} of {name} will wait for free {_describe(resource)}",
                evidence=seen, fix=f"free some of them, add a node, or lower `replicas`; {ON_DEMAND}",
            )  # fmt: skip
        # pods that have room if each is put in the right place, but a scheduler places each pod alone
        blocked = Counter[str]() if unplaced else place(placeable, facts.nodes, resource, spread=True)
        for name, count in blocked.items():
            others = " and ".join(dict.fromkeys(other for other, _, _ in placeable if other != name))
            yield warn(
                f"{count} {'pod' if count == 1 else 'pods'} of {name} may wait forever for free {_describe(resource)}: "
                f"the scheduler may put pods of {others} on nodes that {name} needs",
                evidence=seen, fix="label the nodes, and give each model its own `kubernetes.node_selector`, or add a "
                "node",
            )  # fmt: skip
        if not unplaced and not blocked and len(placeable) == len(own):
            if has_uses:
                yield ok(f"nodes have {resource} for all pods", evidence=seen)
            else:
                yield unknown(f"nodes have {resource} for all pods, if no other pod uses them", evidence=seen,
                              fix=RIGHT.format("kubectl get pods --all-namespaces"))  # fmt: skip


def _describe(resource: str) -> str:
    is_gpu = resource.endswith("/gpu") or "/mig-" in resource
    return f"{'GPUs' if is_gpu else 'devices'} ({resource})"


def check_storage(inputs: DoctorInputs) -> Results:
    """The claims get volumes that several nodes can mount."""
    facts = _facts(inputs)
    for claim in (one for one in facts.wanted if one["kind"] == "PersistentVolumeClaim"):
        name, spec = claim["metadata"]["name"], claim["spec"]
        if facts.claims and (phase := facts.claims.get(name)):
            text = f"the claim {name} exists and is {phase}"
            yield (
                ok(text)
                if phase == "Bound"
                else warn(text, fix=(f"run `kubectl describe pvc {name}`, which shows why"))
            )
            continue
        if facts.classes is None:
            yield _unread(facts, "classes", f"the storage class of the claim {name}", "kubectl get storageclass")
            continue
        chosen = spec.get("storageClassName")
        found = next((one for one in facts.classes if (one.name == chosen if chosen else one.is_default)), None)
        seen = f"classes: {', '.join(one.name for one in facts.classes) or 'none'}"
        fix = "set `kubernetes.weights.storage_class` and `kubernetes.cache.storage_class`"
        if found is None:
            what = f"no storage class {chosen}" if chosen else "no default storage class"
            yield fail(f"the cluster has {what} for the claim {name}", evidence=seen, fix=fix)
        elif "ReadWriteMany" not in spec.get("accessModes", ()):
            yield ok(f"the storage class {found.name} exists for the claim {name}", evidence=found.provisioner)
        elif found.provisioner in ONE_NODE:
            yield warn(
                f"the storage class {found.name} creates volumes for a single node, but several nodes use the claim "
                f"{name}",
                evidence=found.provisioner, fix=f"{fix} to a class for shared files, such as NFS or CephFS",
            )  # fmt: skip
        else:
            yield unknown(
                f"the storage class {found.name} exists for the claim {name}, but the cluster does not say whether "
                "several nodes can mount its volumes",
                evidence=found.provisioner, fix="look for ReadWriteMany in the documentation of the storage driver",
            )  # fmt: skip


def check_security(inputs: DoctorInputs) -> Results:
    """The Pod Security level of the namespace allows the pods."""
    facts = _facts(inputs)
    creates = any(one["kind"] == "Namespace" for one in facts.wanted)
    if facts.exists is False:
        if creates:
            yield ok(f"the manifests create the namespace {facts.namespace}", evidence="with the level `restricted`")
        else:
            fix = f"run `kubectl create namespace {facts.namespace}`, or remove `create_namespace: false`"
            yield fail(f"the namespace {facts.namespace} does not exist", fix=fix)
        return
    if facts.labels is None:
        yield _unread(facts, "namespace", "the Pod Security level", f"kubectl get namespace {facts.namespace}")
        return
    level = facts.labels.get(LEVEL, "")
    if level != "restricted":
        yield ok("the Pod Security level of the namespace allows the pods", evidence=level or "no level is set")
        return
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": facts.namespace, "labels": {LEVEL: level}}}
    others = [dict(one) for one in facts.wanted if one["kind"] != "Namespace"]
    before = {str(one) for one in find_mistakes(others)}
    found = [str(one) for one in find_mistakes([space, *others]) if str(one) not in before]
    for one in found:
        yield fail(f"the level `restricted` of the namespace forbids a pod: {one}",
                   fix="remove the setting from stack.yaml, or use a namespace with another level")  # fmt: skip
    if not found:
        yield ok("all pods satisfy the Pod Security level of the namespace", evidence=level)


def check_quota(inputs: DoctorInputs) -> Results:
    """The quotas of the namespace have room for the pods and claims."""
    facts = _facts(inputs)
    if facts.exists is False:
        return
    if facts.quotas is None:
        yield _unread(facts, "quotas", "the quotas of the namespace", "kubectl describe quota")
        return
    if facts.quotas and facts.is_running:
        # a running stack counts as used, and a rolling update replaces its pods one by one
        yield unknown("the quotas of the namespace: not checked, because the stack is already running",
                      fix="run `kubectl describe quota`, which shows what is left")  # fmt: skip
        return
    total = _wanted_total(facts)
    for quota in facts.quotas:
        yield from _compare(quota, total)
    if not facts.quotas:
        yield ok("the namespace has no quota")


def _wanted_total(facts: ClusterFacts) -> dict[str, Decimal]:
    total: dict[str, Decimal] = defaultdict(Decimal)
    for _, count, pod in _pods(facts):
        total["pods"] += count
        for prefix, which in (("requests.", "requests"), ("limits.", "limits")):
            for name, value in _requests(pod, which).items():
                total[prefix + name] += value * count
    for one in facts.wanted:
        if one["kind"] == "PersistentVolumeClaim" and one["metadata"]["name"] not in (facts.claims or ()):
            total["persistentvolumeclaims"] += 1
            total["requests.storage"] += parse_quantity(one["spec"]["resources"]["requests"]["storage"]) or Decimal()
    # the short names mean the requests
    for name in ("cpu", "memory"):
        total[name] = total[f"requests.{name}"]
    return total


def _compare(quota: Quota, total: Mapping[str, Decimal]) -> Results:
    known = [name for name in quota.hard if name in total]
    exceeded = False
    for name in known:
        hard, used = (parse_quantity(values.get(name, "0")) or Decimal() for values in (quota.hard, quota.used))
        if used + total[name] > hard:
            exceeded = True
            yield fail(
                f"the quota {quota.name} has no room for {name} of the stack",
                evidence=f"{quota.used.get(name, 0)} of {quota.hard[name]} used, and the stack requests "
                f"{total[name]:f}",
                fix=("request less, delete objects that nobody needs, or ask the cluster's administrator for a larger "
                 "quota"),
            )  # fmt: skip
    if known and not exceeded:
        yield ok(f"the quota {quota.name} has room for the stack", evidence=", ".join(known))
