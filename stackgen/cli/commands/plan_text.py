"""A plan as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from stackgen.placement import Offer, Plan

__all__ = ["offer_lines", "offers_json"]


def offers_json(offers: Sequence[Offer]) -> list[dict[str, Any]]:
    """The changes that make room: their settings, and the GPUs of each replica with them."""
    return [
        {"settings": [{"model": one.index, "name": one.name, "field": one.field, "value": one.value, "text": one.text}
                      for one in offer.settings],
         "models": [{"name": one.demand.name, "replica": one.replica + 1, "gpus": [gpu.uuid for gpu in one.devices],
                     "indices": [gpu.index for gpu in one.devices]} for one in offer.plan.places]}
        for offer in offers
    ]  # fmt: skip


def offer_lines(offers: Sequence[Offer]) -> Iterator[str]:
    """Each change with the places that it leads to."""
    for number, offer in enumerate(offers):
        if not number:
            yield ""
        yield f"{'to make room for all:' if not number else 'or:'}"
        for index in dict.fromkeys(one.index for one in offer.settings):
            own = [one for one in offer.settings if one.index == index]
            text = ", ".join(f"`{one.field}: {one.value}`" if one.value else one.text for one in own)
            yield f"  models[{index}] ({own[0].name}): {text}"
        yield f"  then: {_places(offer.plan)}"


def _places(plan: Plan) -> str:
    return "; ".join(
        f"{one.demand.name}{f' {one.replica + 1}' if one.demand.replicas > 1 else ''} on GPU "
        f"{','.join(str(gpu.index) for gpu in one.devices)}"
        for one in plan.places
    )
