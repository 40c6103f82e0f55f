"""What differs in a cluster: one service for all replicas of a model, GPUs by number, and fields of Docker that remain.

A pod under Pod Security "restricted" sees no file of a node, and no container of a cluster can ask for a GPU by its
index (Kubernetes 1.37, "Pod Security Standards" and "Schedule GPUs").
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stackgen.catalog.sizes import guess_weight_bytes
from stackgen.errors import Mistake
from stackgen.plan import GpuRequest, Service
from stackgen.resolve.extras import split_local_path
from stackgen.spec import KubernetesModelSpec, ModelSpec, StackSpec, is_local
from stackgen.spec.types import guess_parameters

__all__ = ["count_gpus", "count_nodes", "find_cluster_mistakes", "find_cluster_warnings", "find_image_warnings",
           "gpus_of_node", "one_replica", "with_replicas"]  # fmt: skip

# fields of a model that only Docker has, and what to do in a cluster
DOCKER_ONLY = {
    "cpuset": "set `kubernetes.cpu`, the number of cores",
    "ipc": "set `shm_size`: pods share no memory with the node",
    "networks": "pods of one cluster reach each other without this field",
    "port": "all models answer at the gateway's port",
}
GPU_RESOURCES = ("nvidia.com/gpu", "amd.com/gpu")
MIG = "nvidia.com/mig-"
UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
GIB = 2**30
# for what the sizes of models leave out: layers that are not quantized, other files, an update of the weights' files
HEADROOM = 1.1


def one_replica(stack: StackSpec) -> StackSpec:
    """`stack` with one replica of each model, which stands for all of them."""
    models = tuple(one.model_copy(update={"replicas": 1}) for one in stack.models)
    return stack.model_copy(update={"models": models})


def count_nodes(model: ModelSpec, stack: StackSpec) -> int:
    """Number of nodes for one replica: 1, unless it has more GPUs than a node."""
    gpus, each = count_gpus(model), stack.cluster.gpus_per_node
    return max(1, -(-gpus // each))


def gpus_of_node(model: ModelSpec, stack: StackSpec) -> GpuRequest | None:
    """The GPUs of `model` on each of its nodes."""
    gpus = count_gpus(model)
    driver = "amd" if stack.gpu_driver == "amd" else "nvidia"
    return GpuRequest(driver, count=gpus // count_nodes(model, stack)) if gpus else None  # type: ignore[arg-type]


def with_replicas(service: Service, models: Mapping[str, ModelSpec]) -> Service:
    """`service` with the number of its replicas; `models` are the models by the name of their service."""
    model = models.get(service.name)
    if model is None:
        return service
    most = model.kubernetes.max_replicas or 0 if model.kubernetes else 0
    return replace(service, replicas=model.replicas, max_replicas=most)


def find_cluster_mistakes(stack: StackSpec) -> list[Mistake]:
    """Finds what a cluster can't do: files of this machine, indices of GPUs, and fields of Docker."""
    found = [mistake for index, model in enumerate(stack.models) for mistake in _find_in_model(index, model, stack)]
    if stack.gateway is not None and not stack.gateway.enabled:
        hint = "remove `gateway: false`: otherwise, every pod of the cluster can use the engines, and needs no key"
        found.append(Mistake("gateway", "can't be disabled on Kubernetes", hint=hint))
    tls = stack.gateway.tls if stack.gateway else None
    if tls and not tls.certificate and not stack.cluster.tls_secret:
        hint = "set `kubernetes.tls_secret` to a secret of cert-manager, or set `certificate` and `key`"
        found.append(Mistake("gateway.tls", "can't generate a certificate for Kubernetes", hint=hint))
    if tls and tls.redirect_port:
        hint = "remove the field: an ingress or a gateway of the cluster does the redirect"
        found.append(Mistake("gateway.tls.redirect_port", "has no effect on Kubernetes", hint=hint))
    if stack.cluster.tls_secret and not tls:
        hint = "set `gateway: {tls: generate}`, which turns HTTPS on"
        found.append(Mistake("kubernetes.tls_secret", "has no effect without `gateway.tls`", hint=hint))
    if stack.storage.path:
        hint = "remove the field, and set `kubernetes.weights`"
        found.append(Mistake("storage.path", "is a folder on this machine, which pods can't access", hint=hint))
    if stack.ui is not None:
        hint = "remove `ui`: its image needs root. Point any chat page at the gateway's URL"
        found.append(Mistake("ui", "is not available on Kubernetes", hint=hint))
    scaling = stack.cluster.autoscaling
    if scaling and scaling.by == "keda" and not scaling.prometheus:
        hint = "for example http://prometheus-operated.monitoring.svc:9090"
        found.append(
            Mistake("kubernetes.autoscaling.prometheus", "is required, because KEDA queries Prometheus", hint=hint)
        )
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", stack.namespace):
        hint = "set `kubernetes.namespace`"
        found.append(Mistake("name", f"{stack.namespace!r} can't be the name of a namespace", hint=hint))
    return found


def _find_in_model(index: int, model: Any, stack: StackSpec) -> Iterator[Mistake]:
    path, gpus, each = f"models[{index}]", model.gpus, stack.cluster.gpus_per_node
    settings = model.kubernetes
    if gpus == "all":
        yield Mistake(f"{path}.gpus", "`all` has no meaning in a cluster", hint="set the number of GPUs")
    elif isinstance(gpus, tuple) and len(gpus) % model.replicas:
        yield Mistake(f"{path}.gpus", f"the number of GPUs ({len(gpus)}) can't be divided evenly among "
                      f"{model.replicas} replicas", hint="set the number of GPUs of one replica")  # fmt: skip
    elif (nodes := count_nodes(model, stack)) > 1:
        if model.engine != "vllm":
            yield Mistake(
                f"{path}.gpus",
                f"{gpus} GPUs are more than one node has ({each}), but {model.engine} runs on one node only",
                hint="use `engine: vllm`, or set kubernetes.gpus_per_node",
            )
        elif count_gpus(model) % nodes:
            yield Mistake(f"{path}.gpus", f"{gpus} GPUs can't be divided evenly among {nodes} nodes with up to {each} "
                          "GPUs", hint=f"use a multiple of {nodes}, or set kubernetes.gpus_per_node")  # fmt: skip
    if model.share_gpus:
        yield Mistake(f"{path}.share_gpus", "is not available on Kubernetes", hint="give each model its own GPUs")
    for field, hint in DOCKER_ONLY.items():
        if getattr(model, field):
            yield Mistake(f"{path}.{field}", "has no effect on Kubernetes", hint=f"remove the field: {hint}")
    if getattr(model, "cache_aware", False):
        hint = "set `gateway: {routing: prefix}`, which has the same effect without vllm-router"
        yield Mistake(f"{path}.cache_aware", "is not available on Kubernetes", hint=hint)
    hint = "use a Hub id: the Job `download` then stores the files in the PersistentVolumeClaim for weights"
    if is_local(model.model):
        yield Mistake(f"{path}.model", "is a path on this machine, which pods can't access", hint=hint)
    for number, lora in enumerate(getattr(model, "lora_adapters", ())):
        if is_local(lora.path):
            yield Mistake(f"{path}.lora_adapters[{number}].path", "is a path on this machine, which pods can't access",
                          hint=hint)  # fmt: skip
    for number, group in enumerate(model.group_add):
        if not group.isdecimal():
            yield Mistake(f"{path}.group_add[{number}]", f"{group!r} is a name, but pods need the group's number",
                          hint="run `getent group NAME` in the image, which shows the number")  # fmt: skip
    if model.user and not re.fullmatch(r"[1-9]\d*(:\d+)?", model.user):
        yield Mistake(f"{path}.user", "must be the numbers of a user (not root) and a group",
                      hint="for example 2000:0")  # fmt: skip
    for number, word in enumerate(model.extra_args):
        if split_local_path(word)[1]:
            yield Mistake(f"{path}.extra_args[{number}]", "is a path on this machine, which pods can't access",
                          hint="use a path below /models, in the PersistentVolumeClaim for weights")  # fmt: skip
    if settings and settings.max_replicas and settings.max_replicas < model.replicas:
        yield Mistake(f"{path}.kubernetes.max_replicas", f"is lower than `replicas`, which is {model.replicas}",
                      hint="`replicas` is the minimum, and `max_replicas` the maximum")  # fmt: skip
    if settings and settings.max_replicas and not stack.cluster.autoscaling:
        yield Mistake(f"{path}.kubernetes.max_replicas", "has no effect without kubernetes.autoscaling",
                      hint="set `kubernetes: {autoscaling: {by: keda, prometheus: URL}}`")  # fmt: skip
    if settings and settings.gpu_memory and stack.cluster.gpus_by != "dra":
        yield Mistake(f"{path}.kubernetes.gpu_memory", "needs resource claims", hint="set `kubernetes.gpus_by: dra`")
    if settings:
        yield from _find_resource_mistakes(f"{path}.kubernetes", model, settings, stack)
    if stack.cluster.gpus_by == "dra" and stack.gpu_driver == "amd" and model.gpus:
        yield Mistake("kubernetes.gpus_by", "`dra` is for NVIDIA GPUs", hint="remove it")


def _find_resource_mistakes(
    path: str, model: Any, settings: KubernetesModelSpec, stack: StackSpec
) -> Iterator[Mistake]:
    own = settings.gpu_resource or ("amd.com/gpu" if stack.gpu_driver == "amd" else "nvidia.com/gpu")
    if settings.gpu_resource and not model.gpus:
        yield Mistake(f"{path}.gpu_resource", "has no effect without `gpus`", hint="set `gpus: 1`, or remove the field")
    if settings.gpu_resource and stack.cluster.gpus_by == "dra":
        yield Mistake(f"{path}.gpu_resource", "has no effect with `kubernetes.gpus_by: dra`, whose pods request GPUs "
                      "through claims", hint="remove one of the two fields")  # fmt: skip
    for name in settings.resources:
        if name in (own, *GPU_RESOURCES):
            yield Mistake(f"{path}.resources.{name}", "is a GPU, which `gpus` requests",
                          hint="set `gpus`, and for another resource of the device plugin `gpu_resource`")  # fmt: skip
        elif name.startswith(MIG):
            yield Mistake(f"{path}.resources.{name}", "is a part of a GPU",
                          hint=f"set `gpus: 1` for the model, and `gpu_resource: {name}`")  # fmt: skip
    for name in (*settings.resources, *([settings.gpu_resource] if settings.gpu_resource else [])):
        if re.search(r"(^|\.)kubernetes\.io/", name) or name.startswith("requests."):
            field = "resources" if name in settings.resources else "gpu_resource"
            yield Mistake(f"{path}.{field}", f"{name} can't be a resource of a device plugin",
                          hint="`kubectl describe nodes` lists the resources under Allocatable")  # fmt: skip


def find_cluster_warnings(stack: StackSpec) -> list[str]:
    """Warns of a claim that is smaller than the weights seem to be, of a node for all replicas, and of GPUs by name."""
    weights = stack.cluster.weights
    found = [] if weights.claim else _find_claim_warnings(stack, weights.size)
    if weights.access_mode == "ReadWriteOnce" and sum(one.replicas for one in stack.models) > 1:
        found.append("kubernetes.weights is ReadWriteOnce, so all replicas must run on one node")
    for index, model in enumerate(stack.models):
        nodes, tensor = count_nodes(model, stack), getattr(model, "tensor_parallel_size", None) or 1
        if nodes > 1 and tensor > (each := count_gpus(model) // nodes):
            found.append(
                f"models[{index}].tensor_parallel_size: {tensor} is more than the {each} GPUs of a node, so all GPUs "
                "exchange data over the network for each layer. Without InfiniBand or RDMA, that is slow. Without the "
                f"field, the model gets a tensor parallel size of {each} and {nodes} pipeline stages"
            )
        if isinstance(model.gpus, tuple) and (count := count_gpus(model)):
            found.append(
                f"models[{index}].gpus names GPUs, but the scheduler of a cluster chooses GPUs itself: each replica "
                f"gets {count} of the free GPUs. Write `gpus: {count}`"
            )
    return found


def _find_claim_warnings(stack: StackSpec, quantity: str) -> list[str]:
    size, need, unknown, found = _count_bytes(quantity), 0.0, list[str](), list[str]()
    names = list(dict.fromkeys((model.model, getattr(model, "file", None)) for model in stack.models))
    for name, file in names:
        if known := guess_weight_bytes(name)[0]:
            need += known
        # 16 bits for each parameter; a GGUF file usually has 4 to 8
        elif not (file and (count := guess_parameters(name)) and 2 * count * len(names) <= size):
            unknown.append(name)
    if need * HEADROOM > size:
        enough = math.ceil(need * HEADROOM / GIB / 10) * 10
        found.append(
            f"the weights need {'at least' if unknown else 'about'} {need / GIB:.1f} GiB (estimated), but "
            f"kubernetes.weights.size is {quantity}. Set it to {enough}Gi or more before the first start: a full "
            "volume ends the download, and many storage classes can't enlarge a volume"
        )
    if unknown:
        found.append(
            f"the size of the weights of {', '.join(unknown)} is unknown. Compare kubernetes.weights.size, which is "
            f"{quantity}, with the size of the files on the Hub"
        )
    return found


def find_image_warnings(services: Sequence[Service], stack: StackSpec) -> list[str]:
    """Warns of images that stackgen builds, and that no node can pull, because they are in no registry."""
    if stack.cluster.registry:
        return []
    built = dict.fromkeys(one.image for one in services if one.build or not one.pull)
    return [
        f"{image} is an image that stackgen builds, so no registry has it. Build the image, push it, and set "
        "kubernetes.registry (docs/how-to/run-on-kubernetes.md shows the commands)"
        for image in built
    ]


def _count_bytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def count_gpus(model: ModelSpec) -> int:
    """Number of GPUs of one replica, on all its nodes."""
    # a list belongs to all replicas, a count to each of them
    if isinstance(model.gpus, tuple):
        return len(model.gpus) // model.replicas
    return model.gpus if isinstance(model.gpus, int) else 0
