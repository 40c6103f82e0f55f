"""Models that share a GPU: whether all of them fit together, and with which shares of its memory they would.

vLLM takes its share of the memory and no more (`stackgen.fit.estimate`); llama.cpp and FastChat take what they need.
Each process has a CUDA context outside of its share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from stackgen.errors import StackgenError
from stackgen.fit.changes import FEWER, SHORTEST, four_bit_variant, has_fp8
from stackgen.fit.estimate import CLOSE, CONTEXT, FITS, NOT, Change, Estimate, Model, estimate, format_gib
from stackgen.fit.gpus import GIB, Gpu
from stackgen.fit.settings import Settings

__all__ = ["HIGHEST_SUM", "Memo", "Shared", "Shares", "find_shares", "judge_together", "taken"]

# the most that gpu_memory_utilization of all models on a GPU may add up to: `stackgen.resolve.placement` refuses more
HIGHEST_SUM = 0.95
LENGTHS = tuple(sorted({factor * 2**power for power in range(10, 17) for factor in (2, 3)}, reverse=True))
# a share beyond the smallest, in case that CUDA graphs outside of it decide
STEPS = 5


@dataclass(slots=True)
class Memo:
    """What is known of models, by their `id`: their callers and `variants` keep them, so no other model has the id."""

    shares: dict[tuple[int, Settings, Gpu], float | None] = field(default_factory=dict)
    variants: dict[int, tuple[Change, Model]] = field(default_factory=dict)


Varied = list[tuple[Model, Settings, tuple[Change, ...]]]


@dataclass(frozen=True, slots=True)
class Shared:
    """The verdict on all models of one GPU. `taken`: bytes of all of them, (low, middle, high)."""

    verdict: str
    reason: str
    taken: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Shares:
    """Settings with which models fit together. `rank`: the smaller, the milder. `changes`: those of each model."""

    rank: tuple[int, int]
    changes: tuple[tuple[Change, ...], ...]
    models: tuple[Model, ...]

    @property
    def is_quantized(self) -> bool:
        """Whether a model has other weights than before."""
        return any(change.field in ("quantization", "model") for each in self.changes for change in each)


def judge_together(estimates: Sequence[Estimate]) -> Shared:
    """Judges models that share a GPU. Each of them has its own verdict besides."""
    memory, contexts = estimates[0].gpu.memory, int(len(estimates) * CONTEXT * GIB)
    low, middle, high = (sum(sizes) + contexts for sizes in zip(*map(taken, estimates), strict=True))
    span = format_gib(low) if low == high else f"{format_gib(low)} to {format_gib(high)}"
    what = f"they take {span}, with {format_gib(contexts)} for CUDA contexts"
    room = f"the GPU has {format_gib(memory)}"
    if low > memory:
        return Shared(NOT, f"{what}, and {room}: {format_gib(low - memory)} are missing", (low, middle, high))
    verdict = FITS if high <= memory else CLOSE
    return Shared(verdict, f"{what}, and {room}", (low, middle, high))


def taken(found: Estimate) -> tuple[int, int, int]:
    """What an engine takes, in bytes (low, middle, high): its share, and what it allocates outside of it."""
    settings = found.settings
    if settings.engine != "vllm":
        return found.needed
    outside = [term for term in found.terms if "outside" in term.name]
    extra = tuple(sum(getattr(term, name) for term in outside) for name in ("low", "bytes", "high"))
    if settings.kv_cache_bytes:
        low, middle, high = (sum(getattr(term, name) for term in found.terms) for name in ("low", "bytes", "high"))
        cache = settings.kv_cache_bytes
        return low + cache, middle + cache, high + cache
    return found.budget + extra[0], found.budget + extra[1], found.budget + extra[2]


def find_shares(group: Sequence[tuple[Model, Settings]], gpu: Gpu, memo: Memo | None = None) -> list[Shares]:
    """The settings with which the models of `group` fit on one GPU together, the mildest first; [] if nothing helps.

    First as they are, then with a smaller cache, with fewer requests at the same time if the first two don't fit, and
    with quantized weights. Each at the longest context that fits; none that is no longer than a milder one. `memo`:
    what is known already, for calls with the same models.
    """
    memo = memo or Memo()
    found: list[Shares] = []
    best = 0
    # a cache of a fixed size is outside of what the share decides
    fixed = [(Change("without a fixed size of the KV cache", "kv_cache_memory", ""),) if settings.kv_cache_bytes else ()
             for _, settings in group]  # fmt: skip
    group = [(model, replace(settings, kv_cache_bytes=0)) for model, settings in group]
    for number, vary in enumerate((_same, _half_cache, _fewer, _fewer_half_cache, _half_weights, _four_bits)):
        if found and vary in (_fewer, _fewer_half_cache):
            continue
        if (varied := vary(group, gpu, memo)) and (lengths := _find_lengths(varied, gpu, memo)) and sum(lengths) > best:
            own = [_length(model, settings) for model, settings, _ in varied]
            shares = _find_fitting(varied, lengths, gpu, memo)
            if not shares:
                continue
            best = sum(lengths)
            changes = tuple(
                (Change("", "gpu_memory_utilization", f"{share:g}"), *more, *dropped,
                 *((Change("", "max_model_len", str(now)),) if now < before else ()))
                for (_, _, more), dropped, share, before, now in zip(varied, fixed, shares, own, lengths, strict=True)
            )  # fmt: skip
            shortened = -(-max(own) // max(1, min(lengths)))
            found.append(Shares((number, shortened), changes, tuple(model for model, _, _ in varied)))
            if lengths == own:
                break
    return found


def _find_fitting(varied: Varied, lengths: Sequence[int], gpu: Gpu, memo: Memo) -> list[float]:
    """Shares with which the whole group fits, judged as `stackgen fit` will judge them; [] if there are none."""
    smallest = _smallest_shares(varied, lengths, gpu, memo)
    # some memory is outside of the shares: then smaller shares fit
    for shares in (_divide(smallest, gpu), [share or 0.0 for share in smallest]):
        if shares:
            found = [estimate(model, replace(_shortened(model, settings, length), utilization=share), gpu)
                     for (model, settings, _), length, share in zip(varied, lengths, shares, strict=True)]  # fmt: skip
            if judge_together(found).verdict == FITS and all(one.verdict == FITS for one in found):
                return shares
    return []


def _shortened(model: Model, settings: Settings, length: int) -> Settings:
    return settings if length == _length(model, settings) else replace(settings, max_model_len=length)


def _find_lengths(varied: Varied, gpu: Gpu, memo: Memo) -> list[int]:
    """The context length of each model with which all fit; [] if there is none."""
    own = [_length(model, settings) for model, settings, _ in varied]

    def limited(limit: int) -> list[int]:
        # FastChat takes the context length from the model
        return [min(each, limit) if settings.engine != "fastchat" else each
                for each, (_, settings, _) in zip(own, varied, strict=True)]  # fmt: skip

    # if the shortest doesn't fit, no other does
    if not _divide(_smallest_shares(varied, limited(SHORTEST), gpu, memo), gpu):
        return []
    for limit in (max(own), *LENGTHS):
        lengths = limited(limit)
        if not _divide(_smallest_shares(varied, lengths, gpu, memo), gpu):
            continue
        # a small model may have room for more than the large one
        for index in sorted(range(len(varied)), key=lambda index: varied[index][0].weights.total):
            for longer in sorted({own[index], *LENGTHS}, reverse=True):
                if own[index] >= longer > lengths[index]:
                    tried = [longer if other == index else each for other, each in enumerate(lengths)]
                    if _divide(_smallest_shares(varied, tried, gpu, memo), gpu):
                        lengths = tried
                        break
        return lengths
    return []


def _smallest_shares(varied: Varied, lengths: Sequence[int], gpu: Gpu, memo: Memo) -> list[float | None]:
    found = []
    for (model, settings, _), length in zip(varied, lengths, strict=True):
        settings = _shortened(model, settings, length)
        key = id(model), settings, gpu
        if key not in memo.shares:
            memo.shares[key] = _smallest_share(model, settings, gpu)
        found.append(memo.shares[key])
    return found


def _length(model: Model, settings: Settings) -> int:
    return (settings.max_model_len if settings.max_model_len not in (None, -1) else 0) or model.architecture.length


def _same(group: Sequence[tuple[Model, Settings]], _gpu: Gpu, _memo: Memo) -> Varied | None:
    return [(model, settings, ()) for model, settings in group]


def _half_cache(group: Sequence[tuple[Model, Settings]], gpu: Gpu, _memo: Memo) -> Varied | None:
    def can(model: Model, settings: Settings) -> bool:
        known = model.architecture
        has_cache = not known.is_hybrid and not known.is_encoder
        return settings.engine == "vllm" and settings.kv_cache_dtype == "auto" and has_cache

    change = Change("", "kv_cache_dtype", "fp8")
    if not has_fp8(gpu) or not any(can(*one) for one in group):
        return None
    return [(model, replace(settings, kv_cache_dtype="fp8"), (change,)) if can(model, settings) else
            (model, settings, ()) for model, settings in group]  # fmt: skip


def _fewer(group: Sequence[tuple[Model, Settings]], _gpu: Gpu, _memo: Memo) -> Varied | None:
    def can(model: Model, settings: Settings) -> bool:
        # vLLM's defaults are larger
        is_many = settings.max_num_seqs is None or settings.max_num_seqs > FEWER
        return settings.engine == "vllm" and is_many and not model.architecture.is_encoder

    if not any(can(*one) for one in group):
        return None
    change = Change("", "max_num_seqs", str(FEWER))
    return [(model, replace(settings, max_num_seqs=FEWER), (change,)) if can(model, settings) else
            (model, settings, ()) for model, settings in group]  # fmt: skip


def _fewer_half_cache(group: Sequence[tuple[Model, Settings]], gpu: Gpu, memo: Memo) -> Varied | None:
    first = _fewer(group, gpu, memo)
    second = _half_cache([(model, settings) for model, settings, _ in first], gpu, memo) if first else None
    return second and [(model, settings, (*before, *after)) for (_, _, before), (model, settings, after)
                       in zip(first or (), second, strict=True)]  # fmt: skip


def _half_weights(group: Sequence[tuple[Model, Settings]], gpu: Gpu, _memo: Memo) -> Varied | None:
    if not has_fp8(gpu):
        return None
    return _vary_largest(group, lambda model, settings: (
        model, replace(settings, quantization="fp8"), (Change("", "quantization", "fp8"),)))  # fmt: skip


def _four_bits(group: Sequence[tuple[Model, Settings]], _gpu: Gpu, memo: Memo) -> Varied | None:
    def vary(model: Model, settings: Settings) -> tuple[Model, Settings, tuple[Change, ...]]:
        if id(model) not in memo.variants:
            memo.variants[id(model)] = four_bit_variant(model)
        change, small = memo.variants[id(model)]
        return small, settings, (change,)

    return _vary_largest(group, vary)


def _vary_largest(
    group: Sequence[tuple[Model, Settings]],
    vary: Callable[[Model, Settings], tuple[Model, Settings, tuple[Change, ...]]],
) -> Varied | None:
    # the largest model has the most to gain, and the others keep their quality
    largest = max(range(len(group)), key=lambda index: group[index][0].weights.total)
    model, settings = group[largest]
    known = model.architecture
    if settings.engine != "vllm" or settings.quantization or known.quantization or known.is_encoder:
        return None
    return [vary(*one) if index == largest else (*one, ()) for index, one in enumerate(group)]


def _smallest_share(model: Model, settings: Settings, gpu: Gpu) -> float | None:
    """The smallest share of the GPU's memory with which the model fits for certain, in whole percents."""
    try:
        found = estimate(model, settings, gpu)
        percent = -(-found.needed[2] * 100 // gpu.memory)
        if settings.engine != "vllm":
            return percent / 100 if not found.doubts else None
        for each in range(percent, min(percent + STEPS, int(HIGHEST_SUM * 100) + 1)):
            if estimate(model, replace(settings, utilization=each / 100), gpu).verdict == FITS:
                return each / 100
    except StackgenError:
        return None
    return None


def _divide(shares: Sequence[float | None], gpu: Gpu) -> list[float] | None:
    """`shares`, enlarged in proportion until they use all that may be given away; None if they are more than that."""
    known = [round(share * 100) for share in shares if share]
    # each process has a CUDA context outside of its share
    free = int(100 * (1 - len(shares) * CONTEXT * GIB / gpu.memory))
    most = min(round(HIGHEST_SUM * 100), free)
    if len(known) < len(shares) or sum(known) > most:
        return None
    return [share * most // sum(known) / 100 for share in known]
