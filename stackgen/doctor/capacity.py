"""Disk space for images and weights, and host memory for models that run on the CPU."""

from __future__ import annotations

import re

from stackgen.doctor.facts import GIB, Disk
from stackgen.doctor.finding import DoctorInputs, Results, fail, format_bytes, ok, unknown, warn
from stackgen.spec import is_local

__all__ = ["check_disk_space", "check_host_memory", "weight_bytes"]

# GiB, unpacked. stackgen's own images are measured; the others are rounded up from their registries' compressed sizes
OWN_IMAGES = {"stackgen/vllm-cpu": 2.6, "stackgen/fastchat": 1.4, "stackgen/llamacpp": 0.3}
OTHER_IMAGES = {"vllm/vllm-openai": 30.0, "vllm/vllm-openai-rocm": 40.0, "vllm/vllm-openai-cpu": 6.0,
                "ghcr.io/ggml-org/llama.cpp": 5.0}  # fmt: skip


def weight_bytes(inputs: DoctorInputs, model: str) -> tuple[int | None, str]:
    """The size of a model's weights in bytes, and its source: the model's files, the Hub, or a guess from the name.

    None and "" if none of the three gives a size.
    """
    if (facts := inputs.models.get(model)) and facts.weight_bytes:
        return facts.weight_bytes, "from the model's files"
    lookup = inputs.hub.get(model)
    if lookup and lookup.download_bytes:
        return lookup.download_bytes, "from the Hub's file list"
    # matches 8B, 0.5b, 8x7B and 135M, only between separators: other letters and digits of a name are not a size
    match = re.search(r"(?:^|[-_/])(?:(\d+)x)?(\d+(?:\.\d+)?)([bBmM])(?=$|[-_./])", model)
    if not match:
        return None, ""
    count = float(match[2]) * int(match[1] or 1) * (1e9 if match[3] in "bB" else 1e6)
    return int(count * 2), "guessed from the model's name, at 16 bits per weight"


def check_disk_space(inputs: DoctorInputs) -> Results:
    """The disks have free space for everything that must still be pulled, built or downloaded."""
    host, docker = inputs.host, inputs.host.docker_disk
    if docker is None:
        yield unknown("the free space on Docker's disk is unknown")
    elif docker.free < GIB:
        yield fail(
            "Docker's disk is full",
            evidence=f"{format_bytes(docker.free)} free at {docker.path}",
            fix="`docker system df` shows what uses the disk; `docker image prune` frees some space",
        )
        return
    elif inputs.stack is None:
        yield ok("Docker's disk has free space", evidence=f"{format_bytes(docker.free)} free at {docker.path}")
        return
    # (what, bytes, whether the size is certain) by file system: images and weights may share one
    needs: dict[int, list[tuple[str, float, bool]]] = {}
    disks: dict[int, Disk] = {}
    for image in dict.fromkeys(service.image for service in inputs.services()):
        if docker and host.images is not None and image not in host.images:
            name = image.partition("@")[0].rpartition(":")[0] or image
            need, certain = OWN_IMAGES.get(name, OTHER_IMAGES.get(name, 0)) * GIB, name in OWN_IMAGES
            disks[docker.device] = docker
            needs.setdefault(docker.device, []).append((f"image {name}", need, certain))
    # a named volume is on Docker's disk
    storage = host.storage_disk if inputs.stack and inputs.stack.spec.storage.path else docker
    for model in dict.fromkeys(model.model for _, model in inputs.model_specs()):
        if is_local(model) or inputs.cached.get(model) or (inputs.stack and inputs.stack.spec.storage.offline):
            continue
        weight, source = weight_bytes(inputs, model)
        if storage is None or weight is None:
            yield unknown(
                f"can't tell whether the disk has space for {model}",
                evidence="" if weight is None else f"{format_bytes(weight)} {source}",
            )
            continue
        disks[storage.device] = storage
        # an unreadable volume may already hold the model, so only a known absence makes the need certain
        certain = source.startswith("from the Hub") and inputs.cached.get(model) is False
        needs.setdefault(storage.device, []).append((f"{model} ({source})", weight, certain))
    for device, parts in needs.items():
        disk, total = disks[device], sum(need for _, need, _ in parts)
        certain_total = sum(need for _, need, certain in parts if certain)
        listed = ", ".join(f"{format_bytes(need)} {name}" for name, need, _ in parts)
        evidence = f"{format_bytes(disk.free)} free at {disk.path}; {listed}"
        fix = "free some space (see `docker system df`), or set storage.path to a folder on a larger disk"
        if certain_total > disk.free:
            missing = format_bytes(certain_total - disk.free)
            yield fail(f"the disk is too small by {missing}", evidence=evidence, fix=fix, place="storage")
        # estimates never fail the stack
        elif total > disk.free:
            about = format_bytes(total)
            message = f"the disk may be too small: about {about} are needed"
            yield warn(message, evidence=evidence, fix=fix, place="storage")
        else:
            yield ok("the disk has enough space", evidence=evidence)
    if docker and not needs:
        yield ok(
            "the disk has enough space: no large download is left",
            evidence=f"{format_bytes(docker.free)} free at {docker.path}",
        )


def check_host_memory(inputs: DoctorInputs) -> Results:
    """The host has memory for everything that runs on the CPU: weights, and vLLM's KV cache."""
    host, needed, parts, guessed = inputs.host, 0.0, [], False
    for _, model in inputs.model_specs():
        if model.gpus:
            continue
        weight, source = weight_bytes(inputs, model.model)
        guessed |= weight is None or "guessed" in source
        # torch and the engine's own processes: 1.4 GiB measured with a model of 1 MB
        each = (weight or 0) + (getattr(model, "cpu_kv_cache_gib", 0) + (1.4 if model.engine == "vllm" else 0.4)) * GIB
        needed += each * model.replicas
        parts.append(f"{model.model}: {format_bytes(each)}" + (f" × {model.replicas}" if model.replicas > 1 else ""))
    if host.memory_total is None:
        yield unknown("this machine's memory is unknown")
        return
    available = host.memory_total if host.memory_available is None else host.memory_available
    evidence = f"{format_bytes(host.memory_total)} in total, {format_bytes(available)} available"
    evidence += "".join(f"; {part}" for part in parts)
    about = format_bytes(needed)
    # a running copy of the same stack already uses this memory, so only the total is a hard limit
    if needed > host.memory_total and not guessed:
        yield fail(
            f"the models on the CPU need about {about} of memory, more than this machine has",
            evidence=evidence,
            fix="lower cpu_kv_cache_gib or replicas, or use a smaller model",
            place="models",
        )
    elif needed > available:
        yield warn(
            f"the models on the CPU need about {about} of memory, more than is available now",
            evidence=evidence,
            fix="stop other programs, lower cpu_kv_cache_gib or replicas, or use a smaller model",
            place="models",
        )
    else:
        yield ok("there is enough memory" if parts else "the size of the memory is known", evidence=evidence)
