"""Fields of a stack file that have no effect next to its other fields: one warning for each, with the reason.

A field with its default value is not reported, and neither are fields of an add-on with `enabled: false`, which keeps
them. `endpoints` and `storage.offline` say something about other servers and about later models.
Sources: FastChat 0.2.36, `fastchat/model/model_adapter.py` (8-bit compression, CPU offloading); the flags of
`llama-server`, build 11434, which ignores layers for a GPU that it does not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackgen.plan import Bind, Plan, Site, Volume
from stackgen.resolve.addons.backends import Gateway
from stackgen.spec import StackSpec, Strict, is_local

__all__ = ["find_unused", "find_unused_in_cluster", "uses_storage"]

PROXY = ("HTTP_PROXY", "HTTPS_PROXY")


def find_unused(stack: StackSpec, site: Site, plan: Plan) -> list[str]:
    """Warnings about fields without effect; `plan` is finished. `up` prints those of local processes."""
    if not site.uses_containers:
        return []
    found = [*_stack_fields(stack, plan), *_storage_fields(stack, plan), *_egress_fields(stack, site, plan)]
    found += _gateway_fields(stack, plan)
    for index, model in enumerate(stack.models):
        found += ((f"models[{index}].{field}", reason) for field, reason in _model_fields(model))
    return [f"{path} has no effect: {reason}" for path, reason in found]


# what a cluster's own Prometheus and Grafana have instead
NOT_IN_A_CLUSTER = (
    "alertmanager", "grafana_port", "prometheus_port", "retention", "reload_interval", "prometheus_image",
    "grafana_image", "dcgm_image",
)  # fmt: skip


def find_unused_in_cluster(stack: StackSpec) -> list[str]:
    """Warnings about fields that only a stack for Compose uses: addresses of the machine, Prometheus, Grafana."""
    reason = "on Kubernetes, the stack starts no Prometheus and no Grafana. Configure those of the cluster"
    is_on = stack.monitoring is not None and stack.monitoring.enabled
    fields = [field for field in NOT_IN_A_CLUSTER if is_on and _is_set(stack.monitoring, field)]
    found = [f"monitoring.{field} has no effect: {reason}" for field in fields]
    if stack.cluster.service_type == "ClusterIP":
        remedy = "set `kubernetes.service_type: LoadBalancer`, or add an Ingress"
        bound = [field for field, spec in (("bind", stack), ("ui.bind", stack.ui)) if _is_set(spec, "bind")]
        found += [f"{field} opens no port outside a Kubernetes cluster: {remedy}" for field in bound]
    return found


def _is_set(spec: Strict | None, field: str) -> bool:
    """Whether the user's file sets `field`, to another value than its default."""
    return spec is not None and getattr(spec, field) != type(spec).model_fields[field].default


def _stack_fields(stack: StackSpec, plan: Plan) -> Iterator[tuple[str, str]]:
    # a stack for both targets can set `target`
    if stack.kubernetes and "target" not in stack.model_fields_set:
        yield "kubernetes", "this is a stack for Compose. For Kubernetes, set `target: kubernetes`"
    if _is_set(stack, "gpu_driver") and not any(model.gpus for model in stack.models):
        yield "gpu_driver", "no model uses a GPU"
    if _is_set(stack, "cpu_arch") and not any(_is_vllm_on_cpu(model) for model in stack.models):
        yield "cpu_arch", "only vLLM's image for the CPU depends on it"
    dcgm = any(one.name == "dcgm-exporter" for one in plan.services)
    if stack.monitoring and stack.monitoring.enabled and _is_set(stack.monitoring, "dcgm_image") and not dcgm:
        yield "monitoring.dcgm_image", "no model uses an NVIDIA GPU"


def _is_vllm_on_cpu(model: Any) -> bool:
    return model.engine == "vllm" and not model.gpus and not model.image


def uses_storage(plan: Plan) -> bool:
    """Whether a container mounts the model storage: not if all models are in folders on this machine."""
    mounts = [one for service in plan.services for one in service.mounts if isinstance(one, (Bind, Volume))]
    return any(one.target == "/models" for one in mounts)


def _storage_fields(stack: StackSpec, plan: Plan) -> Iterator[tuple[str, str]]:
    if not uses_storage(plan):
        for field in ("volume", "path", "hub_endpoint", "user"):
            if _is_set(stack.storage, field):
                yield f"storage.{field}", "all models are in folders on this machine, so nothing is downloaded"
        return
    if _is_set(stack.storage, "volume") and stack.storage.path:
        yield "storage.volume", "the weights are in `storage.path`. Remove `volume` or `path`"
    if not any(service.role == "download" for service in plan.services):
        for field in ("hub_endpoint", "user"):
            if _is_set(stack.storage, field):
                yield f"storage.{field}", "with `storage.offline`, nothing is downloaded"


def _egress_fields(stack: StackSpec, site: Site, plan: Plan) -> Iterator[tuple[str, str]]:
    reason = "no service of this stack connects to other machines, and no image is built"
    builds = [one.build for one in plan.services if one.build]
    if stack.proxy and not builds and not any(dict(one.environment).get(PROXY[1]) for one in plan.services):
        yield "proxy", reason
    if stack.ca_certificates and not builds:
        path = site.local_path(stack.ca_certificates)
        if not any(getattr(mount, "target", "") == path for one in plan.services for mount in one.mounts):
            yield "ca_certificates", reason


def _gateway_fields(stack: StackSpec, plan: Plan) -> Iterator[tuple[str, str]]:
    spec = stack.gateway
    if spec is None or not spec.enabled:
        return
    data = next((one.data for one in plan.documents if isinstance(one.data, Gateway)), None)
    if spec.routing == "prefix" and data and not data.prefix_backends:
        yield "gateway.routing", "no model of vLLM or llama.cpp has several replicas to choose from"
    if _is_set(spec, "prefix_bytes") and spec.routing != "prefix":
        yield "gateway.prefix_bytes", "it needs `gateway.routing: prefix`"
    if spec.tls and spec.tls.names and spec.tls.certificate:
        yield "gateway.tls.names", "the names are for a generated certificate, and `certificate` is your own"


def _model_fields(model: Any) -> Iterator[tuple[str, str]]:
    if is_local(model.model) and model.revision:
        yield "revision", "a folder on this machine has no revisions"
    if not model.restart_hung and _is_set(model, "hang_timeout"):
        yield "hang_timeout", "`restart_hung` is false"
    if model.engine != "vllm" and model.gpu_memory_utilization is not None and not model.share_gpus:
        yield "gpu_memory_utilization", f"for {model.engine}, stackgen uses this field only together with `share_gpus`"
    if model.engine == "llamacpp" and model.trust_remote_code:
        yield "trust_remote_code", "a GGUF file contains no code"
    if model.engine == "llamacpp" and model.gpu_layers and not model.gpus:
        yield "gpu_layers", "the model has no GPU. Set `gpus`, or remove the field"
    if model.engine == "vllm" and not model.gpus and model.gpu_memory_utilization is not None:
        size = f"{model.cpu_kv_cache_gib} GiB"
        yield "gpu_memory_utilization", f"on the CPU, `cpu_kv_cache_gib` sets the size of vLLM's KV cache (now {size})"
    if model.engine == "vllm" and model.gpus and _is_set(model, "cpu_kv_cache_gib"):
        yield "cpu_kv_cache_gib", "the model uses GPUs, whose memory holds the KV cache"
    if model.engine == "fastchat":
        yield from _fastchat_fields(model)


def _fastchat_fields(model: Any) -> Iterator[tuple[str, str]]:
    if model.trust_remote_code:
        yield "trust_remote_code", "FastChat always runs the code of the model's repository"
    for field in ("cpu_offloading", "max_gpu_memory"):
        if getattr(model, field) and not model.gpus:
            yield field, "the model has no GPU. Set `gpus`, or remove the field"
    if model.cpu_offloading and model.gpus and not model.load_8bit:
        yield "cpu_offloading", "FastChat only offloads weights that it compresses. Set `load_8bit: true`"
