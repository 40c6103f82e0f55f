"""`stackgen fit` of a stack whose models with `gpus: auto` have no recorded GPUs: it places them for the estimate."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stackgen.cli.commands.output import note
from stackgen.cli.commands.plan_choice import choose, find_candidates, require_placeable
from stackgen.cli.commands.plan_machine import read_this_machine
from stackgen.cli.commands.plan_text import offer_lines
from stackgen.errors import SpecError, StackgenError
from stackgen.fit import Gpu, estimate
from stackgen.placement import Candidate, Device, Plan
from stackgen.placement.demand import find_counts, settings_of
from stackgen.stack.folder import Stack, find_stack_file, open_stack
from stackgen.stack.load import apply_placement, parse_stack, read_text
from stackgen.stack.placement_file import read_placement

__all__ = ["Placed", "open_placed"]

# of a machine that is only named by `--gpu`: as many as the largest replica may need
MOST_EACH, MOST = 8, 1024


@dataclass(frozen=True, slots=True)
class Placed:
    """A stack whose models all have GPUs. `kinds`: of the GPUs that were chosen now, by UUID.

    `missing`: names of models without room, which got GPUs that no machine has. `offers`: what makes room, as text.
    """

    stack: Stack
    kinds: dict[str, Gpu]
    missing: tuple[str, ...] = ()
    offers: tuple[str, ...] = ()


def open_placed(args: Namespace, named: Callable[[], Gpu] | None) -> Placed:
    """The stack of `args`. `named` is the GPU that the arguments name; None: the GPUs of this machine count."""
    path = find_stack_file(args.stack) or Path(args.stack) / "stack.yaml"
    text = read_text(path)
    spec = parse_stack(text, str(path))
    if not any(model.gpus == "auto" for model in spec.models) or spec.target == "kubernetes":
        return Placed(open_stack(args.stack), {})
    try:
        # a record that has become wrong counts as none
        if not any(model.gpus == "auto" for model in apply_placement(spec, path, text).models):
            return Placed(open_stack(args.stack), {})
    except SpecError:
        pass
    require_placeable(spec, text, path)
    note("`stackgen plan` has not chosen the GPUs yet, so they are chosen for this estimate only")
    try:
        recorded = read_placement(path.parent)
    except SpecError:
        recorded = {}
    candidates = find_candidates(spec, path.parent, args.offline, recorded)
    devices = _make_devices(named(), candidates) if named else read_this_machine()
    found, offers = choose(spec, candidates, devices, recorded)
    gpus, kinds, missing = _to_gpus(found, candidates, devices)
    stack = open_stack(args.stack, place=lambda spec: spec.model_copy(update={"models": tuple(
        model.model_copy(update={"gpus": gpus[index]}) if index in gpus else model
        for index, model in enumerate(spec.models))}))  # fmt: skip
    return Placed(stack, kinds, missing, tuple(offer_lines(offers)))


def _make_devices(gpu: Gpu, candidates: Sequence[Candidate]) -> tuple[Device, ...]:
    count = min(MOST, MOST_EACH * sum(one.spec.replicas for one in candidates))
    return tuple(Device(number, f"GPU-{number}", gpu, "") for number in range(count))


def _to_gpus(
    found: Plan, candidates: Sequence[Candidate], devices: Sequence[Device]
) -> tuple[dict[int, tuple[str, ...]], dict[str, Gpu], tuple[str, ...]]:
    """UUIDs by model, the kinds of GPUs, and the models without room."""
    gpus: dict[int, tuple[str, ...]] = {}
    kinds = {one.uuid: one.gpu for one in devices}
    missing = []
    for one in candidates:
        places = [place for place in found.places if place.demand.index == one.index]
        if all(place.devices for place in places):
            gpus[one.index] = tuple(gpu.uuid for place in places for gpu in place.devices)
            continue
        missing.append(one.name)
        kind, count = _closest(one, devices)
        gpus[one.index] = tuple(f"GPU-none-{one.index}-{number}" for number in range(count * one.spec.replicas))
        kinds |= dict.fromkeys(gpus[one.index], kind)
    return gpus, kinds, tuple(missing)


def _closest(one: Candidate, devices: Sequence[Device]) -> tuple[Gpu, int]:
    """The kind and number of GPUs for a model without room: those with which it fits, else the most."""
    kinds = list(dict.fromkeys(each.gpu for each in devices))
    if options := one.demand(kinds).options:
        return options[0].gpu, options[0].count
    largest = max(kinds, key=lambda gpu: gpu.memory)
    for count in reversed(find_counts(one.spec)):
        try:
            estimate(one.model, settings_of(one.spec, count), largest)
        except StackgenError:
            # the heads can't be divided by this number
            continue
        if count <= sum(each.gpu == largest for each in devices):
            return largest, count
    return largest, 1
