"""A plan as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from stackgen.cli.commands.table import format_table
from stackgen.placement import Offer, Plan

__all__ = ["offer_lines", "offers_json", "to_json", "to_lines"]


def to_json(found: Plan) -> dict[str, Any]:
    """The places and the GPUs with their models."""
    held = {one.uuid for one in found.devices if one.held or one.wanted}
    users: dict[str, list[str]] = {uuid: [name] for uuid, name in found.blocked.items() if uuid not in held}
    for place in found.places:
        for gpu in place.devices:
            users.setdefault(gpu.uuid, []).append(f"{place.demand.name} {place.replica + 1}")
    gpus = [{"host": one.host, "index": one.index, "uuid": one.uuid, "name": one.gpu.name, "memory": one.gpu.memory,
             "island": one.island, "held": one.held, "models": users.get(one.uuid, [])}
            for one in found.devices]  # fmt: skip
    models = [{"name": one.demand.name, "replica": one.replica + 1, "gpus": [gpu.uuid for gpu in one.devices],
               "indices": [gpu.index for gpu in one.devices],
               "host": one.devices[0].host if one.devices else "", "share": one.demand.share, "kept": one.is_kept,
               "why": one.why, "not_elsewhere": list(one.others)} for one in found.places]  # fmt: skip
    return {"models": models, "gpus": gpus}


def to_lines(found: Plan) -> Iterator[str]:
    """The places, why not elsewhere, and the GPUs that are free."""
    has_hosts = any(one.host for one in found.devices)
    rows = [(one.demand.name, str(one.replica + 1), *((one.devices[0].host if one.devices else "-",) * has_hosts),
             ",".join(str(gpu.index) for gpu in one.devices) or "-",
             one.devices[0].gpu.name if one.devices else "-", one.why) for one in found.places]  # fmt: skip
    yield from format_table(("MODEL", "REPLICA", *(("HOST",) * has_hosts), "GPUS", "KIND", "WHY THERE"), rows)
    yield from _count_lines(found)
    # the replicas of a model have the same reasons, unless one of them has no room
    reasons = dict.fromkeys(
        (one.demand.name if one.devices else f"{one.demand.name} {one.replica + 1}", text)
        for one in found.places for text in one.others
    )  # fmt: skip
    if reasons:
        yield ""
        yield from format_table(("MODEL", "WHY NOT ELSEWHERE"), list(reasons))
    taken = [f"  {one.label} ({one.gpu.name}): used by {one.held}" for one in found.devices if one.held]
    taken += [f"  {one.label} ({one.gpu.name}): listed by {one.wanted}" for one in found.devices
              if one.wanted and not one.held and one.uuid in found.blocked]  # fmt: skip
    if taken:
        yield ""
        yield "not available:"
        yield from taken
    chosen = {gpu.uuid for one in found.places for gpu in one.devices}
    for one in found.devices:
        if one.wanted and one.uuid in chosen:
            yield f"{one.label} is also in the plan of {one.wanted}: start only one of these stacks"
    used = {gpu.uuid for one in found.places for gpu in one.devices} | set(found.blocked)
    if free := [f"{one.label} ({one.gpu.name})" for one in found.devices if one.uuid not in used]:
        yield ""
        yield f"free: {', '.join(free)}"


def _count_lines(found: Plan) -> Iterator[str]:
    """The number of GPUs that the stack uses on each machine."""
    chosen = {gpu.uuid for one in found.places for gpu in one.devices}
    for host in dict.fromkeys(one.host for one in found.devices):
        own = [one for one in found.devices if one.host == host]
        used = sorted({one.index for one in own if one.uuid in chosen})
        where = f" on {host}" if host else ""
        of = f"{len(used)} of {len(own)} GPU{'s' if len(own) > 1 else ''}{where}"
        yield f"the stack uses {of}" + (f": {_ranges(used)}" if used else "")


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as text, for example `0-5,7`."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ",".join(str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in groups)


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
        f"{','.join(str(gpu.index) for gpu in one.devices)}{f' of {host}' if (host := one.devices[0].host) else ''}"
        for one in plan.places
    )
