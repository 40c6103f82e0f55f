"""Equal models become replicas of one model, and models on the same GPU share it."""

from __future__ import annotations

from typing import Any

from stackgen.importing.addresses import Address
from stackgen.importing.ledger import Draft, Ledger

__all__ = ["merge_replicas", "share_gpus"]

# fields in which copies of a model differ
OWN = {"gpus", "labels"}


def merge_replicas(drafts: list[Draft], addresses: dict[int, Address], ledger: Ledger) -> None:
    """Merges models that differ only in their GPUs, and that serve the same names."""
    for draft in list(drafts):
        first = next((one for one in drafts if one is not draft and _same(one, draft)), None)
        if first is None or drafts.index(first) > drafts.index(draft):
            continue
        gpus = _join(first.fields.get("gpus"), draft.fields.get("gpus"))
        if gpus is None:
            continue
        first.fields["gpus"] = gpus
        first.fields["replicas"] = int(first.fields.get("replicas", 1)) + int(draft.fields.get("replicas", 1))
        first.also.append(draft.source)
        for item in ledger.items:
            if item.draft is draft:
                item.draft = first
        for item in addresses.get(id(draft), Address()).items:
            item.drop("the gateway answers for all replicas, and chooses the least busy one")
        addresses.pop(id(draft), None)
        drafts.remove(draft)


def _same(one: Draft, other: Draft) -> bool:
    def content(draft: Draft) -> dict[str, Any]:
        return {name: value for name, value in draft.fields.items() if name not in OWN and name != "replicas"}

    return one.engine == other.engine and content(one) == content(other)


def _join(one: Any, other: Any) -> Any:
    """The GPUs of all replicas: a list is divided among them, and a count is for each; None if they don't fit."""
    if isinstance(one, list) and isinstance(other, list):
        return [*one, *other] if not set(map(str, one)) & set(map(str, other)) and len(other) else None
    return one if one == other and not isinstance(one, list) and one != "all" else None


def _share_first(drafts: list[Draft], ledger: Ledger) -> None:
    """Models without indices run on the same first GPUs: meant if their fractions of memory fit together."""
    counted = [one for one in drafts if isinstance(one.fields.get("gpus"), int)]
    parts = [one.fields.get("gpu_memory_utilization") for one in counted]
    sizes = {one.fields["gpus"] for one in counted}
    listed = any(isinstance(one.fields.get("gpus"), list) for one in drafts)
    if len(counted) < 2 or len(sizes) > 1 or listed:
        return
    known = [part for part in parts if isinstance(part, float)]
    if len(known) == len(parts) and sum(known) <= 1:
        for draft in counted:
            draft.fields["gpus"] = list(range(int(draft.fields["gpus"])))
            draft.fields["share_gpus"] = True
        ledger.warn(
            "gpus",
            "all models share the same GPUs, as in the source: the sum of their `gpu_memory_utilization` is at most 1",
        )


def share_gpus(drafts: list[Draft], ledger: Ledger, *, scheduled: bool = False) -> None:
    """Models that reserve the same GPU: the field `share_gpus`, and a warning.

    `scheduled`: the source's scheduler gives each model GPUs of its own, as Kubernetes does and Docker does not.
    """
    if scheduled:
        return
    for index, draft in enumerate(drafts):
        for other in drafts[:index]:
            mine, theirs = draft.fields.get("gpus"), other.fields.get("gpus")
            if not isinstance(mine, list) or not isinstance(theirs, list):
                continue
            if common := set(map(str, mine)) & set(map(str, theirs)):
                listed = ", ".join(sorted(common))
                ledger.warn(draft.source or "gpus", f"GPU {listed} is used twice: by "
                    f"{other.source or other.fields['model']} and {draft.source or draft.fields['model']}. The sum "
                    "of their `gpu_memory_utilization` must not exceed 1")  # fmt: skip
                for one in (draft, other):
                    one.fields["share_gpus"] = True
                    # vLLM's default of the versions that most sources use
                    if one.engine == "vllm":
                        one.fields.setdefault("gpu_memory_utilization", 0.9)
    _share_first(drafts, ledger)
    counted = [one for one in drafts if isinstance(one.fields.get("gpus"), int)]
    if len(counted) > 1 and not any(isinstance(one.fields.get("gpus"), list) for one in drafts):
        ledger.warn("gpus", "several services reserve a number of GPUs (`count`), and Docker gives the same first "
        "GPUs to all of them. stackgen gives each model its own GPUs")  # fmt: skip
