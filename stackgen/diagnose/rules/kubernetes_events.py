"""Rules for the events of a cluster that people paste next to a log, and for what Kubernetes puts into a pod.

The lines are the messages of Kubernetes' own programs. `source` names the reports that quote them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import is_below_error, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, compile_patterns

__all__ = ["READ", "RULES", "STARTED", "search_events"]

READ = "according to the source of Kubernetes 1.20; the failure was not reproduced."
# an event as `kubectl describe` and `kubectl get events` print it
EVENT = re.compile(
    r"\bFailed(?:Scheduling|Mount|AttachVolume|Create|Binding|CreatePodSandBox)\b|\bProvisioningFailed\b|"
    r"\bdefault-scheduler\b|\d+/\d+ nodes are available: |no nodes available to schedule pods|"
    r"^\s*(?:\S+\s+)?Warning\s+(?:Failed|BackOff)\s.*\b(?:kubelet|pod/)"
)
SCHEDULED = re.compile(r"\bdefault-scheduler\s+Successfully assigned |\bSuccessfully assigned \S+ to ")
# of `kubectl describe`, which shows one pod; `kubectl get events` names the pod of each line
STARTED = re.compile(r"^(?!.*\bpod/).*\bkubelet\b.*\bStarted container\b")
DESCRIBED = re.compile(r"(?:\bpods?[/ ]|^Name:\s+)(?P<pod>[a-z0-9][a-z0-9.-]*-[a-z0-9]+)\b")
# the reasons that the scheduler counts, each with a number of nodes
REASONS = re.compile(
    r"\d+/\d+ nodes are available: (?P<reasons>(?!\d+ (?:No p|P)reemption).+?)\.?(?: preemption: .*)?$"
)
# the value of a service link, as programs quote it
LINK = r"(?P<value>(?:tcp|udp)://[\w.:\[\]-]+)"


def search_events(service: ServiceEvidence, patterns: tuple[re.Pattern[str], ...]) -> Hit | None:
    """The first pasted event that a pattern matches; None if the pod has been scheduled since."""
    if not EVENT.search(service.log) and "nodes are available" not in service.log:
        return None
    pod = ""
    found = None
    for line in service.log.splitlines():
        if named := DESCRIBED.search(line):
            pod = named["pod"]
        if SCHEDULED.search(line) or STARTED.search(line):
            # the scheduler has found a node since, or the kubelet has started the container
            found = None
        for match in (one for pattern in patterns if EVENT.search(line) and (one := pattern.search(line))):
            text = strip_prefix(line).strip()
            values = {"service": pod or "the pasted events", **match.groupdict("")}
            found = found or Hit(service.service, (text,), values, match[0])
    return found


def _find_unscheduled(evidence: Evidence) -> Iterator[Hit]:
    """The scheduler reports that no node fits, for a reason that no other rule knows."""
    for service in evidence.services:
        lines = [line.strip() for line in service.error.splitlines()]
        found = next(((line, match) for line in lines if (match := REASONS.search(line))), None)
        if found:
            yield Hit(service.service, (found[0],), found[1].groupdict(), found[1][0])
        elif not service.state and (hit := search_events(service, (REASONS,))):
            yield hit


# of vLLM; of int() in Python; of click and argparse; of Go and Java programs
LINKED = tuple(
    re.compile(text)
    for text in (
        rf"(?P<name>[A-Z][A-Z0-9_]*_PORT)\b.{{0,20}}?['\"]{LINK}['\"] (?:appears to be a URI|must be)",
        rf"invalid literal for int\(\) with base 10: ['\"]{LINK}['\"]",
        rf"['\"]{LINK}['\"] is not a valid integer|invalid int value: ['\"]{LINK.replace('value', 'argument')}['\"]",
        rf"(?i)\binvalid (?:http )?port:? ['\"]?{LINK}",
        rf"parsing \"{LINK}\": invalid syntax",
    )
)
VARIABLE = re.compile(r"\b(?P<name>[A-Z][A-Z0-9_]*_PORT)=(?:tcp|udp)://")


def _find_service_link(evidence: Evidence) -> Iterator[Hit]:
    """A program refuses a port of the form tcp://ADDRESS:PORT, which Kubernetes sets for a Service."""
    for service in evidence.services:
        for line in service.log.splitlines() if "tcp://" in service.log or "udp://" in service.log else ():
            if is_below_error(line) or not (found := next((m for one in LINKED if (m := one.search(line))), None)):
                continue
            values = {key: value for key, value in found.groupdict().items() if value}
            values["value"] = values.pop("argument", values.get("value", ""))
            listed = VARIABLE.search(service.log)
            if name := values.get("name") or (listed["name"] if listed else ""):
                link = name.removesuffix("_PORT").lower().replace("_", "-")
                values |= {"name": name, "service_name": link}
            yield Hit(service.service, (strip_prefix(line).strip(),), values, found[0])
            break


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-K016",
        title="no node of the cluster fits the pod",
        cause="a pod of {service} stays Pending, because no node fits: {reasons}",
        fix="run `kubectl describe nodes`, which shows the labels, taints, conditions and resources of each node, and "
        "compare them with the pod (`kubectl describe pod`); for `were unschedulable`, find out why somebody cordoned "
        "the node before you run `kubectl uncordon`; for `volume node affinity conflict`, use a volume that a GPU node "
        "can mount, because the pod's volume exists only on another node or zone; for `free ports`, give the pods "
        "different host ports, because two pods of a node want the same one",
        source="The message comes from the scheduler of Kubernetes (pkg/scheduler/framework/types.go and plugins), "
        + READ,
        explain="The scheduler counts the nodes for each reason. A pod needs one node to which no reason applies.",
        find=_find_unscheduled,
        fallback=True,
    ),
    Rule(
        "SG-K017",
        title="a variable of Kubernetes replaces a setting of the program",
        cause="the program reads {value} as a port[[ from the variable {name}]]. Kubernetes sets this value: for each "
        "Service, pods of the same namespace get variables such as VLLM_PORT for a Service with the name vllm",
        fix="set `enableServiceLinks: false` in the pod's spec, or rename the Service[[ (Kubernetes makes the "
        "variable {name} from the name `{service_name}`)]]; or set the variable in the container's `env:`, which has "
        "priority; to reach a Service, use its DNS name, which works without these variables",
        source="The message of vLLM comes from envs.py (get_vllm_port); vllm-project/vllm issue 34199 (2026-02) and "
        "Donkie/Spoolman pull request 961 (2026-07) quote such messages. The failure was not reproduced.",
        explain="The variables exist only for Services that were created before the pod, so the failure can appear "
        "with the next restart of a pod. The pods that stackgen renders have no service links.",
        find=_find_service_link,
    ),
    Rule(
        "SG-K018",
        title="the cluster has no such RuntimeClass",
        cause="the pod asks for the RuntimeClass {name}, and the cluster has no object of this name. So the cluster "
        "rejects the pod, and no container starts",
        fix="run `kubectl get runtimeclass`, which lists the names; if the runtime of the GPU nodes is {name} by "
        "default, remove the name from the pod (`runtimeClassName`, `kubernetes.runtime_class` in stack.yaml); "
        "otherwise create the RuntimeClass: the GPU Operator creates the one with the name nvidia; without the "
        "operator, write a manifest of the object whose `handler` is the name of a runtime in the containerd "
        "configuration of the nodes",
        source="The message comes from the admission plugin RuntimeClass of Kubernetes "
        "(plugin/pkg/admission/runtimeclass/admission.go) and from the kubelet; LMCache/LMCache pull request 4580 "
        "(2026-08), aws-samples/aws-do-eks pull request 96 (2026-08) and canonical/microk8s issue 2359 (2021-06) quote "
        "it. The failure was not reproduced.",
        explain="A RuntimeClass is an object of the cluster that names a handler of the container runtime. A pod that "
        "is rejected has no log; the events of its Deployment, DaemonSet or ReplicaSet show the reason.",
        patterns=compile_patterns(r"RuntimeClass \\?\"?(?P<name>[\w.-]+)\\?\"? not found"),
        inputs=("log", "docker"),
    ),
)
