"""Finds changes that make room for all models if a plan has no room. It tests each change, and lists only what works.

Two kinds: a change of one model (a shorter context, a smaller cache, a quantized variant), and models that share GPUs,
each with a share of their memory and the context that fits into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

from stackgen.errors import StackgenError
from stackgen.fit import Change, Gpu, Model, estimate
from stackgen.fit.changes import find_options
from stackgen.fit.sharing import Memo, Shares, find_shares
from stackgen.placement.demand import Demand, find_counts, find_demand, settings_of
from stackgen.placement.machine import Device
from stackgen.placement.pack import Key
from stackgen.placement.planner import Plan, plan_places

__all__ = ["Candidate", "Offer", "Setting", "find_offers"]

# more combinations than this take too long, and a list of all of them helps nobody
MOST_MODELS, MOST_OFFERS, LARGEST_GROUP, MOST_FOR_LARGE_GROUPS = 12, 6, 3, 6
# changes of one model, the mildest first
FIELDS = ("gpu_memory_utilization", "max_num_seqs", "worker_concurrency", "kv_cache_dtype", "max_model_len",
          "extra_args", "quantization", "load_8bit", "model")  # fmt: skip
# how a field of the stack file is read; all others are text
VALUES: dict[str, Callable[[str], Any]] = {
    "gpu_memory_utilization": float, "max_num_seqs": int, "worker_concurrency": int, "load_8bit": bool,
    "share_gpus": bool,
}  # fmt: skip

# of one more model, besides a shared GPU
MILD = ("gpu_memory_utilization", "max_num_seqs", "max_model_len")
SHARE = Change("", "share_gpus", "true")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model with `gpus: auto` and what is known of it. `counts`: numbers of GPUs that are recorded."""

    index: int
    name: str
    spec: Any
    model: Model
    counts: frozenset[int] = frozenset()

    def demand(self, kinds: Sequence[Gpu]) -> Demand:
        return find_demand(self.index, self.name, self.spec, self.model, kinds, self.counts)


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of `models[index]` and its value in stack.yaml. `text`: what it means; "" if the field says it."""

    index: int
    name: str
    field: str
    value: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """Settings with which all models have room, and the plan with them."""

    settings: tuple[Setting, ...]
    plan: Plan


def find_offers(
    candidates: Sequence[Candidate],
    found: Plan,
    kept: Mapping[Key, tuple[Device, ...]],
) -> tuple[Offer, ...]:
    """The smallest sets of changes with which all of `candidates` have room; () if `found` has room for all."""
    if found.is_complete or len(candidates) > MOST_MODELS:
        return ()
    search = _Search(candidates, found, kept)
    offers = list(search.change_one()) or list(search.change_several())
    # another model or its quality is a larger change than a field
    return tuple([*offers, *search.share(only_fields=bool(offers))][:MOST_OFFERS])


class _Search:
    def __init__(self, candidates: Sequence[Candidate], found: Plan, kept: Mapping[Key, tuple[Device, ...]]) -> None:
        self.missing = missing = {place.demand.index for place in found.places if not place.devices}
        # the models without room first: their change concerns nobody else
        self.candidates = sorted(candidates, key=lambda one: (one.index not in missing, one.index))
        self.found, self.kept = found, kept
        self.kinds = list(dict.fromkeys(one.gpu for one in found.devices))
        self.free = Counter(one.gpu for one in found.devices if one.uuid not in found.blocked)
        self.memo = Memo()
        # without a change of their own, these have no place on any GPU
        self.hopeless = {place.demand.index for place in found.places if not place.demand.options}
        self.demands = {place.demand.index: place.demand for place in found.places}

    def place(self, changed: Iterable[Candidate]) -> Plan | None:
        """The plan with `changed` instead of the models of the same index; None without room for all."""
        demands = self.demands | {one.index: one.demand(self.kinds) for one in changed}
        plan = plan_places([demands[index] for index in sorted(demands)], self.found.devices, self.kept,
                           self.found.blocked)  # fmt: skip
        return plan if plan.is_complete else None

    def change_one(self) -> Iterator[Offer]:
        for one in self.candidates:
            if not self.hopeless <= {one.index}:
                continue
            done: set[str] = set()
            for setting, changed in self._changes(one):
                # the mildest value of a field is enough
                if setting.field not in done and (plan := self.place([changed])):
                    done.add(setting.field)
                    yield Offer((setting,), plan)

    def change_several(self) -> Iterator[Offer]:
        """The same change of several models, if one model's is not enough; without those that need none."""
        options: dict[int, dict[str, list[tuple[Setting, Candidate]]]] = {one.index: {} for one in self.candidates}
        for one in self.candidates:
            for setting, changed in self._changes(one):
                options[one.index].setdefault(setting.field, []).append((setting, changed))
        for field in FIELDS:
            # the strongest value of each model, which leaves the most room
            chosen = {index: fields[field][-1] for index, fields in options.items() if field in fields}
            if not chosen or not self.place(one for _, one in chosen.values()):
                continue
            for index in sorted(chosen, reverse=True):
                fewer = {key: one for key, one in chosen.items() if key != index}
                if self.place(one for _, one in fewer.values()):
                    chosen = fewer
            if plan := self.place(one for _, one in chosen.values()):
                yield Offer(tuple(chosen[index][0] for index in sorted(chosen)), plan)

    def share(self, only_fields: bool) -> Iterator[Offer]:
        """Models that share GPUs, at the longest context with which all of them fit into their shares.

        With `only_fields`, without quantized weights.
        """
        largest = LARGEST_GROUP if len(self.candidates) <= MOST_FOR_LARGE_GROUPS else 2
        sizes = range(2, min(largest, len(self.candidates)) + 1)
        # those that share already have shares that their owner chose, so new shares are the last resort
        for may_share, size in product((False, True), sizes):
            groups = [sorted(group, key=lambda one: one.index) for group in combinations(self.candidates, size)
                      if may_share or not any(one.spec.share_gpus for one in group)]  # fmt: skip
            offers = [offer for group in groups for offer in self._share(group, only_fields)]
            if offers:
                # the mildest change first, and of a kind of change the longest contexts
                yield from (offer for _, offer in sorted(offers, key=lambda one: one[0]))
                return

    def _share(self, group: Sequence[Candidate], only_fields: bool) -> Iterator[tuple[tuple[int, int], Offer]]:
        found: list[tuple[tuple[int, int], int, Shares]] = []
        for kind, counts in self._places(group):
            with suppress(StackgenError):
                every = find_shares([(one.model, settings_of(one.spec, count))
                                     for one, count in zip(group, counts, strict=True)], kind, self.memo)  # fmt: skip
                found += [(one.rank, sum(counts), one) for one in every if not (only_fields and one.is_quantized)]
        done: set[int] = set()
        for rank, _, shares in sorted(found, key=lambda one: one[:2]):
            # the mildest of a kind of change is enough
            if rank[0] in done:
                continue
            pairs = [_apply_all(one, (*([] if one.spec.share_gpus else [SHARE]), *changes), model)
                     for one, changes, model in zip(group, shares.changes, shares.models, strict=True)]  # fmt: skip
            more, plan = self._place_rest([changed for _, changed in pairs])
            if plan:
                done.add(rank[0])
                rank = rank[0], max(rank[1], *(_shortening(self.candidates, one) for one in more), 1)
                yield rank, Offer((*(setting for settings, _ in pairs for setting in settings), *more), plan)

    def _place_rest(self, changed: list[Candidate]) -> tuple[tuple[Setting, ...], Plan | None]:
        """The plan with `changed`, and with a milder field of one other model if they are not enough."""
        indices = {one.index for one in changed}
        if self.hopeless <= indices and (plan := self.place(changed)):
            return (), plan
        for other in (one for one in self.candidates if one.index in self.missing - indices):
            for setting, one in self._changes(other) if self.hopeless <= {*indices, other.index} else ():
                if setting.field in MILD and (plan := self.place([*changed, one])):
                    return (setting,), plan
        return (), None

    def _places(self, group: Sequence[Candidate]) -> Iterator[tuple[Gpu, tuple[int, ...]]]:
        """Kinds of GPUs, and how many of them each model of `group` takes."""
        for kind, most in self.free.items():
            counts = [self._counts(one, kind, most) for one in group]
            yield from ((kind, each) for each in product(*counts))

    def _counts(self, one: Candidate, kind: Gpu, most: int) -> list[int]:
        """The fewest GPUs, and those on which the model fits alone, or else the most that there are."""
        possible = [count for count in find_counts(one.spec) if count <= most]
        fitting = [option.count for option in self.demands[one.index].options
                   if option.gpu == kind and option.count <= most]  # fmt: skip
        return sorted({*possible[:1], *fitting[:1], *(possible[-1:] if not fitting else ())} & set(possible))

    def _changes(self, one: Candidate) -> list[tuple[Setting, Candidate]]:
        found: dict[tuple[str, str], tuple[Setting, Candidate]] = {}
        for gpu, count in self.demands[one.index].refused:
            if count > self.free[gpu]:
                continue
            try:
                estimated = estimate(one.model, settings_of(one.spec, count), gpu)
            except StackgenError:
                continue
            for change, model, _ in find_options(estimated, one.model):
                if change.field in FIELDS and (change.field, change.value) not in found:
                    found[change.field, change.value] = _apply(one, change, model)
        return sorted(found.values(), key=lambda each: (FIELDS.index(each[0].field), _mildness(each[0])))


def _shortening(candidates: Sequence[Candidate], setting: Setting) -> int:
    """By which factor `setting` shortens the context of its model, rounded up; 1 if it does not."""
    if setting.field != "max_model_len":
        return 1
    one = next(each for each in candidates if each.index == setting.index)
    before = settings_of(one.spec, 1).max_model_len
    return -(-(before if before and before > 0 else one.model.architecture.length) // int(setting.value))


def _mildness(setting: Setting) -> float:
    # the longest context, the most requests, and the smallest share of the memory
    number = float(setting.value) if setting.value.replace(".", "", 1).isdigit() else 0.0
    return number if setting.field == "gpu_memory_utilization" else -number


def _apply_all(one: Candidate, changes: Iterable[Change], model: Model) -> tuple[list[Setting], Candidate]:
    settings = []
    for change in changes:
        setting, one = _apply(one, change, model)
        settings.append(setting)
    return settings, one


def _apply(one: Candidate, change: Change, model: Model) -> tuple[Setting, Candidate]:
    if change.field == "model":
        return Setting(one.index, one.name, "model", "", change.text), replace(one, model=model)
    value, shown = VALUES.get(change.field, str)(change.value), change.value
    if change.field == "extra_args":
        value = (*one.spec.extra_args, "--cache-type-k", change.value, "--cache-type-v", change.value)
        shown = f"[{', '.join(value)}]"
    text = "" if change.value else change.text
    return Setting(one.index, one.name, change.field, shown, text), replace(
        one, spec=one.spec.model_copy(update={change.field: value})
    )
