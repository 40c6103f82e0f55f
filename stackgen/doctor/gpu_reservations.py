"""Checks that the GPUs of a model exist, that no other model or stack has them, and that none is idle.

Docker gives a GPU to any number of containers: two stacks with `gpus: 1` both get GPU 0. vLLM 0.32.0 refuses to start
if less than `gpu_memory_utilization` of a GPU's memory is free (`request_memory` in `vllm/v1/worker/utils.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from stackgen.doctor.facts import Container, Gpu
from stackgen.doctor.finding import DoctorInputs, Result, Results, fail, ok, unknown, warn
from stackgen.doctor.gpus import CDI, VLLM_UTILIZATION, matches_uuid, requested_gpus
from stackgen.doctor.parallel import parallel_sizes
from stackgen.flags.parallel import count_model_groups
from stackgen.plan import GpuRequest

__all__ = ["check_all_gpus_used", "check_gpu_ids", "check_gpus_reserved"]


def check_gpu_ids(inputs: DoctorInputs) -> Results:
    """The indices, UUIDs and counts in `gpus` match GPUs that exist."""
    for place, model, request, gpus in requested_gpus(inputs):
        field, names = f"{place}.gpus", [id.removeprefix(CDI) for id in request.ids]
        if gpus is None:
            yield unknown("can't tell whether the requested GPUs exist", evidence=", ".join(request.ids), place=field)
            continue
        present = inputs.host.gpus or ()
        # the query lists neither MIG instances nor the devices (KIND=NAME) of other vendors
        unlisted = [name for name in names if name.startswith("MIG-") or "=" in name]
        missing = [name for name in names if name != "all" and name not in unlisted
                   and not any(name == str(gpu.index) or matches_uuid(gpu, name) for gpu in present)]  # fmt: skip
        evidence = f"this machine has {', '.join(f'{gpu.index} ({gpu.uuid})' for gpu in present) or 'no GPU'}"
        # a certain failure is reported before an unknown result
        if missing and isinstance(model.gpus, int):
            yield _fail_count(inputs, len(present), evidence, field)
        elif missing:
            yield fail(f"GPU {', '.join(missing)} does not exist", evidence=evidence,
                       fix="use GPUs that `nvidia-smi -L` lists", place=field)  # fmt: skip
        elif doubled := [name for name in names if sum(matches_uuid(gpu, name) for gpu in present) > 1]:
            yield fail(f"{', '.join(doubled)} is the beginning of several UUIDs", evidence=evidence,
                       fix="write the whole UUID, which `nvidia-smi -L` prints", place=field)  # fmt: skip
        elif unlisted:
            yield unknown(f"can't tell whether {', '.join(unlisted)} exists",
                          evidence="doctor does not check MIG instances or devices of other vendors",
                          fix="`nvidia-smi -L` lists MIG instances", place=field)  # fmt: skip
        elif request.count > len(present):
            yield fail(f"`gpus` requests {request.count}, but this machine has {len(present) or 'no GPU'}",
                       evidence=evidence, fix=f"set `gpus: {len(present) or 'none'}`", place=field)  # fmt: skip
        elif not gpus:
            yield unknown("`gpus` can't be checked, because no GPU was found on this machine", evidence=evidence,
                          fix="if this machine has a GPU, run `nvidia-smi -L`, which must list the GPU",
                          place=field)  # fmt: skip
        else:
            yield ok("the requested GPUs exist", evidence=", ".join(gpu.name for gpu in gpus), place=field)


def _fail_count(inputs: DoctorInputs, present: int, evidence: str, field: str) -> Result:
    """A count in `gpus` that the machine can't serve, because other replicas and models have GPUs of their own."""
    ids = {(place, id) for place, _, request in inputs.gpu_requests() for id in request.ids}
    total, models = len({id for _, id in ids}), {place for place, _ in ids}
    fix = "decrease `gpus` or `replicas`"
    if len(models) > 1:
        fix = ("to put models on one GPU, set for example `gpus: [0]`, `share_gpus: true` and `gpu_memory_utilization` "
               "in each; `stackgen fit` names shares that fit. Otherwise, decrease `gpus` or `replicas`")  # fmt: skip
    have = f"{present} GPU{'s' if present > 1 else ''}" if present else "none"
    return fail(f"the stack needs {total} GPUs, but this machine has {have}", evidence=evidence, fix=fix, place=field)


def check_gpus_reserved(inputs: DoctorInputs) -> Results:
    """No other model of the stack, and no running container of another project, has the same GPUs."""
    requests = [one for one in inputs.gpu_requests() if one[2].driver != "amd"]
    containers, gpus = inputs.host.containers, inputs.host.gpus or ()
    if not requests:
        return
    yield from _find_shared(requests, gpus)
    if containers is None:
        yield unknown("can't tell whether containers of other stacks use the same GPUs",
                      evidence="the list of containers is unknown")  # fmt: skip
        return
    name = inputs.stack.plan.name if inputs.stack else ""
    others = [one for one in containers if one.project != name and (one.gpu_count or one.gpu_ids)]
    taken = {id for one in others for id in _name_gpus(one.gpu_count, one.gpu_ids, gpus)}
    for place, model, request in requests:
        wanted = _name_gpus(request.count, request.ids, gpus)
        sharing = [one for one in others if _overlap(wanted, _name_gpus(one.gpu_count, one.gpu_ids, gpus))]
        if not sharing and not gpus and _has_uuids(wanted | taken) and others:
            yield unknown("can't tell whether containers of other stacks use the same GPUs",
                          evidence="the indices of the UUIDs are unknown", place=f"{place}.gpus")  # fmt: skip
            continue
        if not sharing:
            yield ok("no container of another stack uses the same GPUs",
                     evidence="compared with the GPU reservations of the running containers", place=place)  # fmt: skip
            continue
        # also not those of this stack's other models
        rest = {id for other, _, its in requests if other != place for id in _name_gpus(its.count, its.ids, gpus)}
        free = [str(gpu.index) for gpu in gpus if not _overlap({str(gpu.index)}, taken | rest)]
        yield _report_sharing(place, model, request, sharing, free)


def _find_shared(requests: list[tuple[str, Any, GpuRequest]], gpus: tuple[Gpu, ...]) -> Results:
    """Models on the same GPU without `share_gpus`: `render` finds them, but not if one of them names a UUID."""
    users: dict[str, tuple[str, Any]] = {}
    for place, model, request in requests:
        for name in sorted(_name_gpus(0, request.ids, gpus)):
            other, first = users.setdefault(name, (place, model))
            if other != place and not (model.share_gpus and first.share_gpus):
                yield fail(f"{other} and {place} name the same GPU {name}, by its index and by its UUID",
                           evidence=", ".join(f"{gpu.index}: {gpu.uuid}" for gpu in gpus),
                           fix="give each model its own GPUs, or set `share_gpus: true` and gpu_memory_utilization on "
                           "both", place=f"{place}.gpus")  # fmt: skip


def _report_sharing(place: str, model: Any, request: GpuRequest, sharing: list[Container], free: list[str]) -> Any:
    """The result for a model whose GPUs the containers in `sharing` have too. `free` are indices of other GPUs."""
    own = model.gpu_memory_utilization or VLLM_UTILIZATION if model.engine == "vllm" else None
    full = [one for one in sharing if one.gpu_share and own and one.gpu_share + own > 1]
    count = len(request.ids) or max(request.count, 1)
    fix = "set `gpus` to GPUs that no other container uses"
    if len(free) >= count * model.replicas:
        fix = f"set `gpus: [{', '.join(free[: count * model.replicas])}]`, which no other container uses"
    evidence = ", ".join(
        f"container {one.name}" + (f" of the stack {one.project}" if one.project else "") for one in sharing
    )
    if full and own:
        shares = " and ".join(f"{one.gpu_share:g}" for one in full)
        return fail(
            "a container of another stack uses the same GPU, and the two vLLM engines together need more memory than "
            "the GPU has",
            evidence=f"{evidence}: gpu_memory_utilization is {shares} there, and {own:g} here",
            fix=f"{fix}, or set `gpu_memory_utilization` of all engines on the GPU so that the sum is at most 0.95",
            place=f"{place}.gpus",
        )
    return warn("containers of other stacks use the same GPUs", evidence=evidence,
                fix=f"{fix}. If the engines share the GPU's memory on purpose, no change is needed",
                place=f"{place}.gpus")  # fmt: skip


def _name_gpus(count: int, ids: Iterable[str], gpus: tuple[Gpu, ...]) -> set[str]:
    """The GPUs of a reservation: indices where they are known, else UUIDs; `all` for all GPUs of the machine."""
    return set(_iterate_names(count, ids, gpus))


def _iterate_names(count: int, ids: Iterable[str], gpus: tuple[Gpu, ...]) -> Iterator[str]:
    if count < 0:
        yield "all"
    # the NVIDIA runtime takes the first GPUs for a count
    yield from map(str, range(count))
    for id in ids:
        name = id.removeprefix(CDI)
        match = next((gpu for gpu in gpus if len(name) > 8 and gpu.uuid.startswith(name)), None)
        yield str(match.index) if match else name


def _has_uuids(names: set[str]) -> bool:
    return any(not name.isdigit() and name != "all" for name in names)


def _overlap(one: set[str], other: set[str]) -> bool:
    return bool(one & other) or (bool(one) and "all" in other) or ("all" in one and bool(other))


def check_all_gpus_used(inputs: DoctorInputs) -> Results:
    """With `gpus: all`, vLLM's parallel sizes use all GPUs of this machine."""
    for place, model, request in inputs.gpu_requests():
        # other counts are compared when the stack is rendered
        if model.engine != "vllm" or not (request.count == -1 or request.ids[-1:] == (f"{CDI}all",)):
            continue
        groups, gpus = count_model_groups(model), inputs.host.gpus
        if gpus is None or groups is None:
            yield unknown("can't tell whether the model uses all GPUs", place=f"{place}.tensor_parallel_size",
                          evidence="this machine's GPUs are unknown" if gpus is None else "")  # fmt: skip
            continue
        tensor, pipeline = parallel_sizes(inputs, model, request)
        size = tensor * pipeline * groups
        evidence = f"GPUs of this machine: {len(gpus)}; GPUs that the parallel sizes need: {size}"
        if size < len(gpus):
            yield warn(f"GPUs that would be idle: {len(gpus) - size}", evidence=evidence,
                       fix=f"set `gpus: {size}`, or a larger tensor_parallel_size",
                       place=f"{place}.tensor_parallel_size")  # fmt: skip
        elif size > len(gpus):
            yield fail("the parallel sizes need more GPUs than this machine has", evidence=evidence,
                       fix=f"set tensor_parallel_size to at most {max(1, len(gpus) // (pipeline * groups))}",
                       place=f"{place}.tensor_parallel_size")  # fmt: skip
        else:
            yield ok("the model uses all GPUs of this machine", evidence=evidence, place=place)
