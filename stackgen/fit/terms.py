"""The memory of vLLM on one GPU besides the KV cache: activations, CUDA graphs, and what CUDA and NCCL take.

vLLM 0.32.0, `Worker.determine_available_memory` (vllm/v1/worker/gpu_worker.py): the KV cache gets utilization x total
memory, less what the weights and everything outside PyTorch hold, less the peak of a profiling run, less the estimate
for CUDA graphs. The profiling run computes `max_num_batched_tokens` tokens and samples for `max_num_seqs` requests.

The constants are fitted by benchmarks/fit_constants.py on one half of the public logs in
benchmarks/fit_data/rows.tsv, and docs/reference/fit-accuracy.md has the errors on the other half.
"""

from __future__ import annotations

from dataclasses import dataclass

from stackgen.fit.architecture import DTYPE_BYTES, Architecture
from stackgen.fit.gpus import GIB
from stackgen.fit.settings import Settings

__all__ = [
    "CPU_PROCESSES",
    "ERAS",
    "Era",
    "Term",
    "activation",
    "cpu_processes",
    "cuda_graphs",
    "lora_buffers",
    "non_torch",
    "vision",
]


@dataclass(frozen=True, slots=True)
class Term:
    """A part of the memory: bytes on each GPU, and the bounds that the real value is expected in. `source`: how."""

    name: str
    bytes: int
    low: int
    high: int
    source: str


@dataclass(frozen=True, slots=True)
class Era:
    """The constants of the versions of vLLM from `since` on.

    - `sampler`: bytes for each request and entry of the vocabulary at the peak of sampling; with bounds.
    - `context`: bytes outside PyTorch with one GPU; `nccl`: with several GPUs; with bounds.
    - `graphs`: whether the budget is charged for CUDA graphs.
    """

    since: tuple[int, ...]
    sampler: tuple[float, float, float]
    context: tuple[float, float, float]
    nccl: tuple[float, float, float]
    graphs: bool


# fitted: 0.17 to 0.25 on the fitting half; before and after, the few rows that exist (benchmarks/fit_data/rows.tsv).
# Since 0.26, a second model runner samples with less memory, but not for all models; so the bounds span both.
ERAS = (
    Era((0, 0), (38.4, 36.0, 41.0), (0.13, 0.02, 0.4), (0.55, 0.3, 2.4), False),
    Era((0, 17), (14.9, 14.2, 15.6), (0.13, 0.1, 0.35), (2.12, 0.5, 2.4), False),
    Era((0, 18), (14.9, 14.2, 15.6), (0.25, 0.2, 0.5), (2.12, 0.5, 2.4), False),
    Era((0, 21), (14.9, 6.5, 15.6), (0.25, 0.2, 0.6), (2.12, 0.5, 2.6), True),
    Era((0, 26), (7.0, 5.5, 15.6), (0.25, 0.2, 0.7), (2.12, 0.5, 2.6), True),
)
# GiB of a forward pass that no tensor of the formula explains; share of the buffers of experts that are alive at once
FORWARD_REST, EXPERT_SHARE = 0.14, 0.8
# bytes for each patch, layer-independent: activations of the vision encoder while it is profiled
VISION_PATCH = 22
# GiB of an engine's own processes on the CPU: lowest, middle, highest. Measured with small models, without weights and
# caches: vLLM 0.32.0 1.4 GiB, FastChat 0.2.36 0.36 GiB (benchmarks/fit_fastchat.py), llama.cpp b11434 0.02 GiB (VmHWM)
CPU_PROCESSES = {"vllm": (1.2, 1.4, 2.8), "fastchat": (0.3, 0.36, 0.8), "llamacpp": (0.01, 0.02, 0.3)}
# GiB for each layer and full list of 51 capture sizes: lowest and highest that logs show, and the middle
GRAPH_LAYER = (0.02, 0.005, 0.032)


def era_of(version: tuple[int, ...]) -> Era:
    """The constants for a version of vLLM."""
    return [era for era in ERAS if era.since <= version][-1]


def activation(model: Architecture, settings: Settings) -> Term:
    """The peak of the profiling run: the larger one of a forward pass and of sampling, and the buffers of experts."""
    tokens, sequences = settings.max_num_batched_tokens or 2048, settings.max_num_seqs or 256
    element, parallel = DTYPE_BYTES[settings.dtype or model.dtype], settings.tensor_parallel
    era = era_of(settings.version)
    hidden = tokens * model.hidden * element
    experts = _expert_bytes(model, tokens, element, parallel)
    # gate and up projection, their product, and two states
    dense = tokens * 3 * model.feed_forward // parallel * element if not model.experts else 0
    forward = dense + 2 * hidden + experts + FORWARD_REST * GIB
    sampler, low, high = (share * sequences * model.vocabulary for share in era.sampler)
    kept = hidden + EXPERT_SHARE * experts
    peaks = [max(forward, part + kept) for part in (sampler, low, high)]
    images = vision(model) if not settings.text_only else 0
    # the first of several stages doesn't sample; a vision model once needed as little as a newer vLLM does
    least = (
        forward
        if settings.pipeline_parallel > 1
        else min(peaks)
        if not images
        else min(14 / era.sampler[0], 1) * peaks[0]
    )
    return Term(
        "activations", int(peaks[0] + images), int(least * 0.95), int(peaks[2] * 1.04 + 2 * images),
        f"{sequences} requests x {model.vocabulary} entries of the vocabulary, {tokens} tokens a batch",
    )  # fmt: skip


def _expert_bytes(model: Architecture, tokens: int, element: int, parallel: int) -> int:
    if not model.experts or model.quantization == "mxfp4":
        # kernels for MXFP4 keep no buffers: gpt-oss needs no more than its sampler
        return 0
    routed, inner = tokens * model.active_experts, model.expert_size // parallel
    return routed * (3 * inner + model.hidden) * element


def vision(model: Architecture) -> int:
    """Bytes of activations of the vision encoder; 0 for a text model."""
    hidden, _depth, patches = model.vision
    return patches * hidden * VISION_PATCH


def cuda_graphs(model: Architecture, settings: Settings) -> tuple[Term, Term]:
    """What the budget is charged for CUDA graphs, and what their capture takes outside the budget."""
    names = ("CUDA graphs", "CUDA graphs outside the budget")
    if settings.enforce_eager or settings.is_cpu:
        return Term(names[0], 0, 0, 0, "--enforce-eager"), Term(names[1], 0, 0, 0, "--enforce-eager")
    # vllm/config/vllm.py captures up to 2 x max_num_seqs, at most 512 tokens: 51 sizes
    # and for gpt-oss at most 1024: 83 sizes (llm-d-planner's log of gpt-oss-20b, 2026-04)
    most = 1024 if model.family == "gpt_oss" else 512
    sizes = min(most, 2 * (settings.max_num_seqs or 256)) / 512
    layers = model.depth / settings.pipeline_parallel
    middle, low, high = (int(one * layers * sizes * GIB) for one in GRAPH_LAYER)
    term = (middle, low, high + GIB // 10, f"{model.depth} layers, captured for up to {int(512 * sizes)} tokens")
    none = (0, 0, 0, "vLLM before 0.21 does not count them")
    if era_of(settings.version).graphs:
        return Term(names[0], *term), Term(names[1], 0, 0, 0, "counted in the budget since vLLM 0.21")
    return Term(names[0], *none), Term(names[1], *term)


def non_torch(settings: Settings) -> Term:
    """What CUDA, cuBLAS and NCCL take on each GPU."""
    era, several = era_of(settings.version), settings.tensor_parallel > 1
    middle, low, high = (int(one * GIB) for one in (era.nccl if several else era.context))
    what = f"NCCL and all-reduce buffers of {settings.tensor_parallel} GPUs" if several else "CUDA and cuBLAS"
    return Term("CUDA and NCCL", middle, low, high, what)


def cpu_processes(model: Architecture, settings: Settings) -> Term:
    """What the processes of vLLM take on the CPU: 1.4 GiB with a model of 1 MB, measured on 0.32.0."""
    # logits in float32 while it samples, which the measured model hardly has
    sampling = (settings.max_num_seqs or 128) * model.vocabulary * 8
    low, middle, high = (int(one * GIB) for one in CPU_PROCESSES["vllm"])
    return Term("engine processes", middle + sampling, low, high + 2 * sampling, "PyTorch and the API server")


def lora_buffers(known: Architecture, settings: Settings) -> list[Term]:
    """The buffers of LoRA adapters; [] without any."""
    if not settings.loras:
        return []
    # buffers for each adapter: A and B of every projection; vllm/lora/layers of 0.32.0
    sides = 4 * known.hidden + 3 * known.feed_forward + 6 * known.hidden
    size = settings.loras * known.depth * sides * settings.lora_rank * DTYPE_BYTES[known.dtype]
    size //= settings.tensor_parallel
    return [Term("LoRA adapters", size, size // 2, size * 2, f"{settings.loras} of rank {settings.lora_rank}")]
