"""Rules for device plugins, devices, rollouts and gateways of a cluster, as people paste their lines.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

CONFIG_VERSION = re.compile(r"unable to load config: unsupported config version: 3\b")
TOOLKIT = re.compile(r"nvidia-(?:container-)?toolkit|nvidia-ctk")


def _find_old_toolkit(evidence: Evidence) -> Iterator[Hit]:
    """NVIDIA's container toolkit can't read the node's configuration of containerd."""
    for service in evidence.services:
        lines = lines_since_ready(service.log) if TOOLKIT.search(service.log) else ()
        for line in lines:
            if found := CONFIG_VERSION.search(line):
                yield Hit(service.service, (strip_prefix(line).strip(),), {}, found[0])
                break


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-K034",
        title="NVIDIA's device plugin finds no driver in its pod",
        cause="the device plugin finds neither the driver's library (NVML) nor a Tegra device in its own container, so "
        "the node offers no GPUs. The container does not run with NVIDIA's runtime. Either the NVIDIA container "
        "toolkit is missing on the node, or containerd does not use this runtime for the pod",
        fix="on the node, check `nvidia-smi`, and configure the runtime: `sudo nvidia-ctk runtime configure "
        "--runtime=containerd`, then restart containerd (k3s and RKE2 find the runtime themselves when they start); "
        "give the plugin's pod the runtime (Helm: `--set runtimeClassName=nvidia`, with a RuntimeClass whose handler "
        "is nvidia), or make it the default (`--set-as-default`); on a node without GPUs, keep the plugin away with a "
        "nodeSelector",
        source="The lines come from NVIDIA/k8s-device-plugin (internal/rm/factory.go); its issues 1220 (2025-05) and "
        "1574 (2025-12) quote them. The failure was not reproduced.",
        explain="By default (`auto`), the plugin looks for the driver in its own container, and then chooses how to "
        "find GPUs.",
        patterns=compile_patterns(
            r"Incompatible strategy detected \w+",
            r"failed to construct (?:resource|NVML resource) managers?: invalid device discovery strategy",
        ),
        inputs=("log", "docker"),
    ),
    Rule(
        "SG-K035",
        title="a node lacks a device that its device plugin gives to a pod",
        cause="containerd can't create the container, because {path} does not exist on the node. A device plugin of "
        "the node assigned this device to the pod. Either the plugin's list of devices is out of date, or the device's "
        "driver is not loaded",
        fix="run `ls -l {path}` and `lsmod` on the node; load the driver of the device; then let the device plugin of "
        "this node read the devices again (`kubectl rollout restart daemonset NAME`); if only some pods need the "
        "device, don't request its resource in the other pods",
        source="The message comes from containerd (pkg/oci/utils_unix.go and internal/cri). The failure was not "
        "reproduced.",
        explain="The image and the model are not the cause, because the container does not exist yet.",
        patterns=compile_patterns(
            r"failed to generate (?:container )?spec: (?:.{0,80}: )?lstat (?P<path>/dev/\S+): no such file or "
            r"directory",
        ),
        inputs=("log", "docker"),
        variants=(
            Variant(
                compile_patterns(
                    r"failed to generate (?:container )?spec: (?:.{0,80}: )?lstat (?P<path>/dev/nvidia\S+): no such "
                    r"file"
                ),
                cause="containerd can't create the container, because {path} does not exist on the node. The driver "
                "creates this device file when its kernel module is loaded, and the module has not been loaded since "
                "the node started",
                fix="run `sudo nvidia-modprobe -u -c=0` on the node (for /dev/nvidia-uvm), or `nvidia-smi` (for the "
                "others), which create the files; to create the files after each reboot, let nvidia-persistenced start "
                "with the node",
            ),
        ),
    ),
    Rule(
        "SG-K036",
        title="a rollout took longer than the cluster allows",
        cause="the new pods of the Deployment[[ {name}]] were not ready within its `progressDeadlineSeconds` (600 by "
        "default). Either the model takes longer to load, or a pod can't start",
        fix="look at the pods (`kubectl get pods`); if a pod is Pending or has an error, run `kubectl describe pod "
        "POD`, which names the reason; if a pod is Running but not Ready, read `kubectl logs POD`; if the model is "
        "still downloading or loading, wait (the rollout continues after this message), and raise "
        "`spec.progressDeadlineSeconds` above the time that loading takes",
        source="The message comes from kubectl (pkg/polymorphichelpers/rollout_status.go) and Helm. The failure was "
        "not reproduced.",
        explain="The pods keep running after the deadline.",
        patterns=compile_patterns(
            r"[Dd]eployment \\?\"(?P<name>[^\"\\]+)\\?\" exceeded its progress deadline",
            r"\bProgressDeadlineExceeded\b",
        ),
        inputs=("log", "compose"),
        consequence_of=("*",),
        fallback=True,
    ),
    Rule(
        "SG-K037",
        title="the gateway does not reach the endpoint picker of an InferencePool",
        cause="the gateway (Envoy) asks the endpoint picker to choose a pod for each request. This gRPC call failed "
        "(UNAVAILABLE), so clients get status 500 or 503. The model's pods are not involved",
        fix="check that the picker's pod is ready, and read its log; compare its Service and port with "
        "`endpointPickerRef` (in old versions `extensionRef`) of the InferencePool, and the InferencePool's conditions "
        "(`kubectl describe inferencepool`); compare TLS on both sides: the picker uses TLS by default "
        "(`--secure-serving`), some gateways support only TLS, and others support only plain text",
        source="The words come from Envoy (source/extensions/filters/http/ext_proc), and 14 is gRPC's UNAVAILABLE. "
        "higress-group/higress issue 3701 (2026-04) quotes them; kgateway-dev/kgateway issue 11429 (2025-06) is about "
        "a picker without TLS. The failure was not reproduced.",
        explain="With `failureMode: FailOpen` in the InferencePool, gateways that support this mode send requests to "
        "any pod while the picker is gone.",
        patterns=compile_patterns(r"ext_proc_error_gRPC_error_14\b"),
        inputs=("log", "docker"),
    ),
    Rule(
        "SG-K038",
        title="NVIDIA's container toolkit is too old for this containerd",
        cause="containerd 2 writes its configuration in version 3, which this NVIDIA container toolkit can't read. So "
        "the toolkit can't prepare containerd for the GPUs of the node",
        fix="use version 1.18 or newer of the toolkit: with the GPU Operator, remove `toolkit.version` from the "
        "chart's values if it is pinned there, or upgrade the operator; on a node without the operator, upgrade the "
        "package nvidia-container-toolkit",
        source="The message comes from the NVIDIA container toolkit (pkg/config/engine/containerd). "
        "NVIDIA/gpu-operator issue 2060 (2026-01) quotes it, and reports the versions. The failure was not reproduced.",
        explain="Neither the driver nor the model is the cause.",
        find=_find_old_toolkit,
        inputs=("log", "docker"),
    ),
)
