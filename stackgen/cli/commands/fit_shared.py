"""`stackgen fit`: models that share a GPU, judged together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from stackgen.fit import Change, Estimate, Model
from stackgen.fit.estimate import CLOSE, FITS, NOT
from stackgen.fit.gpus import known_gpus
from stackgen.fit.sharing import HIGHEST_SUM, Shared, Shares, find_shares, judge_together
from stackgen.fit.text import mark_of

__all__ = ["Group", "drop_shares", "find_groups", "group_json", "group_lines"]

One = tuple[str, Model, Estimate, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Group:
    """The models that share the GPUs `ids`: the verdict on all of them, and what makes them fit."""

    names: tuple[str, ...]
    ids: tuple[str, ...]
    estimates: tuple[Estimate, ...]
    shared: Shared
    shares: tuple[Shares, ...]

    @property
    def unfit(self) -> list[tuple[str, str]]:
        """The models that don't fit into their own shares, and their verdicts."""
        return [(name, one.verdict) for name, one in zip(self.names, self.estimates, strict=True)
                if one.verdict != FITS]  # fmt: skip

    @property
    def verdict(self) -> str:
        """The worst of the verdicts on all models together and on each of them."""
        found = {self.shared.verdict, *(verdict for _, verdict in self.unfit)}
        return next(one for one in (NOT, CLOSE, FITS) if one in found)


def find_groups(found: Sequence[One]) -> list[Group]:
    """The groups of models that are on the same GPUs. `found`: name, model, estimate, and GPUs of each."""
    users: dict[str, list[int]] = {}
    for number, (_, _, _, ids) in enumerate(found):
        for id in dict.fromkeys(ids):
            users.setdefault(id, []).append(number)
    groups: dict[tuple[int, ...], list[str]] = {}
    for id, numbers in users.items():
        if len(numbers) > 1:
            groups.setdefault(tuple(numbers), []).append(id)
    return [_judge([found[number] for number in numbers], ids) for numbers, ids in groups.items()]


def _judge(members: Sequence[One], ids: Sequence[str]) -> Group:
    estimates = tuple(one[2] for one in members)
    shared = judge_together(estimates)
    group = Group(tuple(one[0] for one in members), tuple(ids), estimates, shared, ())
    if group.verdict == FITS:
        return group
    shares = find_shares([(model, one.given) for _, model, one, _ in members], estimates[0].gpu)
    return replace(group, shares=tuple(shares))


def drop_shares(changes: Sequence[Change], name: str, groups: Sequence[Group]) -> tuple[Change, ...]:
    """`changes` of the model `name` that are possible on a GPU with other models: other models take their shares.

    A larger GPU is none if the whole GPU is enough for the model, and only its share is too small. More GPUs are none:
    with `share_gpus`, the model lists its GPUs, and each is shared.
    """
    if any(name in group.names for group in groups):
        changes = [one for one in changes if one.field != "gpus"]
        (own, *_) = [one for group in groups for one, other in zip(group.estimates, group.names, strict=True)
                     if other == name]  # fmt: skip
        names = {gpu.name for gpu in known_gpus().values()}
        if own.needed[2] <= HIGHEST_SUM * own.gpu.memory:
            changes = [one for one in changes if one.field or one.value not in names]
    others = max((sum(one.settings.share for one, other in zip(group.estimates, group.names, strict=True)
                      if other != name) for group in groups if name in group.names), default=0.0)  # fmt: skip
    return tuple(one for one in changes if one.field != "gpu_memory_utilization"
                 or not others or round(float(one.value) + others, 4) <= HIGHEST_SUM)  # fmt: skip


def group_json(group: Group) -> dict[str, Any]:
    """The object of a group in `stackgen fit --json`. Sizes are bytes."""
    return {
        "gpus": list(group.ids), "models": list(group.names), "verdict": group.verdict,
        "reason": group.shared.reason, "taken": dict(zip(("low", "expected", "high"), group.shared.taken, strict=True)),
        "changes": [{name: [asdict(one) for one in changes] for name, changes in zip(group.names, each.changes,
                                                                                    strict=True)}
                    for each in group.shares],
    }  # fmt: skip


def group_lines(group: Group, color: bool = False) -> Iterator[str]:
    """The verdict on all models of the group, and the settings with which they fit."""
    where, names = f"GPU {','.join(group.ids)} ({group.estimates[0].gpu.name})", " and ".join(group.names)
    text = f"{names} fit together on {where}" if group.verdict == FITS else f"{names} together on {where}: "
    if group.shared.verdict != FITS:
        text += group.shared.verdict
    elif group.unfit:
        own = ", ".join(f"{name} ({verdict})" for name, verdict in group.unfit)
        text += f"the shares fit on the GPU together, but not every model fits into its own share: {own}"
    yield f"{mark_of(group.verdict, color)} {text}"
    yield f"  {group.shared.reason}"
    fastchat = [name for name, one in zip(group.names, group.estimates, strict=True)
                if one.settings.engine == "fastchat" and one.verdict != FITS]  # fmt: skip
    if fastchat and not group.shares:
        yield (f"  FastChat limits neither its memory nor the context. Serve {' and '.join(fastchat)} with "
               "vLLM, or each on a GPU of its own")  # fmt: skip
    for number, shares in enumerate(group.shares):
        yield f"  {'to make them fit:' if not number else 'or:'}"
        for name, changes in zip(group.names, shares.changes, strict=True):
            yield f"    {name}: " + ", ".join(
                f"`{one.field}: {one.value}`" if one.value else one.text for one in changes
            )
