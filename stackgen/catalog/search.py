"""Search in the catalog: words, task, size, context, hardware, and the memory of GPUs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from stackgen.catalog.entry import Entry, Snapshot, Variant
from stackgen.catalog.flags import why_not
from stackgen.catalog.lookup import find_parser, own_variant
from stackgen.catalog.sizes import count_weight_bytes, parameter_count
from stackgen.errors import StackgenError
from stackgen.spec.types import guess_parameters

__all__ = [
    "Budget", "Found", "Query", "find_hardware", "fits", "hardware_names", "memory_floor", "search", "suggest_names",
    "variant_size", "weight_bytes",
]  # fmt: skip

GB = 10**9
# vLLM 0.32.0 uses this share of each GPU (--gpu-memory-utilization)
SHARE = 0.92
# the recipes' own rule (CLAUDE.md, "Precision constraints"): kernels for FP4 weights need Blackwell
FIRST_COMPUTE = {"nvfp4": 10.0, "fp4": 10.0}


@dataclass(frozen=True, slots=True)
class Budget:
    """GPUs to fit a model on. `memory`: bytes of one GPU. `compute`: its compute capability, "" if unknown."""

    memory: int
    count: int = 1
    compute: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """What a model must have; None and empty: anything. Sizes in parameters, `context` in tokens.

    `hardware`: a key of the snapshot's hardware on which a recipe was verified.
    """

    words: tuple[str, ...] = ()
    task: str = ""
    tools: bool = False
    reasoning: bool = False
    smallest: float | None = None
    largest: float | None = None
    context: int | None = None
    hardware: str = ""
    budget: Budget | None = None
    servable: bool = True


@dataclass(frozen=True, slots=True)
class Found:
    """A model that matches, and its variant: the model's own, or with a budget, the largest that may fit."""

    entry: Entry
    variant: Variant


def variant_size(entry: Entry, variant: Variant) -> str | None:
    """The number of parameters of the variant, such as `4B`: a variant can be another model of the family."""
    own, base = guess_parameters(variant.model), guess_parameters(entry.model)
    if own and base and own != base:
        return f"{own / 10**9:g}B" if own >= 10**9 else f"{own / 10**6:g}M"
    return entry.parameters


def memory_floor(entry: Entry, variant: Variant) -> int:
    """Bytes that the variant needs at least: the recipe's figure, or its weights alone if these are larger.

    The context is not in it, so more memory than this does not mean that the model fits.
    """
    return max(variant.vram_gb * GB, weight_bytes(entry, variant))


def weight_bytes(entry: Entry, variant: Variant) -> int:
    """Bytes of the weights, from the number of parameters and the precision that the recipe names; 0 if unknown."""
    return count_weight_bytes(entry.model, entry.parameters, variant.model, variant.precision)


def fits(entry: Entry, variant: Variant, budget: Budget) -> bool:
    """Whether nothing that the catalog knows says that the variant does not fit."""
    first = FIRST_COMPUTE.get(variant.precision)
    number = re.fullmatch(r"\d+\.\d+", budget.compute)
    # AMD's names, such as gfx942, are no numbers: the recipes with these formats name NVIDIA GPUs only
    if first and not variant.hardware and budget.compute and not (number and float(number[0]) >= first):
        return False
    return memory_floor(entry, variant) <= budget.memory * budget.count * SHARE


def search(snapshot: Snapshot, query: Query) -> list[Found]:
    """The models that match, the smallest first."""
    found = [Found(entry, variant) for entry in snapshot.models if _matches(entry, query)
             for variant in _choose(entry, query) if _has_size(variant_size(entry, variant), query)]  # fmt: skip
    return sorted(
        found, key=lambda one: (parameter_count(variant_size(one.entry, one.variant)) or 0, one.entry.model.lower())
    )


def _choose(entry: Entry, query: Query) -> Iterator[Variant]:
    # a word that is not about the model, such as `int4`, is about the variant
    words = [word.lower() for word in query.words if word.lower() not in _own_text(entry)]
    named = [one for one in entry.variants if all(word in _variant_text(one) for word in words)]
    variants = sorted(named, key=lambda one: memory_floor(entry, one))
    if query.budget is None:
        yield from variants[-1:] if words else [own_variant(entry)]
    # more bits are more exact
    elif able := [one for one in variants if fits(entry, one, query.budget)]:
        yield able[-1]


def _matches(entry: Entry, query: Query) -> bool:
    if query.servable and all(why_not(entry, one) for one in entry.variants):
        return False
    if not all(word.lower() in text for text in (_text(entry),) for word in query.words):
        return False
    if query.tools and not find_parser("tool_call_parser", entry.model):
        return False
    if query.reasoning and not find_parser("reasoning_parser", entry.model):
        return False
    # an unknown context matches no limit
    if query.context is not None and (entry.context or 0) < query.context:
        return False
    return (not query.task or query.task in entry.tasks) and (not query.hardware or query.hardware in entry.verified)


def _has_size(text: str | None, query: Query) -> bool:
    size = parameter_count(text)
    # an unknown size matches no limit
    if size is None:
        return query.smallest is None and query.largest is None
    return size >= (query.smallest or 0) and (query.largest is None or size <= query.largest)


def _text(entry: Entry) -> str:
    return " ".join((_own_text(entry), *map(_variant_text, entry.variants)))


def _own_text(entry: Entry) -> str:
    return " ".join((entry.model, entry.provider, *entry.tasks, entry.architecture, entry.parameters or "")).lower()


def _variant_text(variant: Variant) -> str:
    return f"{variant.model} {variant.precision}".lower()


def hardware_names(snapshot: Snapshot) -> dict[str, str]:
    """The keys of hardware that recipes were verified on -> the name for people."""
    keys = sorted({key for entry in snapshot.models for key in entry.verified})
    known = {key: snapshot.hardware[key] for key in keys if key in snapshot.hardware}
    shared = Counter(one.name for one in known.values())
    # two RTX 5090 have the name of one of them
    names = {key: f"{one.name} {one.gpus}x" if shared[one.name] > 1 and one.gpus > 1 else one.name
             for key, one in known.items()}  # fmt: skip
    return {key: names.get(key, key.upper()) for key in keys}


def find_hardware(snapshot: Snapshot, name: str) -> str:
    """The key of the hardware that a user calls `name`. Raises StackgenError with similar names."""
    names = hardware_names(snapshot)
    plain = {_plain(text): key for key, title in names.items() for text in (title, key)}
    if (key := plain.get(_plain(name))) is not None:
        return key
    close = [names[plain[one]] for one in get_close_matches(_plain(name), plain, 3, 0.5)]
    known = ", ".join(dict.fromkeys(close or names.values()))
    what = "similar" if close else "known"
    raise StackgenError(f"--hardware: no recipe was verified on {name!r}", f"{what}: {known}")


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def suggest_names(snapshot: Snapshot, name: str) -> list[str]:
    """Repositories of the catalog that are similar to `name`, the most similar first."""
    known = {one.lower(): one for entry in snapshot.models for one in _repositories(entry)}
    short = {lower.rpartition("/")[2]: one for lower, one in known.items()}
    wanted = name.lower()
    close = get_close_matches(wanted, known, 3, 0.6) if "/" in wanted else []
    close_short = get_close_matches(wanted.rpartition("/")[2], short, 3, 0.6)
    begins = [one for lower, one in short.items() if wanted and lower.startswith(wanted)]
    return list(dict.fromkeys([*begins[:3], *(known[one] for one in close), *(short[one] for one in close_short)]))[:3]


def _repositories(entry: Entry) -> Iterable[str]:
    return (entry.model, *(one.model for one in entry.variants))
