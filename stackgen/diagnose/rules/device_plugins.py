"""Rules for device plugins, devices, rollouts and gateways of a cluster, as people paste their lines.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-K034",
        title="NVIDIA's device plugin finds no driver in its pod",
        cause="the device plugin's own container has neither the driver's library (NVML) nor a Tegra device, so the "
        "plugin does not know how to find GPUs, and the node offers none. The container does not run with NVIDIA's "
        "runtime: the toolkit is missing on the node, or containerd does not use its runtime for this pod",
        fix="on the node, check `nvidia-smi`, and configure the runtime: `sudo nvidia-ctk runtime configure "
        "--runtime=containerd`, then restart containerd (k3s and RKE2 find the runtime themselves when they start); "
        "give the plugin's pod the runtime (Helm: `--set runtimeClassName=nvidia`, with a RuntimeClass whose handler "
        "is nvidia), or make it the default (`--set-as-default`); on a node without GPUs, keep the plugin away with a "
        "nodeSelector",
        source="The lines come from NVIDIA/k8s-device-plugin (internal/rm/factory.go); its issues 1220 (2025-05) and "
        "1574 (2025-12) quote them. The failure was not reproduced.",
        explain="The plugin chooses its way to find GPUs (`auto`) by what it sees in its own container.",
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
        "the node has promised this device to the pod: its list is out of date, or the device's driver is not loaded",
        fix="run `ls -l {path}` and `lsmod` on the node; load the driver of the device; then let the device plugin of "
        "this node read the devices again (`kubectl rollout restart daemonset NAME`); if only some pods need the "
        "device, don't request its resource in the others",
        source="The message comes from containerd (pkg/oci/utils_unix.go and internal/cri). The failure was not "
        "reproduced.",
        explain="The image and the model are not the reason, because the container does not exist yet.",
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
                "creates this device file when its module is loaded, and nobody has loaded it since the node started",
                fix="run `sudo nvidia-modprobe -u -c=0` on the node (for /dev/nvidia-uvm), or `nvidia-smi` (for the "
                "others), which create the files; start nvidia-persistenced with the node, which does this after each "
                "reboot",
            ),
        ),
    ),
    Rule(
        "SG-K036",
        title="a rollout took longer than the cluster allows",
        cause="the new pods of the Deployment[[ {name}]] were not ready within its `progressDeadlineSeconds` (600 if "
        "nobody sets it). This is a consequence: either the model loads longer, or a pod can't start",
        fix="look at the pods (`kubectl get pods`): for Pending or an error, `kubectl describe pod POD` names the "
        "reason; for Running without Ready, read `kubectl logs POD`: if the model only downloads or loads, wait (the "
        "Deployment goes on after this message), and raise `spec.progressDeadlineSeconds` above the time that loading "
        "takes",
        source="The message comes from kubectl (pkg/polymorphichelpers/rollout_status.go) and Helm. The failure was "
        "not reproduced.",
        explain="The deadline does not end the pods.",
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
        cause="for each request, the gateway (Envoy) asks the endpoint picker which pod takes it, and this gRPC call "
        "has failed (UNAVAILABLE), so clients get status 500 or 503. The model's pods are not involved",
        fix="check that the picker's pod is ready, and read its log; compare its Service and port with "
        "`endpointPickerRef` (in old versions `extensionRef`) of the InferencePool, and the InferencePool's conditions "
        "(`kubectl describe inferencepool`); compare TLS on both sides: the picker serves with TLS by default "
        "(`--secure-serving`), and some gateways support only this, while others support only plain text",
        source="The words come from Envoy (source/extensions/filters/http/ext_proc), and 14 is gRPC's UNAVAILABLE. "
        "higress-group/higress issue 3701 (2026-04) quotes them; kgateway-dev/kgateway issue 11429 (2025-06) is about "
        "a picker without TLS. The failure was not reproduced.",
        explain="With `failureMode: FailOpen` in the InferencePool, gateways that support it send the requests to any "
        "pod while the picker is gone.",
        patterns=compile_patterns(r"ext_proc_error_gRPC_error_14\b"),
        inputs=("log", "docker"),
    ),
)
