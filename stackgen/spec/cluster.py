"""The fields of `kubernetes`: what only the target Kubernetes needs, for the whole stack and for one model.

Formats: Kubernetes 1.37, apimachinery `pkg/api/resource` (quantities) and `pkg/util/validation` (names).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from stackgen.spec.strict import Strict
from stackgen.spec.types import Text

__all__ = ["AutoscalingSpec", "ClaimSpec", "KubernetesModelSpec", "KubernetesSpec", "TolerationSpec"]

# a positive quantity in the form that manifests write: 500m, 4, 80Gi
QUANTITY = r"^[1-9][0-9]*(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
DNS_NAME = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$"
# an optional prefix, which is a DNS name, and a name
LABEL_KEY = r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
# an extended resource: with a domain, and not one of Kubernetes itself
RESOURCE = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$"

Quantity = Annotated[str, StringConstraints(pattern=QUANTITY)]
Label = Annotated[str, StringConstraints(pattern=DNS_LABEL)]
DnsName = Annotated[str, StringConstraints(pattern=DNS_NAME, max_length=253)]
LabelKey = Annotated[str, StringConstraints(pattern=LABEL_KEY)]
ResourceName = Annotated[str, StringConstraints(pattern=RESOURCE)]
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE)]


class ClaimSpec(Strict):
    """Sets a persistent volume claim: its size and class, or an existing claim."""

    size: Quantity = Field("200Gi", description="Size of the PersistentVolumeClaim")
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = Field(
        "ReadWriteMany",
        description="`ReadWriteMany`: pods on all nodes use the claim. `ReadWriteOnce`: all pods must be on one node",
    )
    storage_class: DnsName | None = Field(None, description="Storage class. Default: the cluster's default class")
    claim: DnsName | None = Field(None, description="Name of an existing claim in the namespace, instead of a new one")


class AutoscalingSpec(Strict):
    """Adjusts the number of replicas to the number of waiting requests. Applies to models with `max_replicas`."""

    by: Literal["hpa", "keda"] = Field(
        "keda",
        description="`keda`: a ScaledObject that queries Prometheus. `hpa`: a HorizontalPodAutoscaler, which needs an "
        "adapter for the metric vllm_num_requests_waiting",
    )
    waiting: int = Field(
        5, ge=1, description="Number of waiting requests per replica. If more requests wait, a replica is added"
    )
    prometheus: Text | None = Field(
        None, pattern=r"^https?://[^\s@]+$", description="URL of Prometheus inside the cluster. KEDA needs it"
    )
    cooldown: int = Field(
        360, ge=0, le=86400, description="Seconds without waiting requests until a replica is removed"
    )


class TolerationSpec(Strict):
    """Allows pods of engines on nodes with a taint."""

    key: LabelKey = Field(description="Key of the taint")
    value: LabelValue | None = Field(None, description="Value of the taint. Default: any value")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Effect of the taint. Default: all effects"
    )


class KubernetesModelSpec(Strict):
    """Sets what the pods of one model need."""

    cpu: Quantity | None = Field(None, description="CPU cores that each pod reserves. Default: 1")
    memory: Quantity | None = Field(
        None,
        description=(
            "Memory request and memory limit of each pod. If not set, the request is 2Gi, and there is no limit"
        ),
    )
    gpu_memory: Quantity | None = Field(
        None, description="Memory that each GPU must have at least, for example 80Gi. Needs `gpus_by: dra`"
    )
    gpu_resource: ResourceName | None = Field(
        None,
        description="Resource by which the device plugin counts the GPUs of this model, for example "
        "nvidia.com/mig-3g.40gb. Default: nvidia.com/gpu or amd.com/gpu",
    )
    resources: dict[ResourceName, Annotated[int, Field(ge=1, le=1024)]] = Field(
        {},
        description="Further devices that each pod of this model needs, by the resource of their device plugin, for "
        "example `{rdma/hca: 1}`",
    )
    annotations: dict[LabelKey, str] = Field(
        {},
        description="Annotations of the pods of this model, for example `{k8s.v1.cni.cncf.io/networks: rdma-net}`, "
        "which joins a second network of Multus",
    )
    node_selector: dict[LabelKey, LabelValue] = Field({}, description="Labels of the nodes that may run this model")
    tolerations: tuple[TolerationSpec, ...] = Field(
        (), description="Further taints that the pods of this model tolerate"
    )
    max_replicas: int | None = Field(
        None, ge=1, le=256, description="Maximum number of replicas with autoscaling. The minimum is `replicas`"
    )


class KubernetesSpec(Strict):
    """Settings for `target: kubernetes`. With Docker Compose, they have no effect."""

    namespace: Label | None = Field(None, description="Namespace of all objects. Default: the stack's name")
    create_namespace: bool = Field(True, description="Whether the manifests create the namespace")
    cluster_domain: DnsName = Field("cluster.local", description="DNS domain of the cluster")
    gpus_per_node: int = Field(
        8, ge=1, le=16, description="GPUs of one node. A model with more GPUs runs on several nodes (LeaderWorkerSet)"
    )
    gpus_by: Literal["device-plugin", "dra"] = Field(
        "device-plugin",
        description="How pods request GPUs: `device-plugin`: as a number. `dra`: through resource claims, which need "
        "Kubernetes 1.34 or newer and a DRA driver for NVIDIA GPUs",
    )
    weights: ClaimSpec = Field(ClaimSpec(), description="PersistentVolumeClaim for the weights of all models")
    cache: ClaimSpec = Field(
        ClaimSpec(size="50Gi"),
        description="PersistentVolumeClaims for the engines' compile caches. Default storage class: the class of "
        "`weights`",
    )
    registry: Text | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9._:/-]*[a-z0-9]$",
        description="Registry and folder of the images that stackgen builds, for example registry.example.com/llm",
    )
    image_pull_secrets: tuple[DnsName, ...] = Field((), description="Existing secrets for private registries")
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field(
        "ClusterIP", description="How the gateway is published. `ClusterIP`: only inside the cluster"
    )
    gateway_replicas: int = Field(
        2,
        ge=1,
        le=16,
        description="Number of pods of the gateway. Each pod counts the requests and tokens of a key separately. "
        "With `1`, the limits of keys are not multiplied, but a new pod begins to count at 0, and requests fail while "
        "no pod is ready",
    )
    tls_secret: DnsName | None = Field(
        None,
        description="Existing secret of the type kubernetes.io/tls with the gateway's certificate, in the namespace of "
        "the stack, for example from cert-manager. Turns on HTTPS together with `gateway.tls`",
    )
    node_selector: dict[LabelKey, LabelValue] = Field(
        {}, description="Labels of the nodes that may run engines, for example nvidia.com/gpu.product"
    )
    tolerations: tuple[TolerationSpec, ...] = Field(
        (), description="Taints of nodes that engines tolerate. Models with GPUs always tolerate the GPU's own taint"
    )
    annotations: dict[LabelKey, str] = Field(
        {}, description='Annotations of all pods, for example `{sidecar.istio.io/inject: "false"}`'
    )
    runtime_class: DnsName | None = Field(
        None, description="Runtime class of pods with GPUs, for example nvidia. Default: the cluster's default"
    )
    network_policies: bool = Field(True, description="Allow only the connections that the stack needs")
    monitoring_namespace: Label = Field("monitoring", description="Namespace of Prometheus, which may read metrics")
    monitoring_labels: dict[LabelKey, LabelValue] = Field(
        {},
        description="Labels of the PodMonitors, ServiceMonitors and PrometheusRules, by which your Prometheus selects "
        "them, for example `{release: kube-prometheus-stack}`",
    )
    dashboard_labels: dict[LabelKey, LabelValue] = Field(
        {"grafana_dashboard": "1"},
        description="Labels of the ConfigMaps with dashboards, by which the sidecar of your Grafana selects them",
    )
    autoscaling: AutoscalingSpec | None = Field(
        None,
        description="Autoscaling: the number of replicas of each model with `max_replicas` follows the number of "
        "waiting requests. Default: no autoscaling",
    )
