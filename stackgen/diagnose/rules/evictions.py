"""Rules for evicted pods, containers that the kernel ends, objects that the API server forbids, and restarts.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import has_certain_error, has_served, strip_prefix
from stackgen.diagnose.rule import Finder, Hit, Rule, Variant
from stackgen.diagnose.rules.kubernetes_events import READ

__all__ = ["RULES"]

EVICTED = re.compile(
    r"The node was low on resource: (?P<resource>[\w-]+)\.(?:.{0,120}?Container (?P<container>[\w-]+) was using "
    r"(?P<used>\d+\w*))?|"
    r"Pod ephemeral local storage usage exceeds the total limit of containers (?P<limit>\w+)|"
    r"Container (?P<container2>[\w-]+) exceeded its local ephemeral storage limit \\?\"(?P<limit2>\w+)|"
    r"Usage of EmptyDir volume \\?\"(?P<volume>[\w-]+)\\?\" exceeds the limit \\?\"(?P<limit3>\w+)|"
    r"The node had condition: \[(?P<condition>\w+)\]"
)
FORBIDDEN = re.compile(
    r"is forbidden: (?P<rbac>User \\?\"(?P<user>[^\"\\]+)\\?\" cannot (?P<verb>\w+) resource \\?\"(?P<kind>[\w./-]+)"
    r"\\?\".{0,160})|"
    r"is forbidden: \[?(?P<range>(?:maximum|minimum) \w[\w.-]* usage per \w+ is .{1,160}|"
    r"\w[\w.-]* max limit to request ratio per .{1,120})|"
    r"is forbidden: error looking up service account (?P<account>[\w./-]+): |"
    r"is forbidden: no PriorityClass with name (?P<priority>[\w.-]+) was found|"
    r"no matches for kind \\?\"(?P<unknown>\w+)\\?\" in version \\?\"(?P<version>[\w./]+)"
)
BACK_OFF = re.compile(
    r"Back-off restarting failed container(?: (?P<container>[\w-]+) in pod (?P<pod>[\w.-]+?)_[\w-]+\()?|"
    r"^(?P<row>[\w.-]+)\s+\d+/\d+\s+CrashLoopBackOff\b"
)
# of `kubectl describe pod`, of the pod as YAML or JSON, and a row of `kubectl get pods`
OOM_KILLED = re.compile(r"^(?:Reason: +|\"?reason\"?: +\"?)OOMKilled\b|^[\w.-]+ +\d+/\d+ +(?:Init:)?OOMKilled\b")
NAME = r"[a-z0-9][a-z0-9.-]*-[a-z0-9]+"
POD_NAME = re.compile(rf"^(?:Name: +(?P<named>{NAME})[ \t]*$|(?P<row>{NAME}) +\d+/\d+ +[A-Z])", re.M)
MEMORY_LIMIT = re.compile(r"^[ \t]*\"?[Ll]imits\"?:(?: *\{)?(?:\s+\"?(?!memory)[\w./-]+\"?: +\S+){0,4}?"
                          r"\s+\"?memory\"?: +\"?(?P<limit>\d[\w.]*)", re.M)  # fmt: skip


def _read_lines(service: ServiceEvidence) -> list[str]:
    """The messages about a service's objects: those of the cluster, and those in a pasted text."""
    pasted = [] if service.state else service.log.splitlines()
    return [strip_prefix(one).strip() for one in (*service.error.splitlines(), *pasted)]


def _finder(condition: str, pattern: re.Pattern[str], variants: tuple[tuple[str, Variant], ...]) -> Finder:
    """Finds the last line of `pattern`; the group that matched chooses the variant."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        for service in evidence.services:
            hits = [(one, found) for one in _read_lines(service) if (found := pattern.search(one))]
            if hits:
                line, found = hits[-1]
                values = {key.rstrip("23"): value for key, value in found.groupdict().items() if value}
                variant = next((one for key, one in variants if key in values), None)
                yield Hit(service.service, (line,), values, found[0], variant=variant)

    find.__doc__ = f"{condition[:1].upper()}{condition[1:]}."
    return find


def _find_restarts(evidence: Evidence) -> Iterator[Hit]:
    """A pasted text shows that a container restarts again and again, and contains no log of this container."""
    for service in evidence.services:
        if service.state or has_certain_error(service.log) or has_served(service.log):
            continue
        found = next((m for one in _read_lines(service) if (m := BACK_OFF.search(one))), None)
        if found:
            values = {"pod": found["pod"] or found["row"] or "", "container": found["container"] or ""}
            yield Hit(service.service, (strip_prefix(found.string).strip(),), {k: v for k, v in values.items() if v},
                      found[0])  # fmt: skip


def _find_oom_killed(evidence: Evidence) -> Iterator[Hit]:
    """The kubelet, or a pasted output of `kubectl`, reports a container that ended with the reason OOMKilled."""
    for service in evidence.services:
        if line := next((one for one in service.error.splitlines() if re.search(r"\bOOMKilled\b", one)), ""):
            yield Hit(service.service, (line.strip(),), highlight="OOMKilled")
            continue
        if service.state or "OOMKilled" not in service.log or has_certain_error(service.log):
            continue
        if found := next((match for one in _read_lines(service) if (match := OOM_KILLED.search(one))), None):
            # a text about several pods or limits does not show which one belongs to the container
            pods = {one["named"] or one["row"] for one in POD_NAME.finditer(service.log)}
            limits = {one["limit"] for one in MEMORY_LIMIT.finditer(service.log)}
            values = {"service": f"the pod {pods.pop()}" if len(pods) == 1 else "a pod"}
            if len(limits) == 1:
                values["limit"] = limits.pop()
            yield Hit(service.service, (found.string,), values, "OOMKilled", variant=DESCRIBED_POD)


DESCRIBED_POD = Variant(
    (),
    cause="the kernel ended a container of {service} (OOMKilled), because the container used more memory than its "
    "limit[[ ({limit})]], or because the node ran out of memory",
    fix="raise the container's memory limit: `resources.limits.memory` in the pod's manifest or in the values of its "
    "Helm chart (for a model in stack.yaml, `kubernetes.memory`), which sets memory of the node, not of the GPU; if "
    "the container has no memory limit, the node ran out of memory: use a node with more memory, or set a memory "
    "request",
    condition="the text is pasted",
)
OWN_LIMIT = Variant(
    (),
    title="a pod wrote more to its disk than its limit",
    cause="the kubelet evicted the pod, because its containers wrote more than {limit} to the node's disk (their "
    "writable layer, their logs and emptyDir volumes)",
    fix="find what grows (`kubectl exec POD -- du -xsh /tmp /root/.cache`): most often it is the Hub's cache or the "
    "compile cache of a model; mount a volume for it (a PersistentVolumeClaim, with HF_HOME on it), or raise "
    "`resources.limits.ephemeral-storage` of the container",
    condition="the message names a limit of the pod",
)
EMPTY_DIR = Variant(
    (),
    title="an emptyDir volume of a pod is larger than its limit",
    cause="the kubelet evicted the pod, because the emptyDir volume `{volume}` holds more than its sizeLimit {limit}",
    fix="raise `sizeLimit` of this volume; if it is the pod's /dev/shm (`medium: Memory`), its content counts as "
    "memory of the container, so raise the memory limit by the same amount",
    condition="the message names an emptyDir volume",
)
NO_KIND = Variant(
    (),
    title="the cluster does not know a kind of object",
    cause="the cluster has no kind `{unknown}` in the version {version}. Either the program that defines this kind "
    "is not installed in this cluster, or the installed program offers another version of the kind",
    fix="run `kubectl api-resources | grep -i {unknown}`, which shows the versions that the cluster knows; if there is "
    "none, install the program (its CRDs) first; otherwise correct `apiVersion` in the file, or choose the right "
    "cluster with `--context`",
    condition="no kind with this name exists",
)
NO_ACCOUNT = Variant(
    (),
    title="the service account of a pod does not exist",
    cause="the pods of a Deployment, Job or StatefulSet can't be created, because their service account {account} does "
    "not exist",
    fix="run `kubectl get serviceaccount`; create the account (`kubectl create serviceaccount`), or correct "
    "`serviceAccountName`; then wait, because the controller tries again by itself",
    condition="the service account is not found",
)
NO_PRIORITY = Variant(
    (),
    title="the priority class of a pod does not exist",
    cause="the cluster has no PriorityClass `{priority}`, which the pod asks for",
    fix="run `kubectl get priorityclass`, and correct or remove `priorityClassName` of the pod",
    condition="the PriorityClass is not found",
)
LIMIT_RANGE = Variant(
    (),
    title="a LimitRange of the namespace forbids the pod",
    cause="the LimitRange of the namespace forbids the pod: {range}",
    fix="run `kubectl describe limitrange`, which shows the allowed values; change `resources` of the container "
    "(`kubernetes.cpu` and `kubernetes.memory` in stack.yaml), or ask the administrator for other limits",
    condition="the message compares a value with a LimitRange",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-K009",
        title="a container needed more memory than its limit",
        cause="the kernel ended a container of {service} (OOMKilled), because the container used more memory than "
        "its limit, or because the node ran out of memory",
        fix="raise `kubernetes.memory` of the model in stack.yaml: this is memory of the node, not of the GPU",
        source="vllm-project/production-stack issue 858 (2026-02) shows the reason as `kubectl describe pod` prints "
        "it. It comes from the container runtime through the kubelet (PodStatus), " + READ,
        explain="Shared memory (`/dev/shm`) and the files of a memory-backed volume count as the container's memory.",
        find=_find_oom_killed,
        variants=(DESCRIBED_POD,),
    ),
    Rule(
        "SG-K024",
        title="a node evicted the pod, because a resource of the node ran out",
        cause="the kubelet evicted the pod to protect the node, which had too little {resource} left"
        "[[ (the container {container} used {used})]]",
        fix="if ephemeral-storage ran out, the node's disk is full: put the weights and caches on a volume (HF_HOME on "
        "a PersistentVolumeClaim), or use nodes with a larger disk; set `ephemeral-storage` in the pod's requests, so "
        "that the scheduler chooses a node with enough space; if memory ran out, raise the pod's memory request to "
        "what it needs; run `kubectl describe node`, which shows whether the node is still short of it; leave the "
        "evicted pod, which stays as a record (its Deployment creates a new one)",
        source="The messages come from the kubelet of Kubernetes (pkg/kubelet/eviction/helpers.go and "
        "eviction_manager.go). GoogleCloudPlatform/kubernetes-engine-samples issue 1581 (2025-01), LMCache/LMCache "
        "issue 1399 (2025-08) and llm-d-incubation/llm-d-fast-model-actuation issue 623 (2026-06) quote them. The "
        "failure was not reproduced.",
        explain="Images of engines take 10 to 30 GB, and the node stores them on the same disk. The GPU is not the "
        "cause.",
        find=_finder(
            "the kubelet reports that it evicted a pod",
            EVICTED,
            (
                ("volume", EMPTY_DIR),
                ("limit", OWN_LIMIT),
            ),
        ),
        variants=(EMPTY_DIR, OWN_LIMIT),
    ),
    Rule(
        "SG-K025",
        title="the API server forbids a request",
        cause="the user or service account {user} may not {verb} {kind}: {rbac}",
        fix="run `kubectl auth can-i {verb} {kind} --as {user}` to verify it; then ask the cluster's administrator for "
        "a Role with this permission and a RoleBinding to this user, or use another context",
        source="The messages come from Kubernetes (apiserver, endpoints/handlers/responsewriters/errors.go, plugin "
        "LimitRanger, plugin ServiceAccount, plugin Priority) and kubectl (cli-runtime, resource/builder.go, version "
        "1.33). The failure was not reproduced.",
        explain="A request that is forbidden changes nothing in the cluster. A pod that is forbidden has no log.",
        find=_finder(
            "the API server forbids an object, or does not know its kind",
            FORBIDDEN,
            (
                ("unknown", NO_KIND),
                ("account", NO_ACCOUNT),
                ("priority", NO_PRIORITY),
                ("range", LIMIT_RANGE),
            ),
        ),
        variants=(NO_KIND, NO_ACCOUNT, NO_PRIORITY, LIMIT_RANGE),
    ),
    Rule(
        "SG-K026",
        title="a container of a pod restarts again and again, and its log is missing here",
        cause="a container[[ ({container})]][[ of the pod {pod}]] ends after each start (CrashLoopBackOff). This text "
        "contains only Kubernetes' message, not the reason",
        fix="pass the log of the container that ended: `kubectl logs[[ {pod}]] --previous | stackgen diagnose --logs "
        "-`; if that log is empty, `kubectl describe pod` shows the exit code and reason of the last state (137 with "
        "OOMKilled is memory, 127 a missing program)",
        source="The messages come from the kubelet of Kubernetes (pkg/kubelet/kuberuntime) and kubectl 1.33. The "
        "failure was not reproduced.",
        explain="The kubelet waits longer before each restart, up to five minutes.",
        find=_find_restarts,
        fallback=True,
    ),
)
