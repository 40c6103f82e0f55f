"""Checks that the GPUs have enough memory for every model that the stack puts on them. `stackgen.fit` computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stackgen import fit
from stackgen.doctor.capacity import weight_bytes
from stackgen.doctor.facts import Gpu
from stackgen.doctor.finding import DoctorInputs, Results, fail, format_bytes, ok, unknown, warn
from stackgen.doctor.gpus import VLLM_UTILIZATION, report_unknown_gpus, requested_gpus
from stackgen.errors import StackgenError
from stackgen.fit import Estimate, Model, Settings, Weights, estimate, read_model
from stackgen.fit.config import read_config
from stackgen.fit.deployment import engine_version, read_settings
from stackgen.fit.estimate import FITS, NOT
from stackgen.fit.gpus import GIB, observed_gpu
from stackgen.fit.others import CONTEXT
from stackgen.fit.prompts import longest_prompt
from stackgen.spec import is_local
from stackgen.targets.adapter import served_rank

__all__ = ["check_gpu_memory", "estimate_on_cpu"]

# bytes that engines need besides weights and cache, if nothing more is known of the model: context and a short chat
RUNTIME_OVERHEAD = int((CONTEXT[0] + 0.55) * GIB)


def check_gpu_memory(inputs: DoctorInputs) -> Results:
    """Each GPU has enough free memory, and the model fits into the engine's share of it."""
    # bytes by GPU index: models that share a GPU add up
    planned: dict[int, float] = {}
    yield from report_unknown_gpus(inputs, "whether the GPUs have enough free memory")
    if any(request.driver == "amd" for _, _, request in inputs.gpu_requests()):
        yield unknown("doctor does not check the free memory of AMD GPUs",
                      fix="`rocm-smi --showmeminfo vram` shows the free memory")  # fmt: skip
    users: dict[int, dict[str, Any]] = {}
    for place, model, _request, gpus in requested_gpus(inputs):
        for gpu in gpus or ():
            users.setdefault(gpu.index, {})[place] = model
    for place, model, _request, gpus in requested_gpus(inputs):
        found = _estimate(inputs, model, gpus or ())
        for gpu in gpus or ():
            yield from _check_free(inputs, place, model, gpu, len(gpus or ()), planned, found, users[gpu.index])
        if found and model.engine == "vllm":
            yield from _judge(place, model, found)


def _check_free(
    inputs: DoctorInputs, place: str, model: Any, gpu: Gpu, count: int, planned: dict[int, float],
    found: Estimate | None, users: dict[str, Any],
) -> Results:  # fmt: skip
    minimum, source, overhead = _required_memory(inputs, model, gpu, count, found)
    if gpu.memory_total is None or gpu.memory_free is None or minimum is None:
        yield unknown(f"can't tell whether GPU {gpu.index} has enough free memory",
                      evidence=source if minimum is None else "", place=place)  # fmt: skip
        return
    # without `share_gpus`, another check fails, and the sum says nothing
    others = planned.get(gpu.index, 0.0) if all(one.share_gpus for one in users.values()) else 0.0
    minimum += others
    need = minimum + overhead
    planned[gpu.index] = need
    free, total = gpu.memory_free, gpu.memory_total
    evidence = f"{format_bytes(free)} of the {format_bytes(total)} of GPU memory are free; {source}"
    evidence += f", plus {format_bytes(others)} for other models on this GPU" if others else ""
    if free >= need:
        if found and model.engine == "fastchat":
            yield from _check_prompts(place, model, gpu, found, int(free - others), evidence)
            return
        yield ok(f"GPU {gpu.index} has enough free memory", evidence=evidence, place=place)
        return
    holders = ", ".join(
        f"{one.name} (pid {one.pid}{f', {format_bytes(one.memory)}' if one.memory else ''})" for one in gpu.processes
    )
    evidence += f"; used by {holders}" if holders else "; nvidia-smi shows no process on this GPU"
    # this stack itself may use the memory
    if any(one.project == inputs.stack.plan.name for one in inputs.host.containers or () if inputs.stack):
        yield unknown(f"this stack is already running and uses the memory of GPU {gpu.index}",
                      evidence=evidence, place=place)  # fmt: skip
        return
    fix, field = "stop the processes on this GPU, or use a smaller or quantized model", f"{place}.gpus"
    if model.engine == "vllm":
        fix = f"stop the processes on this GPU{_lower_shares(free / total, users)}"
        field = f"{place}.gpu_memory_utilization"
    # only a known size can fail: guessed weights and the engine's overhead are estimates
    report = warn if free >= minimum or "guessed" in source else fail
    yield report(f"GPU {gpu.index} has too little free memory: {format_bytes(need)} are needed",
                 evidence=evidence, fix=fix, place=field)  # fmt: skip


def _lower_shares(free: float, users: dict[str, Any]) -> str:
    """The shares with which all `users` of a GPU start, whose fraction `free` is free; empty if they are too small."""
    # rounded down, less 2 % for the CUDA context of each process
    room = int((free - 0.02 * len(users)) * 100) / 100
    if room < 0.1 * len(users):
        return ""
    shares = [one.gpu_memory_utilization for one in users.values()]
    if len(users) == 1 or None in shares:
        return f", or set `gpu_memory_utilization: {room:g}`" if len(users) == 1 else ""
    return (f", or lower `gpu_memory_utilization` of {' and '.join(users)} to at most {room:g} in total "
            f"(now {round(sum(shares), 4):g})")  # fmt: skip


def _check_prompts(place: str, model: Any, gpu: Gpu, found: Estimate, room: int, evidence: str) -> Results:
    """FastChat's memory grows with each prompt, and it has no field that limits the context."""
    longest = longest_prompt(found, memory=room)
    if longest >= found.length:
        yield ok(f"GPU {gpu.index} has enough free memory", evidence=evidence, place=place)
        return
    known = f"up to {longest:,} tokens fit for certain" if longest else "a few hundred tokens may already be too long"
    yield warn(f"long prompts may not fit into the memory of GPU {gpu.index}, and then fail with CUDA out of memory: "
               f"{model.model} allows {found.length:,} tokens",
               evidence=f"{evidence}; one request at a time: {known}",
               fix="limit the prompts in the clients, or serve the model with `engine: vllm` and `max_model_len`: "
               "FastChat has no such field. `worker_concurrency: 1` leaves the memory to one request",
               place=place)  # fmt: skip


def _judge(place: str, model: Any, found: Estimate) -> Results:
    """The estimate of `stackgen fit` for a model of vLLM. A doubt is no reason to warn."""
    if found.verdict == NOT:
        yield fail(f"{model.model} does not fit into the GPU memory that vLLM takes", evidence=found.reason,
                   fix="`stackgen fit` lists the changes that would make it fit", place=place)  # fmt: skip
    elif found.verdict == FITS:
        yield ok(f"{model.model} fits into the GPU memory that vLLM takes", evidence=found.reason, place=place)
    else:
        fix = "`stackgen fit` shows each part of the memory"
        if not is_local(model.model):
            fix += ". It reads the sizes of all tensors from the Hub, so it can be certain where doctor is not"
        yield unknown(f"can't tell whether {model.model} fits into the GPU memory that vLLM takes",
                      evidence=found.reason, fix=fix, place=place)  # fmt: skip


def _estimate(inputs: DoctorInputs, model: Any, gpus: tuple[Gpu, ...]) -> Estimate | None:
    """The estimate for GPUs like the smallest of `gpus`; None if the model or the GPUs are not known well enough."""
    sizes = [gpu for gpu in gpus if gpu.memory_total]
    facts = inputs.models.get(model.model)
    if not sizes or facts is None:
        return None
    least = min(sizes, key=lambda gpu: gpu.memory_total or 0)
    try:
        known = _read_model(inputs, model.model)
        rank = served_rank(inputs.command_of(model))
        settings = read_settings(model, len(gpus), _version(inputs, model), rank)
        return estimate(known, settings, observed_gpu(least.name, least.memory_total or 0, least.compute))
    # other checks report what is wrong with the files or the sizes
    except (StackgenError, OSError):
        return None


def estimate_on_cpu(inputs: DoctorInputs, model: Any) -> Estimate | None:
    """The estimate for this machine's CPU; None if the model is not known well enough."""
    try:
        settings = read_settings(model, 0, _version(inputs, model))
        host = fit.Gpu("this machine's CPU", inputs.host.memory_total or GIB)
        return estimate(_read_model(inputs, model.model), settings, host)
    # as above; KeyError: the model's files are unknown
    except (StackgenError, OSError, KeyError):
        return None


def _read_model(inputs: DoctorInputs, name: str) -> Model:
    facts = inputs.models[name]
    if facts.weight_files:
        return read_model(Path(facts.path), name)
    size, source = weight_bytes(inputs, name)
    if not size or not facts.config or "guessed" in source:
        raise StackgenError(f"the size of {name} is unknown")
    return Model(read_config(facts.config), Weights(size, (), source), name)


def _version(inputs: DoctorInputs, model: Any) -> tuple[int, ...]:
    image = model.image or next((one.image for one in inputs.services() if one.engine == model.engine), "")
    return engine_version(image) or Settings().version


def _required_memory(
    inputs: DoctorInputs, model: Any, gpu: Gpu, count: int, found: Estimate | None
) -> tuple[float | None, str, int]:
    """Bytes that a model certainly needs on each of its `count` GPUs, their source, and bytes that are an estimate."""
    if model.engine == "vllm":
        utilization = model.gpu_memory_utilization or VLLM_UTILIZATION
        # vLLM's share of the memory already includes CUDA and the KV cache
        return utilization * (gpu.memory_total or 0), f"vLLM takes {utilization:g} of the GPU's memory", 0
    weight, source = weight_bytes(inputs, model.model)
    if weight is None:
        return None, f"the size of {model.model} is unknown", 0
    for field in ("gpu_layers", "cpu_offloading", "max_gpu_memory"):
        if getattr(model, field, None) not in (None, False):
            return None, f"{field} determines which part of the weights is loaded into GPU memory", 0
    if getattr(model, "load_8bit", False):
        weight, source = weight // 2, f"{source}, halved by load_8bit"
    spread = f" across {count} GPUs" if count > 1 else ""
    overhead = RUNTIME_OVERHEAD
    # FastChat's cache grows with each request, so the whole context is no condition for a start
    if found and model.engine != "fastchat":
        # what the estimate has besides the weights: context, buffers, and the cache of the requests
        overhead = found.request + sum(term.bytes for term in found.terms if term.name != "weights")
    about = f"about {format_bytes(overhead)} for CUDA and the KV cache"
    return weight / count, f"{format_bytes(weight)} of weights ({source}){spread}, and {about}", overhead
