"""The estimate: all terms of one replica on one GPU, the room for the KV cache, and the verdict.

Sources of the parts: `stackgen.fit.weights`, `stackgen.fit.terms` and `stackgen.fit.cache`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from stackgen.errors import StackgenError
from stackgen.fit.architecture import Architecture, CacheLayer
from stackgen.fit.cache import CachePlan, plan_cache
from stackgen.fit.doubts import AMD_FACTOR, platform_doubts
from stackgen.fit.encoder import encoder_activation, encoder_processes, step_tokens
from stackgen.fit.fp8_cache import NO, YES, find_support, is_fp8
from stackgen.fit.gpus import GIB, Gpu
from stackgen.fit.lengths import context_length, length_warnings
from stackgen.fit.others import fastchat_plan, fastchat_terms, llamacpp_plan, llamacpp_terms
from stackgen.fit.requirements import require_divisible, require_known
from stackgen.fit.settings import Settings
from stackgen.fit.terms import Term, activation, cpu_processes, cuda_graphs, lora_buffers, non_torch
from stackgen.fit.weights import Weights, stage_sizes, weigh

__all__ = ["CLOSE", "FITS", "NOT", "Change", "Estimate", "Model", "estimate", "format_gib"]

FITS, NOT, CLOSE = "fits", "doesn't fit", "too close to call"
# GiB that vLLM needs free outside its share of the memory: the CUDA context, and what the driver reserves
CONTEXT = 0.5
CPU_RESERVE = 1.0
# weights that only a total size is known for: tensors that every GPU copies, and padding
UNKNOWN_WEIGHTS = 0.03
KNOWN_WEIGHTS = 0.012


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of a model before it runs."""

    architecture: Architecture
    weights: Weights
    name: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A change that makes a model fit: in words, and as a field of stack.yaml with its value."""

    text: str
    field: str
    value: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory of one replica on each of its GPUs. All sizes are bytes; triples are (low, middle, high).

    - `budget`: what the engine takes. `cache`: the room for the KV cache. `needed`: the terms and the cache of one
      request of `length` tokens.
    - `settings`: with the engine's defaults for the GPU; `given`: without them, for estimates of changed settings.
    - `tokens`: size of the cache in tokens, as vLLM prints it. `longest`: the longest context that fits for certain.
    - `doubts`: what makes the memory uncertain. `warnings`: what may prevent a start whatever the memory is.
    - `concurrency`: requests of `length` tokens at the same time.
    - `token_bytes`: bytes of cache for each further token.
    """

    verdict: str
    reason: str
    gpu: Gpu
    settings: Settings
    terms: tuple[Term, ...]
    budget: int
    cache: tuple[int, int, int]
    needed: tuple[int, int, int]
    request: int
    length: int
    tokens: int
    longest: int
    concurrency: float
    token_bytes: float
    plan: CachePlan
    vocabulary: int
    given: Settings = field(default_factory=Settings)
    doubts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def has_cache(self) -> bool:
        """Whether the model has a KV cache or a state; encoders have none."""
        return bool(self.plan.groups or self.plan.fixed)

    @property
    def smallest_utilization(self) -> float | None:
        """The smallest `gpu_memory_utilization` with which the model certainly starts; None if there is none."""
        share = -(-self.needed[2] * 100 // self.gpu.memory) / 100
        return share if share <= 1 - CONTEXT * GIB / self.gpu.memory else None


def estimate(model: Model, settings: Settings, gpu: Gpu) -> Estimate:
    """Estimates one replica of `model` on GPUs like `gpu`. Raises StackgenError if the settings can't work at all."""
    found = replace(_estimate(model, settings, gpu), given=settings)
    if not found.has_cache or settings.engine != "vllm" or settings.is_cpu or not is_fp8(settings.kv_cache_dtype):
        return found
    # AMD: vLLM's ROCm backends accept it
    if gpu.compute.startswith("gfx"):
        return found
    support = find_support(gpu.name, gpu.capability, settings.kv_cache_dtype, model.architecture.uses_mla)
    text = support.message + (f" ({support.evidence})" if support.evidence else "")
    if support.state == NO:
        return replace(found, verdict=NOT, reason=text)
    return found if support.state == YES else replace(found, warnings=(*found.warnings, text))


def _estimate(model: Model, settings: Settings, gpu: Gpu) -> Estimate:
    known, given, settings = model.architecture, settings, settings.resolve(gpu)
    length = context_length(known, given, model.name)
    if known.is_encoder:
        return _estimate_encoder(model, given, settings, gpu, length)
    if settings.engine != "vllm":
        found = _estimate_other(model, settings, gpu, length)
        return replace(found, warnings=length_warnings(known, given, length))
    if known.quantization == "gguf":
        raise StackgenError(f"{model.name} is a GGUF file, which vLLM does not serve", "set `engine: llamacpp`")
    require_known(settings)
    require_divisible(known, settings)
    graphs, outside = cuda_graphs(known, settings)
    terms = [
        _weights(model, settings), activation(known, settings), graphs, non_torch(settings),
        *lora_buffers(known, settings),
    ]  # fmt: skip
    if settings.is_cpu:
        terms = [terms[0], cpu_processes(known, settings)]
    plan = plan_cache(
        known, tensor_parallel=settings.tensor_parallel, dtype=settings.dtype, cache_dtype=settings.kv_cache_dtype,
        block_size=settings.block_size, is_cpu=settings.is_cpu, in_flight=settings.in_flight,
        prefix_caching=settings.prefix_caching, layers=_stage_layers(known, settings.pipeline_parallel),
    )  # fmt: skip
    # on the CPU, vLLM takes the size of the cache that it is given, and no share of the memory
    budget = int(settings.share * gpu.memory) if not settings.is_cpu else gpu.memory
    found = _build(known, settings, gpu, length, terms, plan, budget)
    if settings.kv_cache_bytes:
        found = replace(found, cache=(settings.kv_cache_bytes,) * 3)
    verdict, reason = _judge_fixed(found) or _judge(found, outside)
    return replace(found, terms=(*found.terms, *((outside,) if outside.bytes else ())), verdict=verdict, reason=reason,
                   warnings=length_warnings(known, given, length))  # fmt: skip


def _estimate_encoder(model: Model, given: Settings, settings: Settings, gpu: Gpu, length: int) -> Estimate:
    """An encoder has no KV cache, and vLLM takes what it needs."""
    known = model.architecture
    if settings.engine != "vllm":
        raise StackgenError(f"{model.name or 'the model'} is an encoder, whose memory is only estimated for vLLM",
                            "set `engine: vllm`, or measure the memory: start the model once")  # fmt: skip
    require_divisible(known, settings)
    weights, (graphs, _) = _weights(model, settings), cuda_graphs(known, settings)
    if not model.weights.tensors:
        # the size of the files does not say whether they contain 16 or 32 bits a weight
        weights = replace(weights, low=weights.low // 2)
    tokens = step_tokens(given, settings, length)
    terms = [weights, encoder_activation(known, settings, tokens), replace(graphs, low=0), non_torch(settings)]
    terms = [terms[0], terms[1], encoder_processes()] if settings.is_cpu else terms
    budget = gpu.memory if settings.is_cpu else int(settings.share * gpu.memory)
    found = _build(known, settings, gpu, length, terms, CachePlan((), 0, 0.0), budget)
    low, middle, high = found.needed
    what = f"the weights and one step of {tokens} tokens need {format_gib(low)} to {format_gib(high)}"
    room = f"the engine may take {format_gib(budget)}"
    if low > budget:
        verdict, reason = NOT, f"{what}, and {room}: {format_gib(middle - budget)} are missing"
    elif high > budget:
        verdict, reason = CLOSE, f"{what}, and {room}"
    else:
        verdict, reason = FITS, f"{what}, and {room}. An encoder has no KV cache"
    if verdict == FITS and found.doubts:
        verdict, reason = CLOSE, f"{reason}, but {found.doubts[0]}"
    return replace(found, verdict=verdict, reason=reason, longest=length)


def _estimate_other(model: Model, settings: Settings, gpu: Gpu, length: int) -> Estimate:
    """llama.cpp and FastChat take what they need. A share (`utilization`) is what they may need beside others."""
    known = model.architecture
    if settings.engine == "llamacpp":
        if known.quantization != "gguf":
            raise StackgenError(f"{model.name} is not a GGUF file, but llama.cpp serves only GGUF files",
                                "pass a GGUF file, or set `engine: vllm`")  # fmt: skip
        terms, plan = llamacpp_terms(model.weights, known, settings, length), llamacpp_plan(known, settings)
    else:
        terms, plan = fastchat_terms(model.weights, known, settings, length), fastchat_plan(known, settings)
        if known.quantization == "gguf":
            raise StackgenError(f"{model.name} is a GGUF file, which FastChat does not serve", "set `engine: llamacpp`")
    # the driver keeps about 1 % for itself
    budget = int(min(0.99, settings.utilization or 1) * gpu.memory)
    found = _build(known, settings, gpu, length, terms, plan, budget)
    verdict, reason = _judge(found, None)
    return replace(found, verdict=verdict, reason=reason)


def _build(
    known: Architecture, settings: Settings, gpu: Gpu, length: int, terms: list[Term], plan: CachePlan, budget: int
) -> Estimate:
    # a derived size of the memory may be 1 % off
    doubt = int(0.01 * budget) if gpu.source.startswith("derived") else 0
    low, middle, high = (sum(size) for size in zip(*((t.low, t.bytes, t.high) for t in terms), strict=True))
    cache = (budget - high - doubt, budget - middle, budget - low + doubt)
    # FastChat computes each request in a thread of its own, and llama.cpp reserves all slots at once
    slots = 1 if settings.engine == "vllm" else settings.max_num_seqs or 1
    request = plan.request_bytes(length) * slots
    room = max(0, cache[1])
    doubts = platform_doubts(settings, gpu, terms, cache[0] - request)
    return Estimate(
        verdict="", reason="", gpu=gpu, settings=settings, terms=tuple(terms), budget=budget, cache=cache,
        needed=(low + request, middle + request, high + request), request=request, length=length,
        tokens=plan.tokens(room, length), longest=plan.longest(max(0, cache[0]) // slots, known.length or length),
        concurrency=plan.concurrency(room, length), token_bytes=plan.token_bytes, plan=plan,
        vocabulary=known.vocabulary, doubts=(*known.doubts, *settings.doubts, *doubts),
    )  # fmt: skip


def _weights(model: Model, settings: Settings) -> Term:
    size = weigh(model.weights, model.architecture, tensor_parallel=settings.tensor_parallel,
                 pipeline_parallel=settings.pipeline_parallel, dtype=settings.dtype,
                 quantization=settings.quantization)  # fmt: skip
    doubt = KNOWN_WEIGHTS if model.weights.tensors else UNKNOWN_WEIGHTS
    # kernels of quantized and vision models repack or pad some weights
    doubt += 0.02 * bool(model.architecture.quantization or settings.quantization)
    rest = int(0.6 * GIB) if model.architecture.vision[0] else int(0.05 * GIB)
    return Term("weights", size, int(size * (1 - doubt)), int(size * (1 + doubt)) + rest, model.weights.source)


def _stage_layers(known: Architecture, stages: int) -> tuple[CacheLayer, ...] | None:
    if stages == 1:
        return None
    # of the largest stage
    return known.layers[: round(len(known.layers) * max(stage_sizes(known.depth, stages)) / known.depth)]


def _judge_fixed(found: Estimate) -> tuple[str, str] | None:
    """The verdict if a cache of a given size leaves too little memory; None if it does not."""
    cache = found.settings.kv_cache_bytes
    # what other programs need: on the CPU, the system itself
    free = found.gpu.memory - (CPU_RESERVE if found.settings.is_cpu else CONTEXT) * GIB
    low, high = (sum(sizes) + cache for sizes in zip(*((term.low, term.high) for term in found.terms), strict=True))
    if not cache or high <= free:
        return None
    verdict = NOT if low > free else CLOSE
    return verdict, (f"the weights, buffers and a KV cache of {format_gib(cache)} need {format_gib(low)} to "
                     f"{format_gib(high)}, and {format_gib(max(0, free))} are available")  # fmt: skip


def _judge(found: Estimate, outside: Term | None) -> tuple[str, str]:
    """The verdict, and the number that decides it."""
    settings, gpu = found.settings, found.gpu
    wanted = found.plan.block_bytes * 2 if settings.max_model_len == -1 else found.request
    what = "one block" if settings.max_model_len == -1 else f"one request of {found.length} tokens"
    if settings.engine != "vllm" and (settings.max_num_seqs or 1) > 1:
        what = f"{settings.max_num_seqs} requests with {found.length} tokens"
    low, middle, high = found.cache
    who = "the engine may use" if settings.engine == "vllm" or not settings.utilization else "the model's share is"
    if high < wanted and middle < 0:
        return NOT, (f"the weights and buffers need {format_gib(found.budget - middle)}, and the KV cache for "
                     f"{what} needs {format_gib(wanted)}, but {who} only {format_gib(found.budget)}: "
                     f"{format_gib(wanted - middle)} are missing")  # fmt: skip
    if high < wanted:
        return NOT, (f"the room for the KV cache is {format_gib(middle)}, but {what} need{'s' * ('one' in what)} "
                     f"{format_gib(wanted)}: {format_gib(wanted - middle)} are missing")  # fmt: skip
    if low < wanted:
        return CLOSE, (f"{what} need{'s' * ('one' in what)} {format_gib(wanted)} of KV cache, and the room for it "
                       f"is between {format_gib(low)} and {format_gib(high)}")  # fmt: skip
    if outside and not settings.is_cpu:
        # capturing graphs and warming the sampler up happens outside the budget, in what is left of the GPU
        free = gpu.memory - found.budget - CONTEXT * GIB
        # a real start died here: gpt-oss-20b on one H100 at 0.95, vLLM 0.19 (llm-d-planner, 2026-04)
        warm_up = 8 * (settings.max_num_seqs or 0) * found.vocabulary + GIB // 2
        after = outside.high + warm_up if outside.bytes else 0
        if free < after:
            return CLOSE, (f"the engine's share leaves {format_gib(max(0, free))} of the GPU's memory free, but "
                           f"CUDA graphs and the first sampling may take {format_gib(after)}, which vLLM before "
                           "0.21 does not count as part of the share")  # fmt: skip
        if free < 0:
            return CLOSE, "the engine's share and the CUDA context together need more than the GPU's memory"
    if doubt := next(iter(found.doubts), ""):
        return CLOSE, (f"the expected room for the KV cache is {format_gib(middle)}, and {what} "
                       f"need{'s' * ('one' in what)} {format_gib(wanted)}, but {doubt}")  # fmt: skip
    also = f", even if buffers take {AMD_FACTOR} times as much as on NVIDIA GPUs" if gpu.is_amd else ""
    return FITS, (f"the room for the KV cache is {format_gib(middle)}, and {what} need{'s' * ('one' in what)} "
                  f"{format_gib(wanted)}{also}")  # fmt: skip


def format_gib(size: float) -> str:
    """Bytes as `12.34 GiB`."""
    return f"{size / GIB:.2f} GiB"
