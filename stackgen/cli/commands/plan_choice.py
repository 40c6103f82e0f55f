"""Chooses GPUs for the models of a stack with `gpus: auto`, for `plan`, and for `fit` before a choice is recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stackgen.cli.commands.fit_models import find_model, make_hub
from stackgen.engines.base import served_names
from stackgen.errors import Mistake, SpecError, StackgenError
from stackgen.placement import Candidate, Demand, Device, Offer, Plan, find_offers, plan_places
from stackgen.placement.demand import find_mistakes
from stackgen.resolve.host_mistakes import hosts_of
from stackgen.spec import StackSpec
from stackgen.stack.load import locate
from stackgen.stack.placement_file import Recorded, RecordedGpu

__all__ = ["choose", "find_candidates", "require_placeable", "to_recorded"]


def require_placeable(spec: StackSpec, text: str, path: Path) -> None:
    """Raises StackgenError if no GPUs can be chosen for `spec`, the stack in the file `path` with `text`."""
    if mistakes := list(_find_mistakes(spec)):
        raise locate(SpecError(str(path), mistakes), text, str(path))


def _find_mistakes(spec: StackSpec) -> Iterator[Mistake]:
    if spec.target == "kubernetes":
        raise StackgenError("a cluster chooses the GPUs of its pods itself", "set a count, for example `gpus: 1`")
    automatic = [index for index, model in enumerate(spec.models) if model.gpus == "auto"]
    if not automatic:
        raise StackgenError("no model has `gpus: auto`, so there is nothing to choose", "set `gpus: auto` for a model")
    drivers: dict[str, str] = {"gpu_driver": spec.gpu_driver}
    drivers |= {f"hosts.{name}.gpu_driver": host.gpu_driver or "" for name, host in spec.hosts.items()}
    for place in (name for name, driver in drivers.items() if driver == "amd"):
        yield Mistake(place, "`gpus: auto` works only with NVIDIA GPUs, on which the estimate was measured",
                      hint="list the GPUs of each model, for example `gpus: [0]`")  # fmt: skip
    for index, model in enumerate(spec.models):
        if model.gpus == "auto":
            yield from find_mistakes(index, model)
        elif model.gpus == "all" or (isinstance(model.gpus, int) and model.gpus):
            what = (
                f"`gpus: {model.gpus}` can't be combined with `gpus: auto` of other models, because it does not say "
                "which GPUs this model uses"
            )
            yield Mistake(f"models[{index}].gpus", what, hint="set `auto` here too, or list the GPUs")


def find_candidates(spec: StackSpec, folder: Path, offline: bool, recorded: Mapping[str, Recorded]) -> list[Candidate]:
    """The models of `spec` with `gpus: auto`. Raises StackgenError if one of them can't be read."""
    hub, found = make_hub(spec, folder, offline), []
    for index, model in enumerate(spec.models):
        if model.gpus == "auto":
            known = find_model(model.model, folder, hub, model.revision, getattr(model, "file", None) or "")
            name = served_names(model)[0]
            counts = frozenset(len(gpus) for gpus in recorded[name].replicas) if name in recorded else frozenset()
            found.append(Candidate(index, name, model, known, counts))
    return found


def choose(
    spec: StackSpec,
    candidates: Sequence[Candidate],
    devices: Sequence[Device],
    recorded: Mapping[str, Recorded],
) -> tuple[Plan, tuple[Offer, ...]]:
    """The places of `candidates` on `devices`, and what would make room if there is none. Recorded places stay.

    GPUs that others hold are never chosen, and those that a stack which is down lists only if nothing else has room.
    """
    kinds = list(dict.fromkeys(one.gpu for one in devices))
    demands = [one.demand(kinds) for one in candidates]
    kept = _kept(demands, devices, recorded)
    own = {one.uuid for place in kept.values() for one in place}
    # which program of another machine belongs to this stack is unknown
    held = {one.uuid: one.held for one in devices if one.held and not (one.host and one.uuid in own)}
    blocked = held | _listed(spec, devices)
    wanted = {one.uuid: one.wanted for one in devices if one.wanted and one.uuid not in own}
    found = plan_places(demands, devices, kept, wanted | blocked)
    if wanted and not found.is_complete:
        found = plan_places(demands, devices, kept, blocked)
    return found, find_offers(candidates, found, kept)


def to_recorded(spec: StackSpec, found: Plan) -> dict[str, Recorded]:
    """The places of a complete plan, as placement.yaml has them."""
    places: dict[str, list[tuple[RecordedGpu, ...]]] = {}
    for one in found.places:
        gpus = tuple(RecordedGpu(gpu.uuid, gpu.index, gpu.host) for gpu in one.devices)
        places.setdefault(one.demand.name, []).append(gpus)
    models = {served_names(model)[0]: model.model for model in spec.models}
    return {name: Recorded(models[name], tuple(replicas)) for name, replicas in places.items()}


def _kept(
    demands: Sequence[Demand], devices: Sequence[Device], recorded: Mapping[str, Recorded]
) -> dict[tuple[int, int], tuple[Device, ...]]:
    """The recorded places whose GPUs the machine still has."""
    by_uuid = {one.uuid: one for one in devices}
    found = {}
    for one in demands:
        place = recorded.get(one.name)
        # with machines given, each has replicas of its own: a further one must not renumber those of the next machine
        free = list(range(one.replicas))
        for gpus in place.replicas if place and place.model == one.model else ():
            devices_of = tuple(by_uuid[gpu.uuid] for gpu in gpus if gpu.uuid in by_uuid)
            hosts = ("", *(each.host for each in devices_of[:1]))
            number = next((each for each in free if not devices_of or one.host_of(each) in hosts), None)
            if number is None:
                continue
            free.remove(number)
            if len(devices_of) == len(gpus):
                found[one.index, number] = devices_of
    return found


def _listed(spec: StackSpec, devices: Sequence[Device]) -> dict[str, str]:
    """The GPUs that models of the stack list, by UUID."""
    names = {(one.host, id): one.uuid for one in devices for id in (str(one.index), one.uuid)}
    return {names[host, id]: served_names(model)[0] for model in spec.models if isinstance(model.gpus, tuple)
            for id in (each.rpartition("=")[2] for each in model.gpus)
            for host in (hosts_of(model, spec) if spec.hosts else ("",)) if (host, id) in names}  # fmt: skip
