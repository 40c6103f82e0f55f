"""Room: on the disk for images and weights, and in memory for models on the processor."""

from __future__ import annotations

import re

from stackgen.doctor.facts import GIB, Disk
from stackgen.doctor.finding import Case, Results, fail, good, size, unknown, warn
from stackgen.spec import is_local

__all__ = ["disk", "memory", "weight_bytes"]

# unpacked, in GiB. Ours are measured; upstream's are rounded up from their registries' compressed sizes
OWN_IMAGES = {"stackgen/vllm-cpu": 2.6, "stackgen/fastchat": 1.4, "stackgen/llamacpp": 0.3}
OTHER_IMAGES = {"vllm/vllm-openai": 30.0, "vllm/vllm-openai-rocm": 40.0, "vllm/vllm-openai-cpu": 6.0,
                "ghcr.io/ggml-org/llama.cpp": 5.0}  # fmt: skip


def weight_bytes(case: Case, model: str) -> tuple[int | None, str]:
    """How large a model's weights are, and how that is known: by its files, by the Hub, or guessed by its name."""
    if (facts := case.models.get(model)) and facts.weight_bytes:
        return facts.weight_bytes, "by its files"
    answer = case.hub.get(model)
    if answer and answer.bytes:
        return answer.bytes, "by the Hub's file list"
    match = re.search(r"(?:^|[-_/])(?:(\d+)x)?(\d+(?:\.\d+)?)([bBmM])(?=$|[-_./])", model)
    if not match:
        return None, ""
    count = float(match[2]) * int(match[1] or 1) * (1e9 if match[3] in "bB" else 1e6)
    return int(count * 2), "guessed by its name, at 16 bits a weight"


def disk(case: Case) -> Results:
    """Room for what is still to be pulled, built and downloaded."""
    host, docker = case.host, case.host.docker_disk
    if docker is None:
        yield unknown("the free space where Docker keeps images is unknown")
    elif docker.free < GIB:
        yield fail("the disk of Docker's images is full", f"{size(docker.free)} free at {docker.path}",
                   "docker system df shows what could go; docker image prune frees some")  # fmt: skip
        return
    elif case.stack is None:
        yield good("there is room on Docker's disk", f"{size(docker.free)} free at {docker.path}")
        return
    needs: dict[int, list[tuple[str, float, bool]]] = {}
    disks: dict[int, Disk] = {}
    for image in dict.fromkeys(service.image for service in case.services()):
        if docker and host.images is not None and image not in host.images:
            name = image.partition("@")[0].rpartition(":")[0] or image
            need, sure = OWN_IMAGES.get(name, OTHER_IMAGES.get(name, 0)) * GIB, name in OWN_IMAGES
            disks[docker.device] = docker
            needs.setdefault(docker.device, []).append((f"image {name}", need, sure))
    storage = host.storage_disk if case.stack and case.stack.spec.storage.path else docker
    for model in dict.fromkeys(model.model for _, model in case.specs()):
        if is_local(model) or case.cached.get(model) or (case.stack and case.stack.spec.storage.offline):
            continue
        weight, how = weight_bytes(case, model)
        if storage is None or weight is None:
            yield unknown(f"whether the disk has room for {model} is unknown",
                          "" if weight is None else f"{size(weight)} {how}")  # fmt: skip
            continue
        disks[storage.device] = storage
        # what lies in a volume that nobody here can read may have been downloaded already
        sure = how.startswith("by the Hub") and case.cached.get(model) is False
        needs.setdefault(storage.device, []).append((f"{model} ({how})", weight, sure))
    for device, wanted in needs.items():
        free, total = disks[device].free, sum(need for _, need, _ in wanted)
        certain = sum(need for _, need, sure in wanted if sure)
        told = f"{size(free)} free at {disks[device].path}; " + ", ".join(f"{size(n)} {name}" for name, n, _ in wanted)
        fix = "make room (docker system df), or set storage.path to a folder on a larger disk"
        if certain > free:
            yield fail(f"the disk is too small by {size(certain - free)}", told, fix, "storage")
        elif total > free:
            yield warn(f"the disk may be too small: about {size(total)} are wanted", told, fix, "storage")
        else:
            yield good("the disk has room", told)
    if docker and not needs:
        yield good("the disk has room: nothing large is left to fetch", f"{size(docker.free)} free at {docker.path}")


def memory(case: Case) -> Results:
    """Host memory for all that runs on the processor: weights, and vLLM's KV cache."""
    host, wanted, parts, guessed = case.host, 0.0, [], False
    for _, model in case.specs():
        if model.gpus:
            continue
        weight, how = weight_bytes(case, model.model)
        guessed |= weight is None or "guessed" in how
        # torch and the engine's own processes: 1.4 GiB measured with a model of 1 MB
        each = (weight or 0) + (getattr(model, "cpu_kv_cache_gib", 0) + (1.4 if model.engine == "vllm" else 0.4)) * GIB
        wanted += each * model.replicas
        parts.append(f"{model.model}: {size(each)}" + (f" × {model.replicas}" if model.replicas > 1 else ""))
    if host.memory_total is None:
        yield unknown("this machine's memory is unknown")
        return
    available = host.memory_total if host.memory_available is None else host.memory_available
    told = f"{size(host.memory_total)} in all, {size(available)} available" + "".join(f"; {part}" for part in parts)
    # a running copy of the same stack holds what it needs already, so only the whole memory is a hard limit
    if wanted > host.memory_total and not guessed:
        yield fail(f"the models on the CPU need about {size(wanted)} of memory", told,
                   "lower cpu_kv_cache_gib or replicas, or take a smaller model", "models")  # fmt: skip
    elif wanted > available:
        yield warn(f"the models on the CPU need about {size(wanted)} of memory, more than is available now", told,
                   "stop something, lower cpu_kv_cache_gib or replicas, or take a smaller model", "models")  # fmt: skip
    else:
        yield good("the memory suffices" if parts else "the memory is known", told)
