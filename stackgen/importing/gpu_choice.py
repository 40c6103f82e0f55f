"""The GPUs of a model: what the source reserves, what its variables show, and how many the engine uses of them."""

from __future__ import annotations

import re
from math import prod
from typing import Any

from stackgen.flags.parallel import count_groups
from stackgen.importing.container import Container, GpuAsk, Value
from stackgen.importing.flags import Flag
from stackgen.importing.ledger import Draft, Item, Ledger

__all__ = ["choose_gpus"]

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
CPU_IMAGE = re.compile(r"vllm-openai-cpu|vllm-cpu|llama\.cpp:(?:server|full|light)(?:-b\d+)?$|llama\.cpp$")


def choose_gpus(container: Container, draft: Draft, ledger: Ledger) -> str:
    """Sets the field `gpus`. Returns the driver (`nvidia`, `cdi`, `amd`); "" without GPUs."""
    flags = [
        flag for name in ("num_gpus", "gpus", "device") if isinstance(flag := draft.fields.pop(f"_{name}", None), Flag)
    ]
    amd = any(name in container.environment for name in VISIBLE[1:3])
    variables = [value for name in VISIBLE if (value := _take_variable(container, name, ledger))]
    items = [*(one.item for one in container.gpus), *(one.item for one in variables)]
    image = container.image.text if container.image else ""
    if (
        any(flag.written == "--device" and flag.text in ("cpu", "mps") for flag in flags)
        or draft.fields.get("gpus") == "none"
    ):
        return _without(draft, items, flags, "the engine runs on the CPU")
    if CPU_IMAGE.search(image):
        return _without(draft, items, flags, "the image runs on the CPU")
    hidden = any(one.value in ("", "-1", "none", "void") for one in variables if not one.unknown)
    if container.gpus and all(one.nothing for one in container.gpus):
        return _without(draft, items, flags, "the source reserves 0 GPUs")
    # llama.cpp and FastChat's --device name no GPU: only what the source reserves says that there is one
    asks = bool(items or flags) or draft.engine in ("vllm", "sglang") or int(draft.fields.get("gpu_layers", 0)) > 0
    if draft.engine == "llamacpp" and not asks and container.is_bare:
        ledger.warn(container.place, "no option names a GPU, so the stack uses the CPU. If this llama-server was "
                                     "built for GPUs, set `gpus`")  # fmt: skip
    if hidden or not asks:
        return _without(draft, items, flags, "no GPU is visible to the engine")
    ids, everything = _visible(container.gpus, variables)
    needed = _needed(draft, flags)
    driver = next((one.driver for one in container.gpus if one.driver != "nvidia"), "nvidia")
    if amd or re.search(r"rocm", image):
        driver = "amd"
    _set(draft, ids, everything, needed, items, flags, sum(one.count for one in container.gpus))
    if ids and not any(one.ids for one in container.gpus):
        for ask in container.gpus:
            ask.item.carry("gpus", draft, "a variable of the source chooses the GPUs")
    if not items and not flags:
        ledger.warn(
            container.place,
            "the source reserves no GPU, but the engine needs one: `gpus` is the number of GPUs that the engine uses",
        )
    return driver


def _take_variable(container: Container, name: str, ledger: Ledger) -> Value | None:
    value = container.environment.pop(name, None)
    if value and value.unknown:
        value.item.drop(f"the source does not set {', '.join(value.unknown)}: set `gpus` to a list of indices")
        return None
    return value


def _without(draft: Draft, items: list[Item], flags: list[Flag], reason: str) -> str:
    draft.fields["gpus"] = "none"
    for item in items:
        item.carry("gpus", draft, reason)
    for flag in flags:
        flag.carry("gpus", draft, reason)
    return ""


def _visible(asks: list[GpuAsk], variables: list[Value]) -> tuple[tuple[str, ...], bool]:
    """The GPUs that the engine sees, as indices or UUIDs, and whether these are all GPUs."""
    reserved = tuple(dict.fromkeys(one for ask in asks for one in ask.ids))
    shown: tuple[str, ...] = ()
    for value in variables:
        listed = [one.strip() for one in str(value.value).split(",") if one.strip() and one.strip() != "all"]
        # the indices of CUDA count the GPUs that the container has got
        if reserved and listed and all(one.isdecimal() and int(one) < len(reserved) for one in listed):
            listed = [reserved[int(one)] for one in listed]
        shown = tuple(listed) or shown
    if shown:
        return shown, False
    return reserved, any(ask.everything for ask in asks) or any(str(one.value) == "all" for one in variables)


def _needed(draft: Draft, flags: list[Flag]) -> int:
    """The number of GPUs that the engine uses."""
    if draft.engine == "sglang":
        sizes = (draft.fields.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size"))
        # with data parallel attention, the copies share the GPUs of the tensor parallel group
        shared = "--enable-dp-attention" in draft.fields.get("extra_args", ())
        return prod(map(int, sizes)) * (1 if shared else int(draft.fields.get("data_parallel_size", 1)))
    if draft.engine == "vllm":
        groups = count_groups(draft.fields.get("extra_args", ())) or 1
        return (
            int(draft.fields.get("tensor_parallel_size", 1))
            * int(draft.fields.get("pipeline_parallel_size", 1))
            * groups
            * int(draft.fields.get("data_parallel_size", 1))
        )
    for flag in flags:
        if flag.written == "--num-gpus" and flag.text.isdecimal():
            return int(flag.text)
    # llama.cpp divides the layers among all GPUs that it sees
    return 0 if draft.engine == "llamacpp" else 1


def _set(
    draft: Draft, ids: tuple[str, ...], everything: bool, needed: int, items: list[Item], flags: list[Flag], count: int
) -> None:
    listed = next((flag for flag in flags if flag.written == "--gpus"), None)
    if listed:
        ids = tuple(one for one in listed.text.split(",") if one)
    value: Any
    reason = ""
    if ids:
        used = ids[:needed] if needed and needed < len(ids) else ids
        value = [int(one) if one.isdecimal() else one for one in used]
        reason = f"the engine uses {needed} of the GPUs {', '.join(ids)}" if len(used) < len(ids) else ""
    elif not needed and (everything or not count):
        # llama.cpp uses every GPU that it sees
        value = "all"
    else:
        value = needed or count or 1
        visible = "all" if everything else str(count or "")
        reason = f"the engine uses {value} of the visible GPUs" if visible and visible != str(value) else ""
    draft.fields["gpus"] = value
    for item in items:
        item.carry("gpus", draft, reason)
    for flag in flags:
        flag.carry("gpus", draft, "`gpus` is the number or list of GPUs" if flag.written == "--device" else "")
