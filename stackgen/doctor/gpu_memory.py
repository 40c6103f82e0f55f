"""Checks that the GPUs have enough free memory for every model that the stack puts on them."""

from __future__ import annotations

from typing import Any

from stackgen.doctor.capacity import weight_bytes
from stackgen.doctor.facts import GIB, Gpu
from stackgen.doctor.finding import DoctorInputs, Results, fail, format_bytes, ok, unknown, warn
from stackgen.doctor.gpus import VLLM_UTILIZATION, requested_gpus

__all__ = ["check_gpu_memory"]

# an estimate for engines that take only the memory they need: CUDA context, KV cache of a short chat, activations
RUNTIME_OVERHEAD = GIB


def check_gpu_memory(inputs: DoctorInputs) -> Results:
    """Each GPU has enough free memory. vLLM: utilization x total; others: the weights and `RUNTIME_OVERHEAD`."""
    # bytes by GPU index: models that share a GPU add up
    planned: dict[int, float] = {}
    if any(request.driver == "amd" for _, _, request in inputs.gpu_requests()):
        yield unknown("doctor does not check the free memory of AMD GPUs",
                      fix="`rocm-smi --showmeminfo vram` shows the free memory")  # fmt: skip
    for place, model, _request, gpus in requested_gpus(inputs):
        for gpu in gpus or ():
            minimum, source = _required_memory(inputs, model, gpu, len(gpus or ()))
            if gpu.memory_total is None or gpu.memory_free is None or minimum is None:
                yield unknown(f"can't tell whether GPU {gpu.index} has enough free memory",
                              evidence=source if minimum is None else "", place=place)  # fmt: skip
                continue
            others = planned.get(gpu.index, 0.0)
            minimum += others
            need = minimum if model.engine == "vllm" else minimum + RUNTIME_OVERHEAD
            planned[gpu.index] = need
            free, total = gpu.memory_free, gpu.memory_total
            evidence = f"{format_bytes(free)} of {format_bytes(total)} free; {source}"
            evidence += f", plus {format_bytes(others)} for other models" if others else ""
            if free >= need:
                yield ok(f"GPU {gpu.index} has enough free memory", evidence=evidence, place=place)
                continue
            holders = ", ".join(
                f"{one.name} (pid {one.pid}{f', {format_bytes(one.memory)}' if one.memory else ''})"
                for one in gpu.processes
            )
            evidence += f"; used by {holders}" if holders else "; nvidia-smi shows no process on this GPU"
            # this stack itself may use the memory
            if any(one.project == inputs.stack.plan.name for one in inputs.host.containers or () if inputs.stack):
                yield unknown(f"this stack is already running and uses the memory of GPU {gpu.index}",
                              evidence=evidence, place=place)  # fmt: skip
                continue
            fix, field = "stop the processes on this GPU, or use a smaller or quantized model", f"{place}.gpus"
            if model.engine == "vllm":
                # rounded down, less 2 % for the CUDA context
                share = int((free / total - 0.02) * 100) / 100
                fix = "stop the processes on this GPU"
                fix += f", or set gpu_memory_utilization: {share:g}" if share >= 0.1 else ""
                field = f"{place}.gpu_memory_utilization"
            # only a known size can fail: guessed weights and the engine's overhead are estimates
            report = warn if free >= minimum or "guessed" in source else fail
            yield report(f"GPU {gpu.index} has too little free memory: {format_bytes(need)} are needed",
                         evidence=evidence, fix=fix, place=field)  # fmt: skip


def _required_memory(inputs: DoctorInputs, model: Any, gpu: Gpu, count: int) -> tuple[float | None, str]:
    """Bytes that a model needs on each of its `count` GPUs, without `RUNTIME_OVERHEAD`, and their source."""
    if model.engine == "vllm":
        utilization = model.gpu_memory_utilization or VLLM_UTILIZATION
        return utilization * (gpu.memory_total or 0), f"vLLM takes {utilization:g} of the GPU's memory"
    weight, source = weight_bytes(inputs, model.model)
    if weight is None:
        return None, f"the size of {model.model} is unknown"
    for field in ("gpu_layers", "cpu_offloading", "max_gpu_memory"):
        if getattr(model, field, None) not in (None, False):
            return None, f"{field} decides how much of the weights goes to the GPU"
    if getattr(model, "load_8bit", False):
        weight, source = weight // 2, f"{source}, halved by load_8bit"
    spread = f" across {count} GPUs" if count > 1 else ""
    overhead = f"about {format_bytes(RUNTIME_OVERHEAD)} for CUDA and the KV cache"
    return weight / count, f"{format_bytes(weight)} of weights ({source}){spread}, and {overhead}"
