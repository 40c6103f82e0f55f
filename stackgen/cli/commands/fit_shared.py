"""`stackgen fit`: models that share a GPU, judged together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stackgen.fit import Change, Estimate, Model
from stackgen.fit.estimate import FITS
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
    fits = shared.verdict == FITS and all(one.verdict == FITS for one in estimates)
    shares = [] if fits else find_shares([(model, one.settings) for _, model, one, _ in members], estimates[0].gpu)
    return Group(tuple(one[0] for one in members), tuple(ids), estimates, shared, tuple(shares))


def drop_shares(changes: Sequence[Change], name: str, groups: Sequence[Group]) -> tuple[Change, ...]:
    """`changes` of the model `name` without shares of the memory that the others on its GPU leave no room for."""
    others = max((sum(one.settings.share for one, other in zip(group.estimates, group.names, strict=True)
                      if other != name) for group in groups if name in group.names), default=0.0)  # fmt: skip
    return tuple(one for one in changes if one.field != "gpu_memory_utilization"
                 or not others or round(float(one.value) + others, 4) <= HIGHEST_SUM)  # fmt: skip


def group_json(group: Group) -> dict[str, Any]:
    """The object of a group in `stackgen fit --json`. Sizes are bytes."""
    return {
        "gpus": list(group.ids), "models": list(group.names), "verdict": group.shared.verdict,
        "reason": group.shared.reason, "taken": dict(zip(("low", "expected", "high"), group.shared.taken, strict=True)),
        "changes": [{name: [asdict(one) for one in changes] for name, changes in zip(group.names, each.changes,
                                                                                    strict=True)}
                    for each in group.shares],
    }  # fmt: skip


def group_lines(group: Group, color: bool = False) -> Iterator[str]:
    """The verdict on all models of the group, and the settings with which they fit."""
    verdict, where = group.shared.verdict, f"GPU {','.join(group.ids)} ({group.estimates[0].gpu.name})"
    names = " and ".join(group.names)
    text = f"{names} fit together on {where}" if verdict == FITS else f"{names} together on {where}: {verdict}"
    if verdict == FITS and any(one.verdict != FITS for one in group.estimates):
        text = f"the shares of {names} fit together on {where}, but at least one model does not fit into its own share"
    yield f"{mark_of(verdict, color)} {text}"
    yield f"  {group.shared.reason}"
    for number, shares in enumerate(group.shares):
        yield f"  {'to make them fit:' if not number else 'or:'}"
        for name, changes in zip(group.names, shares.changes, strict=True):
            yield f"    {name}: " + ", ".join(
                f"`{one.field}: {one.value}`" if one.value else one.text for one in changes
            )
