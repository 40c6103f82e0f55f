"""Rules for objects and pods that a cluster refuses: admission webhooks, policies, device plugins, DRA drivers.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import strip_prefix
from stackgen.diagnose.rule import Finder, Hit, Rule, Variant

__all__ = ["RULES"]

DENIED = re.compile(
    r'admission webhook \\?"(?P<name>[\w.-]+)\\?" denied the request(?: without explanation)?:? *(?P<reason>.*)|'
    r"ValidatingAdmissionPolicy '(?P<policy>[\w.-]+)' with binding '[\w.-]+' denied request: (?P<rule>.+)|"
    r"unable to validate against any security context constraint: (?P<constraints>\[.+)"
)
# lines that go on with the reason of the line above: Gatekeeper, GKE
MORE = re.compile(r"^(?:\[[\w-]+\] |Violations details: )")
# the lines of a reason, and its characters, that are worth showing
LINES, WIDTH = 8, 300
UNCALLED = re.compile(
    r'failed calling webhook \\?"(?P<name>[\w.-]+)\\?": (?:failed to call webhook: )?'
    r'(?:Post \\?"?https://(?P<server>[\w-]+)\.(?P<namespace>[\w-]+)\.svc[^ ]*: ?)?(?P<reason>.+)'
)
ALLOCATE = re.compile(r"Allocate failed due to (?P<reason>.{1,600}?), which is unexpected")
PREPARE = re.compile(
    r"FailedPrepareDynamicResources|NodePrepareResources failed|[Ff]ailed to prepare dynamic resources"
)


def _read_lines(service: ServiceEvidence) -> list[str]:
    """The messages about a service's objects: those of the cluster, and those in a pasted text."""
    pasted = [] if service.state else service.log.splitlines()
    return [strip_prefix(one).strip() for one in (*service.error.splitlines(), *pasted)]


def _find_denied(evidence: Evidence) -> Iterator[Hit]:
    """The API server reports that a webhook or a policy of the cluster refused an object."""
    for service in evidence.services:
        lines = _read_lines(service)
        place, found = next(((i, m) for i, one in enumerate(lines) if (m := DENIED.search(one))), (0, None))
        if found is None:
            continue
        below = [one for one in lines[place + 1 : place + 2 + LINES] if one]
        reason = (found["reason"] or found["rule"] or found["constraints"] or "").strip()
        if not reason:
            more = below[:LINES]
        else:
            more = next((below[:i] for i, one in enumerate(below) if not MORE.match(one)), below)
        text = " ".join([reason, *more]).strip()
        shown = text[:WIDTH] + ("…" if len(text) > WIDTH else "")
        name = found["name"] or found["policy"] or ""
        variant = SCC if found["constraints"] else POLICY if found["policy"] else _choose_denied(name, text)
        yield Hit(service.service, (lines[place], *more), {"name": name, "reason": shown or "none"}, found[0], None,
                  variant)  # fmt: skip


def _choose_denied(name: str, text: str) -> Variant | None:
    if "kyverno" in name:
        return KYVERNO
    if name.endswith("gatekeeper.sh"):
        return GATEKEEPER
    return ASSIGNED if "pod has node assigned" in text else None


def _finder(condition: str, pattern: re.Pattern[str], variants: tuple[tuple[str, Variant], ...]) -> Finder:
    """Finds the first line of `pattern`; its words choose the variant. `condition` is for the rule's page."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        for service in evidence.services:
            for line in _read_lines(service):
                if found := pattern.search(line):
                    values = {key: value for key, value in found.groupdict().items() if value}
                    variant = next((one for words, one in variants if re.search(words, line)), None)
                    if extra := NUMBERS.search(line):
                        values |= extra.groupdict()
                    yield Hit(service.service, (line,), values, found[0], variant=variant)
                    break

    find.__doc__ = f"{condition[:1].upper()}{condition[1:]}."
    return find


NUMBERS = re.compile(
    r"devices unavailable for (?P<resource>[\w./-]+)\. Requested: (?P<wanted>\d+), Available: (?P<free>\d+)"
)
KYVERNO = Variant(
    (),
    title="a Kyverno policy forbids the object",
    cause="a policy of Kyverno in this cluster refused the object, and gave this reason: {reason}",
    fix="change the object as the message says (it names the policy, the rule and the path of the field); to see the "
    "policies, run `kubectl describe clusterpolicy`; for an exception, ask the cluster's administrator",
    condition="the webhook is Kyverno's",
)
GATEKEEPER = Variant(
    (),
    title="a Gatekeeper policy forbids the object",
    cause="a policy of OPA Gatekeeper in this cluster refused the object, and gave this reason: {reason}",
    fix="change the object as the message says; to see all constraints, run `kubectl get constraints` (the message "
    "names the constraint in brackets); for missing limits, set `resources.limits` of every container "
    "(`kubernetes.cpu` and `kubernetes.memory` in stack.yaml)",
    condition="the webhook is Gatekeeper's",
)
ASSIGNED = Variant(
    (),
    title="a GPU scheduler does not accept pods with a fixed node",
    cause="the webhook `{name}` refused the pod, because the pod already names its node (`nodeName`), so the scheduler "
    "of this GPU software could not choose GPUs for it",
    fix="remove `nodeName` from the pod, and choose the node by a label instead (`nodeSelector`, "
    "`kubernetes.node_selector` in stack.yaml)",
    condition="the reason is `pod has node assigned`",
)
POLICY = Variant(
    (),
    title="an admission policy of the cluster forbids the object",
    cause="the ValidatingAdmissionPolicy `{name}` of this cluster refused the object, and gave this reason: {reason}",
    fix="change the object as the message says; `kubectl get validatingadmissionpolicy {name} -o yaml` shows the "
    "expressions that an object must meet",
    condition="the message names a ValidatingAdmissionPolicy",
)
SCC = Variant(
    (),
    title="no security context constraint allows the pod",
    cause="OpenShift refused the pod, because none of the security context constraints that its service account may "
    "use allows it: {reason}",
    fix="change the fields that the message names (most often a fixed user, host paths or the host's network); on "
    "OpenShift, leave `runAsUser` out, so that the namespace's own range applies; otherwise ask the administrator to "
    "give the service account another constraint (`oc adm policy add-scc-to-user`)",
    condition="the message names security context constraints",
)
NOT_READY = Variant(
    (),
    title="the server of an admission webhook is not running",
    cause="the API server could not ask the webhook `{name}`[[ (Service {server} in the namespace {namespace})]], "
    "because no pod of its server accepts connections: {reason}",
    fix="run `kubectl get pods[[ -n {namespace}]]`, and wait until the pods of this server are ready; then repeat the "
    "command (right after an installation, this is often enough); if the pods do not become ready, read their log, "
    "which names the cause",
    condition="the connection is refused, or the Service has no endpoints",
)
UNREACHABLE = Variant(
    (),
    title="the API server can't reach an admission webhook",
    cause="the API server got no answer from the webhook `{name}`[[ (Service {server} in the namespace {namespace})]]: "
    "{reason}. Either its pod is overloaded, or the network between the control plane and the pods blocks its port",
    fix="check that the pods of the webhook are ready, and read their log; if the pods are ready, allow connections "
    "from the control plane to the port of their container (check network policies and security groups, and in a "
    "private cluster of a cloud also its firewall rules)",
    condition="the call timed out",
)
UNTRUSTED = Variant(
    (),
    title="the API server does not trust an admission webhook",
    cause="the certificate of the webhook `{name}` is not valid for the API server: {reason}",
    fix="find out which program issues this certificate (most often cert-manager, or a job of the Helm chart), and "
    "check that the certificate has not expired; check that `caBundle` in the webhook's configuration matches the "
    "certificate (with cert-manager, its cainjector writes this field)",
    condition="TLS fails",
)
ORPHANED = Variant(
    (),
    title="an admission webhook points to a Service that does not exist",
    cause="the cluster is configured to ask the webhook `{name}`, but its Service does not exist: {reason}. Most "
    "often, its program was uninstalled, but the configuration of the webhook remained",
    fix="run `kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations`; either install the program "
    "again, or ask the cluster's administrator to remove the configuration that it left behind",
    condition="the Service is not found",
)
UNAVAILABLE = Variant(
    (),
    title="the node has fewer free GPUs than the scheduler assumed",
    cause="the kubelet rejected the pod, because it needs {wanted} `{resource}` and the node has {free} free. The "
    "numbers that the scheduler used were out of date. Most often, the device plugin or the kubelet restarted, GPUs "
    "became unhealthy, or another pod took the GPU first",
    fix="run `kubectl describe node`, which shows the allocatable GPUs and the pods that use them, and read the log of "
    "the device plugin's pod on this node; don't wait for the rejected pod: it never starts, but its Deployment "
    "creates a new one; if this happens only after reboots, let the GPU pods start after the device plugin is ready",
    condition="the message contains the numbers of requested and free devices",
)
UNHEALTHY = Variant(
    (),
    title="the device plugin reports no healthy GPU",
    cause="the kubelet rejected the pod, because the device plugin of this node offers no healthy device: {reason}. "
    "Either a GPU failed, or the plugin has not found the driver (yet)",
    fix="run `nvidia-smi` (or `rocm-smi`) on the node, and look for Xid errors (`sudo dmesg | grep -i xid`); if the "
    "GPU works, read the log of the device plugin's pod; don't wait for the rejected pod: it never starts, but its "
    "Deployment creates a new one",
    condition="no device is healthy, or none is registered",
)
LOST = Variant(
    (),
    title="a GPU of the node is lost",
    cause="the device plugin can't list the GPUs of the node, because the driver lost one of them: {reason}",
    fix="when the node's pods may stop, drain the node (`kubectl drain`) and reboot it; if the GPU is lost again, "
    "check its power supply and its slot, or return it to its vendor",
    condition="NVML reports a lost GPU",
)
EMPTY_EDITS = Variant(
    (),
    title="a DRA driver wrote a CDI specification without devices",
    cause="the DRA driver of this node wrote a CDI specification in which a GPU has no device files (`empty device "
    "edits`). Most often, its kubelet plugin still has the state from before the GPU driver was loaded or replaced, or "
    "it looks for the driver in the wrong folder",
    fix="check that `nvidia-smi` works on the node and that /dev/nvidia* exist; when the driver is ready, restart the "
    "kubelet plugin of the DRA driver on this node; if the message remains, compare the driver root in the values of "
    "its Helm chart (`nvidiaDriverRoot`) with the folder of the driver (/ for a driver that is installed on the host, "
    "/run/nvidia/driver for the GPU Operator's driver container)",
    condition="the message ends with `empty device edits`",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-K019",
        title="a policy of the cluster forbids the object",
        cause="the admission webhook `{name}` of this cluster refused the object, and gave this reason: {reason}",
        fix="change the object as the message says; for the reason behind the rule, read the documentation of the "
        "program to which the webhook belongs, or ask the cluster's administrator, who installed it",
        source="The form of the message comes from Kubernetes (apiserver, plugin/webhook/errors/statuserror.go and "
        "plugin/policy/validating). uoe-eidf-cluster-users/eidf-epcc-cluster issue 26 (2023-11), substratusai/helm "
        "issue 8 (2023-11) and Project-HAMi/HAMi issue 960 (2025-03) quote webhooks. The failure was not reproduced.",
        explain="A refused pod has no log. If a Deployment created the pod, `kubectl describe replicaset` shows the "
        "message. GPUs, drivers and images are not the cause.",
        find=_find_denied,
        variants=(KYVERNO, GATEKEEPER, ASSIGNED, POLICY, SCC),
    ),
    Rule(
        "SG-K020",
        title="the API server can't call an admission webhook",
        cause="the API server had to ask the webhook `{name}` about an object, and got no usable answer: {reason}",
        fix="find the pods of this webhook (`kubectl get validatingwebhookconfigurations,"
        "mutatingwebhookconfigurations -o wide` names the Services), and read their log",
        source="The message comes from Kubernetes (apiserver, plugin/webhook). kserve/kserve issues 3748 (2024-06), "
        "3770 (2026-04) and 5037 (2026-02) quote it; in the last one, the second run of the same command worked. The "
        "failure was not reproduced.",
        explain="A webhook with `failurePolicy: Fail` blocks all objects of its kind while its server is not running.",
        find=_finder(
            "the API server reports that a call of a webhook failed",
            UNCALLED,
            (
                ('service \\\\?"[\\w-]+\\\\?" not found', ORPHANED),
                ("x509|tls: |certificate", UNTRUSTED),
                ("connection refused|no endpoints available", NOT_READY),
                ("deadline exceeded|i/o timeout|Client\\.Timeout|timed? ?out", UNREACHABLE),
            ),
        ),
        variants=(ORPHANED, UNTRUSTED, NOT_READY, UNREACHABLE),
    ),
    Rule(
        "SG-K021",
        title="the kubelet can't give the pod its GPUs",
        cause="the scheduler chose a node, but its kubelet rejected the pod: {reason}",
        fix="read the log of the device plugin's pod on this node; don't wait for the rejected pod: it never starts, "
        "but its Deployment creates a new one",
        source="The messages come from the kubelet of Kubernetes (pkg/kubelet/cm/devicemanager/manager.go). "
        "NVIDIA/gpu-operator issues 233 (2021-08) and 480 (2023-01), trueforge-org/truecharts issue 19201 (2024-03) "
        "and NVIDIA/k8s-device-plugin issue 231 (2021-03) quote them. The failure was not reproduced.",
        explain="Such a pod has the status UnexpectedAdmissionError, and no log.",
        find=_finder(
            "the kubelet reports that the allocation of devices failed",
            ALLOCATE,
            (
                ("GPU is lost", LOST),
                ("devices unavailable for", UNAVAILABLE),
                ("no healthy devices|unregistered device", UNHEALTHY),
            ),
        ),
        variants=(LOST, UNAVAILABLE, UNHEALTHY),
    ),
    Rule(
        "SG-K022",
        title="a DRA driver can't prepare the pod's devices",
        cause="the node's DRA driver could not prepare the devices of a ResourceClaim, so the pod stays in "
        "ContainerCreating. The end of the message contains the driver's reason",
        fix="read the log of the DRA driver's kubelet plugin on this node (for NVIDIA, the pod "
        "nvidia-dra-driver-gpu-kubelet-plugin), and check that `nvidia-smi` works there",
        source="The message comes from the kubelet of Kubernetes (pkg/kubelet/cm/dra) and, for empty edits, from "
        "cncf-tags/container-device-interface (pkg/cdi/device.go). cncf-tags/container-device-interface issue 250 "
        "(2025-02) explains the check. The failure was not reproduced.",
        explain="With dynamic resource allocation (DRA), a driver on each node writes a CDI specification for each "
        "claim. The kubelet tries again every few seconds.",
        find=_finder(
            "the kubelet reports that a DRA driver can't prepare a claim",
            PREPARE,
            (("empty device edits", EMPTY_EDITS),),
        ),
        variants=(EMPTY_EDITS,),
    ),
)
