"""Checks that the disk has space for images and weights: the sizes of known images, and of models."""

from __future__ import annotations

from stackgen.catalog.sizes import guess_weight_bytes
from stackgen.doctor.facts import GIB, Disk
from stackgen.doctor.finding import DoctorInputs, Results, fail, format_bytes, ok, unknown, warn
from stackgen.spec import is_local

__all__ = ["check_disk_space", "guess_image_bytes", "weight_bytes"]

# GiB, unpacked. stackgen's own images are measured; the others are rounded up from their registries' compressed sizes
OWN_IMAGES = {"stackgen/vllm-cpu": 2.6, "stackgen/fastchat": 1.4, "stackgen/llamacpp": 0.3, "stackgen/download": 0.3}
OTHER_IMAGES = {"vllm/vllm-openai": 30.0, "vllm/vllm-openai-rocm": 40.0, "vllm/vllm-openai-cpu": 6.0,
                "ghcr.io/ggml-org/llama.cpp": 5.0}  # fmt: skip


def guess_image_bytes(image: str) -> int | None:
    """About how many bytes an image has that is not here, unpacked; None for an image that is not in the tables."""
    size = OWN_IMAGES.get(_repository(image)) or OTHER_IMAGES.get(_repository(image))
    return int(size * GIB) if size else None


def _repository(image: str) -> str:
    return image.partition("@")[0].rpartition(":")[0] or image


def weight_bytes(inputs: DoctorInputs, model: str) -> tuple[int | None, str]:
    """The size of a model's weights in bytes, and its source: the model's files, the Hub, or a guess from the name.

    None and "" if none of the three gives a size.
    """
    if (facts := inputs.models.get(model)) and facts.weight_bytes:
        return facts.weight_bytes, "from the model's files"
    lookup = inputs.hub.get(model)
    if lookup and lookup.download_bytes:
        return lookup.download_bytes, "from the Hub's file list"
    return guess_weight_bytes(model)


def check_disk_space(inputs: DoctorInputs) -> Results:
    """The disks have free space for everything that must still be pulled, built or downloaded."""
    host, docker = inputs.host, inputs.host.docker_disk
    if docker is None:
        yield unknown("the free space on Docker's disk is unknown")
    elif docker.free < GIB:
        # then return: the sizes of images and models add nothing to this failure
        yield fail(
            "Docker's disk is full",
            evidence=f"{format_bytes(docker.free)} free at {docker.path}",
            fix="`docker system df` shows what uses the disk, and `docker image prune` frees some space",
        )
        return
    elif inputs.stack is None:
        yield ok("Docker's disk has free space", evidence=f"{format_bytes(docker.free)} free at {docker.path}")
        return
    unsized = []
    # (what, bytes, whether the size is certain) by file system: images and weights may share one
    needs: dict[int, list[tuple[str, float, bool]]] = {}
    disks: dict[int, Disk] = {}
    # replicas share one image
    for image in dict.fromkeys(service.image for service in inputs.services()):
        if docker and host.images is not None and image not in host.images:
            name = _repository(image)
            need, certain = guess_image_bytes(image) or 0, name in OWN_IMAGES
            disks[docker.device] = docker
            # also without a size: then the other sizes are all that is known about this disk
            needs.setdefault(docker.device, []).extend([(f"image {name}", need, certain)] if need else [])
            unsized += [] if need else [name]
    # a named volume is on Docker's disk
    storage = host.storage_disk if inputs.stack and inputs.stack.spec.storage.path else docker
    # entries with the same model share one download
    for model in dict.fromkeys(model.model for _, model in inputs.model_specs()):
        if is_local(model) or inputs.cached.get(model) or (inputs.stack and inputs.stack.spec.storage.offline):
            continue
        weight, source = weight_bytes(inputs, model)
        if storage is None or weight is None:
            unsized.append(model)
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
        listed = ", ".join(f"{format_bytes(need)} {name}" for name, need, _ in parts) or "images of unknown size"
        evidence = f"{disk.path} has {format_bytes(disk.free)} of free space, and the stack needs {listed}"
        fix = "free some space (see `docker system df`), or set storage.path to a folder on a larger disk"
        if certain_total > disk.free:
            missing = format_bytes(certain_total - disk.free)
            yield fail(f"the disk lacks {missing} of free space", evidence=evidence, fix=fix, place="storage")
        # estimates never fail the stack
        elif total > disk.free:
            about = format_bytes(total)
            message = f"the disk may be too small: about {about} are needed"
            yield warn(message, evidence=evidence, fix=fix, place="storage")
        else:
            what = " for the downloads of known size" if unsized or host.images is None else ""
            yield ok(f"the disk has enough space{what}", evidence=evidence)
    if images := [name for name in unsized if name not in inputs.cached]:
        yield unknown(f"can't tell whether the disk has space for the image {', '.join(images)}",
                      evidence="the size of the image is unknown")  # fmt: skip
    if inputs.stack and docker and host.images is None:
        yield unknown("can't tell whether the disk has space for the images",
                      evidence="the list of images on this machine is unknown")  # fmt: skip
    elif docker and not needs and not unsized:
        yield ok(
            "the disk has enough space: no large download is needed",
            evidence=f"{format_bytes(docker.free)} free at {docker.path}",
        )
