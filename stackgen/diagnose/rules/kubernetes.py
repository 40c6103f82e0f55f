"""Rules for pods that a cluster does not start. The lines are the messages of Kubernetes' own programs.

They are read from the cluster's objects, and from the events that people paste next to a log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.rule import Finder, Hit, Rule, Variant
from stackgen.diagnose.rules.kubernetes_events import READ, search_events

__all__ = ["RULES"]

SCHEDULER = "The message comes from the scheduler of Kubernetes (pkg/scheduler/framework/plugins), "
REPRODUCED = "the failure was reproduced with Kubernetes 1.20."
# stackgen's own words, see `stackgen.runtimes.kubernetes.states`
ABSENT = re.compile(r"^no pod exists for \S+$")
# a taint of GPU nodes: that the other nodes have no GPU is then not the reason
GPU_TAINT = r"^(?!.*taint \{[^}]*(?:gpu|accelerator))"
# what shows the reason for any message of the scheduler
NODES = "run `kubectl describe nodes`, which shows the resources of each node and their usage"


def _finder(condition: str, *texts: str, after_start: bool = False, pasted: bool = False) -> Finder:
    """Returns a finder of lines among the messages about a service's pods. `condition` is for the rule's page.

    `after_start`: not during the first start, in which a service is not ready yet. `pasted`: also among the events in
    a pasted text.
    """
    patterns = tuple(re.compile(text) for text in texts)

    def find(evidence: Evidence) -> Iterator[Hit]:
        for service in evidence.services:
            hit = None if after_start and service.is_loading else _search(service, patterns)
            if hit or (pasted and not service.state and (hit := search_events(service, patterns))):
                yield hit

    find.__doc__ = f"{condition[:1].upper()}{condition[1:]}."
    return find


def _search(service: ServiceEvidence, patterns: tuple[re.Pattern[str], ...]) -> Hit | None:
    for line in service.error.splitlines():
        for pattern in patterns:
            if match := pattern.search(line):
                return Hit(service.service, (line.strip(),), match.groupdict(""), match[0])
    return None


def _find_absent(evidence: Evidence) -> Iterator[Hit]:
    """The namespace has no pod with the labels of the service."""
    absent = [one for one in evidence.services if ABSENT.search(one.error)]
    lines = tuple(one.error for one in absent)
    if len(absent) > 1 and len(absent) == len(evidence.services):
        # one finding for the whole stack: all lines say the same
        yield Hit("", lines[:4])
    else:
        yield from (Hit(one.service, (line,)) for one, line in zip(absent, lines, strict=True))


# nodes that the scheduler leaves out for another reason than their GPUs
EXCLUDED = re.compile(
    r"(?P<other>\d+) node\(s\) (?P<why>didn't (?:match|satisfy) (?:existing )?pods? (?:anti-)?affinity"
    r"(?:/anti-affinity)?(?: rules)?|were unschedulable|had volume node affinity conflict)"
)
_find_scarce = _finder("",
    rf"{GPU_TAINT}.*?Insufficient (?P<resource>(?:nvidia|amd|gpu\.intel)\.com/[\w-]+(?:\.[\w-]+)*)",
    pasted=True)  # fmt: skip


def _find_gpus(evidence: Evidence) -> Iterator[Hit]:
    """The scheduler reports `Insufficient` for a kind of GPU."""
    for hit in _find_scarce(evidence):
        found = EXCLUDED.search(hit.lines[0])
        yield replace(hit, values={**hit.values, **found.groupdict()}, variant=OTHERS) if found else hit


OTHERS = Variant(
    (),
    title="no node of the cluster has free GPUs and fits the pod",
    cause="some nodes have too few free GPUs of the kind `{resource}` for a pod of {service}. The scheduler excludes "
    "other nodes ({other}) for another reason: they {why}",
    fix="run `kubectl describe nodes`, which shows whether the excluded node has free GPUs; if it does, remove the "
    "reason why the scheduler excludes this node; for an affinity rule that binds the pod to another pod on a node "
    "without GPUs "
    "(`podAffinity`), "
    "start that pod on the GPU node as well; for a cordoned node, run `kubectl uncordon` if the reason for the cordon "
    "is gone; for a volume that exists only on another node or zone, use a volume that the GPU node can mount; "
    "otherwise wait for a GPU, add a node, or request fewer GPUs",
    condition="the scheduler leaves out other nodes for another reason",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-K001",
        title="no node of the cluster has enough free GPUs",
        cause="no node has enough free GPUs of the kind `{resource}` for a pod of {service}, so the pod stays Pending",
        fix="wait for a GPU, add a node, or request fewer GPUs (`gpus:` or `replicas:` in stack.yaml); " + NODES + "; "
        "if no node has `{resource}` at all, install the device plugin; if the model has more GPUs than one node, set "
        "`kubernetes.gpus_per_node` to the number of GPUs of a node; if other models use parts of the nodes that this "
        "model needs, give each model its own `kubernetes.node_selector`",
        source=SCHEDULER + "plugin NodeResourcesFit; " + REPRODUCED,
        explain="The scheduler needs all GPUs of a pod on one node: if two nodes have one free GPU each, a pod with "
        "two GPUs fits on neither. During a rollout, the new pod waits for the GPU of the old pod.",
        find=_find_gpus,
        variants=(OTHERS,),
    ),
    Rule(
        "SG-K002",
        title="the pod does not tolerate the taint of a node",
        cause="a pod of {service} does not tolerate the taint `{taint}` of some nodes, and no other node fits",
        fix="if the stack may use these nodes, add the taint to `kubernetes.tolerations` in stack.yaml, for example "
        "`tolerations: [{key: {key}, operator: Exists}]`, and run `stackgen up` again; for a pod that stackgen did not "
        "render, add the toleration to `tolerations` in the pod's manifest; if the taint begins with "
        "`node.kubernetes.io/`, repair the node instead of adding a toleration",
        source=SCHEDULER + "plugin TaintToleration. Kubernetes 1.20 writes `had taint {…}, that the pod didn't "
        "tolerate`, newer versions write `had untolerated taint {…}`; " + REPRODUCED,
        explain="Administrators and clouds taint GPU nodes so that only pods that need GPUs run there. Some clouds "
        "add the toleration only to pods that request a GPU, so helper pods without a GPU stay Pending.",
        find=_finder("the scheduler reports a taint that the pod does not tolerate",
                     r"had (?:untolerated )?taint \{(?P<taint>(?P<key>[^:}]*)[^}]*)\}", pasted=True),
    ),
    Rule(
        "SG-K003",
        title="a PersistentVolumeClaim has no volume",
        cause="a pod of {service} needs a PersistentVolumeClaim that has no volume, so the pod stays Pending",
        fix="run `kubectl get pvc,storageclass`, which shows the claims and the storage classes; set "
        "`kubernetes.weights.storage_class` (and `kubernetes.cache.storage_class`) in stack.yaml to a class that "
        "offers ReadWriteMany; you can't change the class of an existing claim: copy what you need from it before you "
        "replace it, because deleting a claim also deletes its weights",
        source=SCHEDULER + "plugin VolumeBinding, and from pkg/controller/volume; " + REPRODUCED,
        explain="A claim without a storage class uses the default class of the cluster, if there is one. Most "
        "classes for disks offer only ReadWriteOnce, which lets only one node mount the volume.",
        find=_finder("the scheduler or the volume controller reports a claim without a volume",
                     r"unbound (?:immediate )?PersistentVolumeClaims",
                     r"bound to non-existent persistentvolume", r"didn't find available persistent volumes to bind",
                     r'persistentvolumeclaim "(?:[^"]+)" not found', r"no persistent volumes available for this claim",
                     r'storageclass\.storage\.k8s\.io "(?:[^"]+)" not found', pasted=True),
    ),
    Rule(
        "SG-K004",
        title="the quota of the namespace is used up",
        cause="a pod of {service} exceeds the quota of the namespace: {what}",
        fix="run `kubectl describe quota`, which shows the limits and the usage; request less (`kubernetes.cpu`, "
        "`kubernetes.memory`, `gpus` or `replicas` of the model), delete objects that nobody needs, or ask the "
        "cluster's administrator for a larger quota",
        source="The message comes from the admission plugin ResourceQuota of Kubernetes; " + REPRODUCED,
        explain="Quotas count the requests of all pods in the namespace, including pods that are still Pending.",
        find=_finder("the API server refuses a pod because of a quota",
                     r"exceeded quota: (?P<what>.+?)\s*$", r"failed quota: (?P<what>.+?)\s*$", pasted=True),
    ),
    Rule(
        "SG-K005",
        title="no node matches the node selector of the pod",
        cause="no suitable node has the labels in `node_selector` for a pod of {service}",
        fix="compare `kubernetes.node_selector` in stack.yaml with `kubectl get nodes --show-labels`; for the label "
        "`nvidia.com/gpu.product`, install GPU feature discovery, which sets it",
        source=SCHEDULER + "plugin NodeAffinity; " + REPRODUCED,
        explain="A node must have every label of the selector, with exactly the given value.",
        find=_finder("the scheduler reports nodes that don't match the pod's selector",
                     r"^(?!.*volume node affinity conflict).*?"
                     r"node\(s\) didn't match (?:Pod's )?node (?:affinity|selector)",
                     pasted=True),
    ),
    Rule(
        "SG-K006",
        title="no node has enough free processors or memory",
        cause="no node has enough free {resource} for a pod of {service}, so the pod stays Pending",
        fix="request less (`kubernetes.cpu` and `kubernetes.memory` of the model in stack.yaml), or add a node; "
        "" + NODES,
        source=SCHEDULER + "plugin NodeResourcesFit; " + REPRODUCED,
        explain="The scheduler counts the resources that pods request, not the resources that they use. So a node "
        "can be full although it looks idle.",
        find=_finder("the scheduler reports `Insufficient` for processors, memory or storage",
                     r"Insufficient (?P<resource>cpu|memory|ephemeral-storage|pods)\b", pasted=True),
    ),
    Rule(
        "SG-K007",
        title="the namespace forbids the pod (Pod Security)",
        cause='the namespace has the Pod Security level "{level}", which forbids a pod of {service}',
        fix="remove the settings that need the forbidden fields from stack.yaml, for example `user: root` or mounts "
        "of folders (the message names the fields); or use a namespace with another level",
        source="The message comes from Pod Security admission of Kubernetes 1.25 and newer "
        "(k8s.io/pod-security-admission), and was not reproduced.",
        explain="stackgen renders pods for the level `restricted`, the strictest one.",
        find=_finder("the API server refuses a pod because of Pod Security",
                     r'violates PodSecurity "(?P<level>[^"]+)"', pasted=True),
    ),
    Rule(
        "SG-K008",
        title="a node can't pull an image",
        cause="a node can't pull the image of {service}",
        fix="run `kubectl describe pod`, which shows the registry's answer; for `not found`, correct the image, or "
        "push the images that stackgen builds to `kubernetes.registry`; for `unauthorized` or `denied`, set "
        "`kubernetes.image_pull_secrets`; for a time-out, check that the node can reach the registry",
        source="The reasons come from the kubelet of Kubernetes (pkg/kubelet/images), " + READ,
        explain="Nodes pull images themselves, so they can't use an image that exists only on your machine.",
        find=_finder("the kubelet reports that an image can't be pulled",
                     r"\b(?:ImagePullBackOff|ErrImagePull|ErrImageNeverPull|InvalidImageName)\b",
                     r"Failed to pull image"),
    ),
    Rule(
        "SG-K010",
        title="a probe of a pod fails",
        cause="the {probe} probe of {service} fails after the first start, so the pod gets no requests or is "
        "restarted",
        fix="read the pod's log with `kubectl logs`; if the message has a `statuscode`, the server answered: 404 means "
        "a wrong path, 401 or 403 a missing key, and 500 and above an error of the server; if the message has no "
        "`statuscode` and all pods of the stack fail their probes, the network policies may block the kubelet: set "
        "`kubernetes.network_policies: false` as a test",
        source="The message comes from the kubelet of Kubernetes (pkg/kubelet/prober), " + READ,
        explain="During the first start, failed startup probes are normal, because the model is still loading.",
        find=_finder("the kubelet reports a failed probe after the first start",
                     r"(?P<probe>Startup|Readiness|Liveness) probe (?:failed|errored)", after_start=True),
        fallback=True,
    ),
    Rule(
        "SG-K011",
        title="a container can't be created",
        cause="the kubelet can't create a container of {service}, because an object that the pod needs is missing or "
        "can't be mounted",
        fix="read the message, which names what is missing; run `stackgen up` again, which applies all Secrets and "
        "ConfigMaps of the stack; if stack.yaml names a runtime class or a Secret, create it before you start the "
        "stack",
        source="The reasons come from the kubelet of Kubernetes (pkg/kubelet/kuberuntime and volumemanager), " + READ,
        explain="The pod waits while the kubelet tries again every few seconds.",
        find=_finder("the kubelet reports that a container can't be created, or a volume can't be mounted",
                     r"\b(?:CreateContainerConfigError|CreateContainerError|RunContainerError)\b",
                     r"MountVolume\.SetUp failed", r"Unable to attach or mount volumes", pasted=True),
    ),
    Rule(
        "SG-K012",
        title="the cluster has no pod for a service",
        cause="the cluster has no pod, Deployment or Job for {service}",
        fix="start the stack with `stackgen up`; if you have started it, check that the context and the namespace "
        "are those of the stack; for a model on several nodes, check that the controller of LeaderWorkerSet is "
        "running",
        source="The line is stackgen's own, from the list of pods with the stack's labels; " + REPRODUCED,
        explain="stackgen finds pods by the label `app.kubernetes.io/part-of`, with the name of the stack.",
        find=_find_absent,
    ),
    Rule(
        "SG-K013",
        title="the cluster has no nodes",
        cause="the scheduler finds no node in the cluster, so the pods of {service} stay Pending",
        fix="run `kubectl get nodes`, which shows the nodes; if there are none, add nodes to the cluster, or choose "
        "the right cluster with `--context`",
        source="The message comes from the scheduler of Kubernetes (pkg/scheduler/core); " + REPRODUCED,
        explain="Managed clusters may scale a group of nodes down to zero. They then start the first node when a pod "
        "is Pending.",
        find=_finder("the scheduler reports that there are no nodes", r"no nodes available to schedule pods",
                     pasted=True),
    ),
    Rule(
        "SG-K014",
        title="a container of a pod restarts again and again",
        cause="a container of {service} exits after each restart",
        fix="read the log of the container that exited: `kubectl logs POD --previous` (`kubectl get pods` prints the "
        "name of the pod)",
        source="The reasons come from the kubelet of Kubernetes (pkg/kubelet/kuberuntime), " + READ,
        explain="The kubelet waits longer before each restart, up to five minutes.",
        find=_finder("the kubelet reports a container that ended, and no other rule explains the end",
                     r"\bCrashLoopBackOff\b", r"^container \S+ ended: "),
        # a cause that the log shows also explains the restarts
        fallback=True,
    ),
)  # fmt: skip
