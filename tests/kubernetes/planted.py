"""Valid manifests, and a change for each mistake that no schema finds: for the rules and for a real API server."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable
from typing import Any

import yaml

# one object of each kind that a rule is about, without a mistake
VALID = """
apiVersion: v1
kind: Namespace
metadata: { name: demo, labels: { pod-security.kubernetes.io/enforce: restricted } }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: engine }
spec:
  replicas: 2
  strategy: { type: RollingUpdate, rollingUpdate: { maxSurge: 0, maxUnavailable: 1 } }
  selector: { matchLabels: { app: engine } }
  template: &template
    metadata: { labels: { app: engine } }
    spec: &pod
      enableServiceLinks: false
      terminationGracePeriodSeconds: 60
      securityContext: { runAsNonRoot: true, runAsUser: 2000, seccompProfile: { type: RuntimeDefault } }
      resourceClaims: [{ name: gpus, resourceClaimTemplateName: gpus }]
      containers:
        - name: engine
          image: engine:1
          args: ["$(ADDRESS)", "$$(TEXT)"]
          env:
            - { name: HOST, value: a }
            - { name: ADDRESS, value: "http://$(HOST)" }
            - { name: KEY, valueFrom: { secretKeyRef: { name: keys, key: key } } }
          ports: [{ name: http, containerPort: 8000, protocol: TCP }]
          resources:
            requests: { cpu: 500m, memory: 2Gi, nvidia.com/gpu: "2" }
            limits: { memory: 4Gi, nvidia.com/gpu: "2" }
          readinessProbe: { httpGet: { path: /health, port: http } }
          lifecycle: { preStop: { exec: { command: [sleep, "15"] } } }
          securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: [ALL] } }
          volumeMounts: [{ name: scratch, mountPath: /tmp }, { name: files, mountPath: /files }]
      volumes:
        - { name: scratch, emptyDir: { sizeLimit: 1Gi } }
        - { name: files, configMap: { name: files } }
        - { name: models, persistentVolumeClaim: { claimName: models } }
---
apiVersion: v1
kind: Service
metadata: { name: vllm }
spec: { selector: { app: engine }, ports: [{ name: http, port: 80, protocol: TCP, targetPort: http }] }
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: { name: engine }
spec: { maxUnavailable: 1, selector: { matchLabels: { app: engine } } }
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: models }
spec: { accessModes: [ReadWriteMany], resources: { requests: { storage: 200Gi } } }
---
apiVersion: v1
kind: ConfigMap
metadata: { name: files }
data: { a: text }
---
apiVersion: v1
kind: Secret
metadata: { name: keys }
data: { key: a2V5 }
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: { name: gpus }
---
apiVersion: batch/v1
kind: Job
metadata: { name: download }
spec: { template: { metadata: { labels: { app: download } }, spec: { <<: *pod, restartPolicy: Never } } }
---
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
metadata: { name: group }
spec:
  startupPolicy: LeaderCreated
  rolloutStrategy: { type: RollingUpdate, rollingUpdateConfiguration: { maxSurge: 0, maxUnavailable: 1 } }
  leaderWorkerTemplate: { size: 2, leaderTemplate: *template, workerTemplate: *template }
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: { name: group }
spec:
  scaleTargetRef: { kind: LeaderWorkerSet, name: group }
  minReplicaCount: 1
  maxReplicaCount: 2
  triggers: [{ type: prometheus, metadata: { serverAddress: "http://prometheus:9090", query: up, threshold: "5" } }]
---
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: { name: engine }
spec: { selector: { matchLabels: { app: engine } }, podMetricsEndpoints: [{ port: http }] }
"""
Objects = dict[str, Any]


def valid() -> tuple[list[Any], Objects]:
    """The valid objects, and the same by kind; nothing is shared between them."""
    # one document, because an anchor ends with its document
    items = "".join("-\n" + textwrap.indent(part, "  ") for part in VALID.split("---\n"))
    made = [copy.deepcopy(one) for one in yaml.safe_load(items)]
    return made, {one["kind"]: one for one in made}


def container(by: Objects) -> Any:
    return pod(by)["containers"][0]


def pod(by: Objects) -> Any:
    return by["Deployment"]["spec"]["template"]["spec"]


def resources(by: Objects) -> Any:
    return container(by)["resources"]


def group_limits(by: Objects) -> Any:
    return by["LeaderWorkerSet"]["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]


def set_(place: Callable[[Objects], Any], **values: Any) -> Callable[[Objects], Any]:
    """A change that sets fields of a mapping; `None` removes a field."""

    def change(by: Objects) -> None:
        for name, value in values.items():
            place(by).pop(name, None) if value is None else place(by).update({name: value})

    return change


MISTAKES: dict[str, tuple[str, Callable[[Objects], Any]]] = {
    "fractional GPU": (
        "whole-gpus", lambda by: [one.update({"nvidia.com/gpu": "0.5"}) for one in resources(by).values()]),
    "GPU request differs": ("gpu-limit", lambda by: resources(by)["requests"].update({"nvidia.com/gpu": "1"})),
    "GPU without a limit": ("gpu-limit", lambda by: resources(by)["limits"].pop("nvidia.com/gpu")),
    "bad quantity": ("quantity", lambda by: resources(by)["limits"].update({"memory": "4 GB"})),
    "negative quantity": ("quantity", lambda by: resources(by)["requests"].update({"cpu": "-1"})),
    "bad size of a claim": (
        "quantity", lambda by: by["PersistentVolumeClaim"]["spec"]["resources"]["requests"].update(storage="200GB")),
    "bad size of a folder": ("quantity", lambda by: pod(by)["volumes"][0]["emptyDir"].update(sizeLimit="1g")),
    "request above limit": ("limit", lambda by: resources(by)["requests"].update({"memory": "8Gi"})),
    "selector mismatch": (
        "selector", lambda by: by["Deployment"]["spec"]["selector"]["matchLabels"].update(app="other")),
    "missing volume": ("volume", lambda by: pod(by)["volumes"].pop(0)),
    "two mounts at the same path": (
        "mount-path", lambda by: container(by)["volumeMounts"][1].update(mountPath="/tmp/")),
    "two containers with the same name": ("pod-names", lambda by: pod(by)["containers"].append(container(by))),
    "two variables with the same name": (
        "pod-names", lambda by: container(by)["env"].append({"name": "HOST", "value": "b"})),
    "two volumes with the same name": (
        "pod-names", lambda by: pod(by)["volumes"].append({"name": "files", "emptyDir": {}})),
    "port name is too long": ("port-name", lambda by: container(by)["ports"].append(
        {"name": "openai-compatible", "containerPort": 8001, "protocol": "TCP"})),
    "probe of a port that does not exist": (
        "probe-port", lambda by: container(by)["readinessProbe"]["httpGet"].update(port="api")),
    "variable refers to a later variable": ("variable", lambda by: container(by)["env"].reverse()),
    "argument refers to an unknown variable": ("variable", lambda by: container(by)["args"].append("$(POD_IP)")),
    "grace period not longer than preStop": ("grace", lambda by: pod(by).update(terminationGracePeriodSeconds=15)),
    "a Service called vllm": ("service-links", lambda by: pod(by).pop("enableServiceLinks")),
    "pod runs as root": ("pod-security", lambda by: pod(by)["securityContext"].update(runAsUser=0)),
    "volume with a folder of the node": (
        "pod-security", lambda by: pod(by)["volumes"].append({"name": "weights", "hostPath": {"path": "/srv"}})),
    "container adds a capability": (
        "pod-security", lambda by: container(by)["securityContext"]["capabilities"].update(add=["IPC_LOCK"])),
    "privilege escalation": (
        "pod-security", lambda by: container(by)["securityContext"].pop("allowPrivilegeEscalation")),
    "bad name": ("name", lambda by: by["Deployment"]["metadata"].update(name="Engine_1")),
    "bad value of a label": (
        "name", lambda by: by["Deployment"]["spec"]["template"]["metadata"]["labels"].update(model="org/name")),
    "Service begins with a digit": ("name", lambda by: by["Service"]["metadata"].update(name="7b")),
    "Service selects nothing": ("selects-nothing", lambda by: by["Service"]["spec"]["selector"].update(app="x")),
    "monitor selects nothing": (
        "selects-nothing", lambda by: by["PodMonitor"]["spec"]["selector"]["matchLabels"].update(app="x")),
    "Service of a port that does not exist": (
        "target-port", lambda by: by["Service"]["spec"]["ports"][0].update(targetPort="api")),
    "missing Secret": ("reference", lambda by: by["Secret"]["metadata"].update(name="other")),
    "missing claim": ("reference", lambda by: by["PersistentVolumeClaim"]["metadata"].update(name="other")),
    "missing ConfigMap": ("reference", lambda by: by["ConfigMap"]["metadata"].update(name="other")),
    "missing resource claim": ("reference", lambda by: by["ResourceClaimTemplate"]["metadata"].update(name="other")),
    "budget blocks drains": ("budget", set_(lambda by: by["PodDisruptionBudget"]["spec"], maxUnavailable=0)),
    "budget needs all replicas": (
        "budget", set_(lambda by: by["PodDisruptionBudget"]["spec"], maxUnavailable=None, minAvailable=2)),
    "rollout starts new GPU pods first": (
        "rollout", lambda by: by["Deployment"]["spec"].pop("strategy")),
    "rollout that can't replace any pod": (
        "rollout", lambda by: by["Deployment"]["spec"]["strategy"]["rollingUpdate"].update(maxUnavailable=0)),
    "Job restarts always": ("job", lambda by: by["Job"]["spec"]["template"]["spec"].pop("restartPolicy")),
    "replicas next to an autoscaler": ("autoscaler", lambda by: by["LeaderWorkerSet"]["spec"].update(replicas=2)),
    "autoscaler whose minimum exceeds its maximum": (
        "autoscaler", set_(lambda by: by["ScaledObject"]["spec"], maxReplicaCount=0)),
    "group rollout that can't replace any pod": ("leader-worker-set", set_(group_limits, maxUnavailable=0)),
    "group surges above 100 %": ("leader-worker-set", set_(group_limits, maxSurge="150%")),
    "group waits for its leader": (
        "leader-worker-set", set_(lambda by: by["LeaderWorkerSet"]["spec"], startupPolicy="LeaderReady")),
    "Service has the group's name": ("leader-worker-set", lambda by: by["Service"]["metadata"].update(name="group")),
    "large ConfigMap": ("size", lambda by: by["ConfigMap"]["data"].update(a="x" * (2**20 + 1))),
}  # fmt: skip

# the same object twice
TWINS = "two objects with the same name"
# about kinds that the real server of the tests lacks
NOT_SENT = ("missing resource claim",)
# what follows from the mistakes that a server accepts
EFFECTS: dict[str, str] = {
    "two mounts at the same path": "one volume hides the other",
    "Job restarts always": "the controller refuses the pods",
    "two variables with the same name": "only the last value counts",
    "probe of a port that does not exist": "the kubelet can't resolve the port, so the pod never becomes ready",
    "variable refers to a later variable": "the variable contains the text `$(NAME)`",
    "argument refers to an unknown variable": "the engine gets the text `$(NAME)`",
    "grace period not longer than preStop": "the kubelet kills the engine during `preStop`, which cuts off requests",
    "a Service called vllm": "Kubernetes sets `VLLM_PORT=tcp://…`, which vLLM reads as its port",
    "pod runs as root": "Pod Security refuses each pod, so the Deployment gets no pods",
    "volume with a folder of the node": "Pod Security refuses each pod, so the Deployment gets no pods",
    "container adds a capability": "Pod Security refuses each pod, so the Deployment gets no pods",
    "privilege escalation": "Pod Security refuses each pod, so the Deployment gets no pods",
    "Service selects nothing": "the Service has no endpoints, and refuses all connections",
    "monitor selects nothing": "Prometheus never reads the metrics",
    "Service of a port that does not exist": "the Service has no endpoint for this port",
    "missing Secret": "the container is never created (CreateContainerConfigError)",
    "missing claim": "the pod stays Pending",
    "missing ConfigMap": "the volume is never mounted, and the pod never starts",
    "missing resource claim": "the pod stays Pending (not tested: this API server is older than resource claims)",
    "budget blocks drains": "the drain of its node waits forever",
    "budget needs all replicas": "the drain of its node waits forever",
    "rollout starts new GPU pods first": "the new pod stays Pending while the old pod has the GPUs, so no rollout ends",
    "replicas next to an autoscaler": "each `kubectl apply` resets the number of replicas",
    "autoscaler whose minimum exceeds its maximum": "if the webhook of KEDA runs, it refuses the ScaledObject",
    "group rollout that can't replace any pod": "if the webhook of LeaderWorkerSet runs, it refuses the group",
    "group surges above 100 %": "if the webhook of LeaderWorkerSet runs, it refuses the group",
    "group waits for its leader": "all nodes of the group wait for each other forever",
    "Service has the group's name": "the controller of LeaderWorkerSet uses this Service instead of its own",
    TWINS: "the last object replaces the others",
}
