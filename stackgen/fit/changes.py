"""What would make a model fit: each change is estimated like the deployment itself, and listed only if it fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from stackgen.errors import StackgenError
from stackgen.fit.architecture import DTYPE_BYTES
from stackgen.fit.estimate import CLOSE, FITS, Change, Estimate, Model, estimate, format_gib
from stackgen.fit.fp8_cache import is_fp8
from stackgen.fit.gpus import Gpu, known_gpus
from stackgen.fit.prompts import longest_prompt
from stackgen.fit.settings import Settings
from stackgen.fit.weights import Weights

__all__ = ["FEWER", "SHORTEST", "Option", "find_changes", "find_options", "four_bit_variant", "has_fp8"]

# a shorter context answers hardly any chat
SHORTEST = 2048
# above it, other programs and the CUDA context no longer have a place
HIGHEST_UTILIZATION = 0.95
# FP8 needs compute capability 8.9 (docs.vllm.ai, "Quantization", supported hardware)
FP8_COMPUTE = (8, 9)
# GPUs of one size differ by less: an RTX 3090 has 0.2 % more than an RTX 4090
LARGER = 1.05
# requests at the same time that are still enough for a team
FEWER = 64
# the other changes save memory of a KV cache, or change weights in ways that were not tried with encoders
ENCODER_FIELDS = ("gpu_memory_utilization", "max_model_len", "gpus")


def find_changes(found: Estimate, model: Model) -> tuple[Change, ...]:
    """The changes that make `model` fit, the mildest first; () if it fits already, or if nothing helps."""
    if found.verdict == FITS:
        return ()
    if found.verdict == CLOSE and found.doubts:
        return (Change("start the model once, and measure its memory: `stackgen fit --observe`", "", ""),)
    changes = [change for change, _, _ in find_options(found, model)]
    # FastChat always allows the model's whole context, which needs huge GPUs although short prompts fit on small ones
    if found.settings.engine == "fastchat" and longest_prompt(found) >= SHORTEST:
        return (*changes, *_limited_context(found, model))
    if gpu := _smallest_gpu(found, model):
        changes.append(Change(f"use a GPU with more memory: {gpu.name} ({format_gib(gpu.memory)}) is the smallest "
                              "in the table that fits", "", gpu.name))  # fmt: skip
    return tuple(changes)


def _limited_context(found: Estimate, model: Model) -> Iterator[Change]:
    """The change to vLLM, which limits the context."""
    other = Settings(tensor_parallel=found.settings.tensor_parallel, max_model_len=-1,
                     utilization=found.given.utilization)  # fmt: skip
    with suppress(StackgenError):
        length = min(found.length, estimate(model, other, found.gpu).longest // 1024 * 1024)
        if length >= SHORTEST and _fits(model, replace(other, max_model_len=length), found.gpu):
            yield Change(f"serve the model with vLLM, which limits the context: `max_model_len: {length}` fits",
                         "engine", "vllm")  # fmt: skip


Option = tuple[Change, Model, Settings]


def find_options(found: Estimate, model: Model) -> list[Option]:
    """The changes of the model's settings or weights with which it fits on the same GPU, the mildest first."""
    if found.doubts:
        return []
    options = _vllm_options(found, model) if found.settings.engine == "vllm" else _other_options(found, model)
    if not found.has_cache:
        options = (one for one in options if one[0].field in ENCODER_FIELDS)
    return [one for one in options if _fits(one[1], one[2], found.gpu)]


def _fits(model: Model, settings: Settings, gpu: Gpu) -> bool:
    try:
        return estimate(model, settings, gpu).verdict == FITS
    except StackgenError:
        return False


def _vllm_options(found: Estimate, model: Model) -> Iterator[Option]:
    settings, known = found.given, model.architecture
    if is_fp8(settings.kv_cache_dtype):
        plain = replace(settings, kv_cache_dtype="auto")
        yield Change("a KV cache in 16 bits, which every GPU supports", "kv_cache_dtype", "auto"), model, plain
    # the context itself is the decision of the user, so other changes come first
    share = settings.share
    if not settings.is_cpu and share < HIGHEST_UTILIZATION:
        for percent in range(int(share * 100) + 1, int(HIGHEST_UTILIZATION * 100) + 1):
            higher = replace(settings, utilization=percent / 100)
            if _fits(model, higher, found.gpu):
                yield (
                    Change(f"take {percent} % of the GPU's memory", "gpu_memory_utilization", f"{percent / 100:g}"),
                    model,
                    higher,
                )
                break
    sequences = found.settings.max_num_seqs or 0
    for fewer in (256, 64, 16):
        if fewer < sequences:
            less = replace(settings, max_num_seqs=fewer)
            if _fits(model, less, found.gpu):
                yield Change(f"at most {fewer} requests at the same time", "max_num_seqs", str(fewer)), model, less
                break
    if has_fp8(found.gpu) and settings.kv_cache_dtype == "auto" and not known.is_hybrid:
        half = replace(settings, kv_cache_dtype="fp8")
        yield (
            Change("half of the memory for the KV cache, at a small loss of quality", "kv_cache_dtype", "fp8"),
            model,
            half,
        )
    length = estimate(model, replace(settings, max_model_len=-1), found.gpu).longest // 1024 * 1024
    if SHORTEST <= length < found.length:
        shorter = replace(settings, max_model_len=length)
        yield Change(f"a context of at most {length} tokens", "max_model_len", str(length)), model, shorter
    elif length < SHORTEST and sequences > FEWER:
        # neither is enough alone
        reduced = replace(settings, max_num_seqs=FEWER)
        length = estimate(model, replace(reduced, max_model_len=-1), found.gpu).longest // 1024 * 1024
        if SHORTEST <= length < found.length:
            yield (
                Change(f"at most {FEWER} requests at the same time with a context of at most {length} tokens: "
                       f"`max_num_seqs: {FEWER}` and `max_model_len: {length}`", "", ""),
                model,
                replace(reduced, max_model_len=length),
            )  # fmt: skip
    for parallel in (2, 4, 8):
        if parallel > settings.tensor_parallel and known.vocabulary % parallel == 0:
            more = replace(settings, tensor_parallel=parallel)
            if _fits(model, more, found.gpu):
                yield (
                    Change(f"split the model across {parallel} GPUs like this one", "gpus", str(parallel)),
                    model,
                    more,
                )
                break
    if not known.quantization and not settings.quantization:
        yield from _quantized(found, model)


def _quantized(found: Estimate, model: Model) -> Iterator[Option]:
    settings = found.given
    if has_fp8(found.gpu):
        eight = replace(settings, quantization="fp8")
        yield (
            Change("compress the weights to 8 bits while loading, or use a checkpoint in FP8", "quantization", "fp8"),
            model,
            eight,
        )
    change, small = four_bit_variant(model)
    yield change, small, settings


def four_bit_variant(model: Model) -> tuple[Change, Model]:
    """The change to a variant of `model` with 4-bit weights, and that variant. `model` has 16-bit weights."""
    # 4 bits for each weight, and scales: 4.5 bits; embeddings stay in 16
    known, element = model.architecture, DTYPE_BYTES[model.architecture.dtype]
    ends = known.vocabulary * known.hidden * element * (1 if known.tied else 2)
    four = int(max(0, model.weights.total - ends) * 4.5 / (8 * element) + ends)
    small = Model(replace(known, quantization="awq"), Weights(four, (), "4 bits for each weight"), model.name)
    return Change(f"use a variant with 4-bit weights (AWQ or GPTQ): about {format_gib(four)}", "model", ""), small


def _other_options(found: Estimate, model: Model) -> Iterator[Option]:
    settings = found.given
    share = found.smallest_utilization
    if settings.utilization and share:
        larger = replace(settings, utilization=share)
        text = f"a share of {share:.0%} of the GPU's memory"
        yield Change(text, "gpu_memory_utilization", f"{share:g}"), model, larger
    if settings.engine == "llamacpp" and settings.kv_cache_dtype in ("auto", "", "f16"):
        half = replace(settings, kv_cache_dtype="q8_0")
        yield (
            Change(
                "half of the memory for the KV cache: `--cache-type-k q8_0 --cache-type-v q8_0`", "extra_args", "q8_0"
            ),
            model,
            half,
        )
    if settings.engine == "fastchat":
        if settings.quantization != "8bit":
            yield (
                Change("compress the weights to 8 bits while loading", "load_8bit", "true"),
                model,
                replace(settings, quantization="8bit"),
            )
        for fewer in (2, 1):
            if fewer < (found.settings.max_num_seqs or 1):
                less = replace(settings, max_num_seqs=fewer)
                yield (
                    Change(f"at most {fewer} requests at the same time", "worker_concurrency", str(fewer)),
                    model,
                    less,
                )
    # FastChat takes the context length from the model
    length = found.length if settings.engine != "fastchat" else 0
    while (length := length // 2) >= SHORTEST:
        shorter = replace(settings, max_model_len=length)
        if _fits(model, shorter, found.gpu):
            yield Change(f"a context of at most {length} tokens", "max_model_len", str(length)), model, shorter
            break


def has_fp8(gpu: Gpu) -> bool:
    """Whether the GPU computes in FP8."""
    return gpu.capability is not None and gpu.capability >= FP8_COMPUTE


def _smallest_gpu(found: Estimate, model: Model) -> Gpu | None:
    least = found.gpu.memory * LARGER
    larger = {gpu.name: gpu for gpu in known_gpus().values() if gpu.memory > least and not gpu.unified}
    fitting = [gpu for gpu in larger.values() if _fits(model, found.given, gpu)]
    return min(fitting, key=lambda gpu: gpu.memory) if fitting else None
