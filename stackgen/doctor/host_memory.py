"""Checks that this machine has memory for everything that runs on the CPU. `stackgen.fit` computes it."""

from __future__ import annotations

from typing import Any

from stackgen.doctor.capacity import weight_bytes
from stackgen.doctor.facts import GIB
from stackgen.doctor.finding import DoctorInputs, Results, fail, format_bytes, ok, unknown, warn
from stackgen.doctor.gpu_memory import estimate_on_cpu
from stackgen.fit.sharing import taken
from stackgen.fit.terms import CPU_PROCESSES

__all__ = ["check_host_memory"]

# the fields that decide the memory of a model on the CPU
SMALLER = {"vllm": ("cpu_kv_cache_gib",), "llamacpp": ("max_model_len", "max_num_seqs"),
           "fastchat": ("worker_concurrency",)}  # fmt: skip


def check_host_memory(inputs: DoctorInputs) -> Results:
    """The host has memory for everything that runs on the CPU: weights, caches, and the engines' own processes."""
    host, certain, expected, guessed = inputs.host, 0.0, 0.0, False
    parts, unsized = list[str](), list[str]()
    for _, model in inputs.model_specs():
        if model.gpus:
            if total := _offloaded(model):
                certain, expected = certain + total, expected + total
                parts.append(f"{model.model}: {format_bytes(total)} (cpu_offload_gib)")
            continue
        low, middle, source = _needed(inputs, model)
        guessed |= "guessed" in source or not source
        unsized += [] if source else [model.model]
        certain, expected = certain + low * model.replicas, expected + middle * model.replicas
        about = f" ({source or 'without the weights, whose size is unknown'})"
        parts.append(
            f"{model.model}: {format_bytes(middle)}{about}" + (f" × {model.replicas}" if model.replicas > 1 else "")
        )
    if host.memory_total is None:
        yield unknown("this machine's memory is unknown")
        return
    # without the available memory, the total is still a limit
    available = host.memory_total if host.memory_available is None else host.memory_available
    free = "an unknown part is" if host.memory_available is None else f"{format_bytes(available)} are"
    evidence = f"this machine has {format_bytes(host.memory_total)} of memory, {free} available"
    evidence += "".join(f"; {part}" for part in parts)
    about = format_bytes(expected)
    less = f"reduce {_smaller_fields(inputs)}"
    # a running copy of the same stack already uses this memory, so only the total is a hard limit
    if certain > host.memory_total and not guessed:
        yield fail(
            f"the models on the CPU need about {about} of memory, more than this machine has",
            evidence=evidence,
            fix=f"{less}, or use a smaller model",
            place="models",
        )
    elif expected > available:
        yield warn(
            f"the models on the CPU need about {about} of memory, more than is available now",
            evidence=evidence,
            fix=f"stop other programs, {less}, or use a smaller model",
            place="models",
        )
    elif unsized:
        yield unknown(f"can't tell whether there is enough memory for {', '.join(unsized)}", evidence=evidence)
    elif parts and host.memory_available is None:
        yield unknown("can't tell whether enough memory is available: only the total is known", evidence=evidence)
    else:
        yield ok("there is enough memory" if parts else "the size of this machine's memory is known", evidence=evidence)


def _smaller_fields(inputs: DoctorInputs) -> str:
    """The fields that decide how much memory the models of this stack need."""
    found = dict.fromkeys(field for _, model in inputs.model_specs() if not model.gpus
                          for field in SMALLER.get(model.engine, ()))  # fmt: skip
    found |= dict.fromkeys(["cpu_offload_gib"] if any(_offloaded(one) for _, one in inputs.model_specs()) else [])
    return " or ".join(f"`{field}`" for field in (*found, "replicas"))


def _offloaded(model: Any) -> float:
    """Bytes of weights that stay in host memory: a list of GPUs is divided among all replicas."""
    offload = (getattr(model, "cpu_offload_gib", None) or 0) * GIB
    if isinstance(model.gpus, (list, tuple)):
        return float(offload * len(model.gpus))
    # the number of `all` is unknown here
    return float(offload * model.gpus * model.replicas) if isinstance(model.gpus, int) else 0.0


def _needed(inputs: DoctorInputs, model: Any) -> tuple[float, float, str]:
    """What one replica needs in bytes, for certain and as expected, and the source of the weights' size, "" if unknown.

    Without the model's config, weights and a cache of a given size are all that is known.
    """
    weight, source = weight_bytes(inputs, model.model)
    if found := estimate_on_cpu(inputs, model):
        low, middle, _ = taken(found)
        if model.engine == "fastchat":
            # the rest is for long prompts, which need not come
            low = sum(term.low for term in found.terms if "prompt" not in term.name)
        return low, middle, source or found.terms[0].source
    processes = CPU_PROCESSES.get(model.engine, CPU_PROCESSES["vllm"])
    rest = getattr(model, "cpu_kv_cache_gib", 0) * GIB + (weight or 0)
    return processes[0] * GIB + rest, processes[1] * GIB + rest, source
