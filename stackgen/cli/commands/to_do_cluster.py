"""What a stack in a cluster needs and its manifests don't create, for the end of `render`."""

from __future__ import annotations

from collections.abc import Iterator

from stackgen.resolve.cluster import count_gpus
from stackgen.stack.folder import Stack

__all__ = ["find_cluster_needs"]

GUIDE = "docs/how-to/run-on-kubernetes.md"
# nodes often have this number of GPUs, which is half of the default of `gpus_per_node`
SMALL_NODE = 4
PLUGINS = {"nvidia": "NVIDIA", "cdi": "NVIDIA", "amd": "AMD"}


def find_cluster_needs(stack: Stack) -> Iterator[str]:
    """One sentence for each thing that the cluster must have for this stack, and how to check them."""
    found = [*_secrets(stack), *_images(stack), *_operators(stack)]
    yield from found
    if found and stack.spec.target == "kubernetes":
        yield f"check what the cluster already has: `stackgen doctor {stack.folder}`"
    elif found:
        yield (
            f"set `target: kubernetes` in {stack.folder / stack.source}. Then `stackgen doctor {stack.folder}` "
            "checks what the cluster already has"
        )


def _secrets(stack: Stack) -> Iterator[str]:
    settings, namespace = stack.spec.cluster, stack.spec.namespace
    if name := settings.tls_secret:
        yield (
            f"create the secret {name} with the gateway's certificate, unless cert-manager creates it: `kubectl create "
            f"namespace {namespace}`, then `kubectl -n {namespace} create secret tls {name} --cert site.crt "
            "--key site.key`"
        )
    for name in settings.image_pull_secrets:
        yield (
            f"create the secret {name} for the registry: `kubectl -n {namespace} create secret docker-registry {name} "
            "--docker-server=… --docker-username=… --docker-password=…`"
        )
    claims = dict.fromkeys(one.claim for one in (settings.weights, settings.cache) if one.claim)
    if claims:
        yield f"create the PersistentVolumeClaim {' and '.join(claims)} in the namespace {namespace}"


def _images(stack: Stack) -> Iterator[str]:
    registry = stack.spec.cluster.registry
    built = dict.fromkeys(one.image for one in stack.plan.services if one.build or not one.pull)
    # without a registry, a warning says the same
    if registry and built:
        names = ", ".join(f"{registry}/{image}" for image in built)
        yield f"build and push {names} ({GUIDE} shows the commands)"


def _operators(stack: Stack) -> Iterator[str]:
    plan, settings = stack.plan, stack.spec.cluster
    drivers = dict.fromkeys(PLUGINS[one.gpus.driver] for one in plan.services if one.gpus)
    for vendor in drivers:
        what = "DRA driver" if settings.gpus_by == "dra" else "device plugin"
        yield f"the nodes need the {what} of {vendor} for their GPUs"
    large = max(stack.spec.models, key=count_gpus)
    if count_gpus(large) > SMALL_NODE and "gpus_per_node" not in settings.model_fields_set:
        yield (
            f"the manifests assume nodes with {settings.gpus_per_node} GPUs, and a replica of {large.model} needs "
            f"{count_gpus(large)}: if your nodes have another number of GPUs, set `kubernetes.gpus_per_node`"
        )
    own = (one.kubernetes.node_selector for one in stack.spec.models if one.kubernetes)
    chosen = dict.fromkeys(f"{key}={value}" for one in (settings.node_selector, *own) for key, value in one.items())
    # labels with a prefix, such as nvidia.com/gpu.product, come from a program
    if labels := [one for one in chosen if "/" not in one.partition("=")[0]]:
        yield f"label the nodes: `kubectl label node NODE LABEL` with {' and '.join(labels)}"
    if any(one.group for one in plan.services):
        yield "the cluster needs the controller of LeaderWorkerSet 0.10 or newer (lws.sigs.k8s.io)"
    if any(one.path == "monitoring/prometheus.yml" for one in plan.documents):
        select = "" if settings.monitoring_labels else (
            "; if your Prometheus selects monitors by a label, as that of kube-prometheus-stack does, set "
            "`kubernetes.monitoring_labels`"
        )  # fmt: skip
        yield f"the cluster needs the Prometheus operator, which reads monitors and alerts{select}"
    if settings.autoscaling and any(one.max_replicas for one in plan.services):
        need = "KEDA" if settings.autoscaling.by == "keda" else "an adapter for the metric vllm_num_requests_waiting"
        yield f"the cluster needs {need}, for the models with `max_replicas`"
