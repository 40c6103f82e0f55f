"""`stackgen plan`: chooses GPUs for the models with `gpus: auto`, shows why, and records the choice."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from stackgen.cli.commands.fit_models import find_model, make_hub
from stackgen.cli.commands.locking import lock_stack
from stackgen.cli.commands.output import note, print_data, require_writable, write_text
from stackgen.cli.commands.plan_text import offer_lines, offers_json
from stackgen.cli.commands.table import format_table, size_text
from stackgen.engines.base import served_names
from stackgen.errors import MachineError, Mistake, SpecError, StackgenError
from stackgen.fit.gpus import observed_gpu
from stackgen.placement import (
    Candidate,
    Demand,
    Device,
    Offer,
    Plan,
    find_offers,
    join_islands,
    parse_machine,
    parse_topology,
    plan_places,
)
from stackgen.placement.demand import find_mistakes
from stackgen.placement.picture import draw
from stackgen.render.write import write_atomically
from stackgen.runtimes.observation.gpu_tools import read_nvidia_facts, run_tool
from stackgen.spec import StackSpec
from stackgen.stack.folder import find_stack_file
from stackgen.stack.load import locate, parse_stack, read_text
from stackgen.stack.placement_file import FILE, Recorded, format_placement, read_placement
from stackgen.stack.yaml_text import read_mapping

__all__ = ["plan"]

# a GPU without processes has some MiB in use, for the driver
IDLE = 512 * 2**20
HINT = ("run `stackgen plan` on the machine with the GPUs, or describe its GPUs in a file: `--machine FILE` (see the "
        "how-to about choosing GPUs)")  # fmt: skip


def plan(args: Namespace) -> int:
    """Runs `stackgen plan`. Returns 1 if there is no room for a replica; then, nothing is recorded."""
    if args.svg:
        require_writable(args.svg, "--svg")
    with nullcontext() if args.dry_run else lock_stack(args, args.stack):
        path = find_stack_file(args.stack)
        if path is None:
            raise StackgenError(f"{args.stack} has no stack.yaml", "name the folder of a stack, or its stack file")
        text = read_text(path)
        spec = parse_stack(text, str(path))
        if mistakes := list(_find_mistakes(spec)):
            raise locate(SpecError(str(path), mistakes), text, str(path))
        devices = _read_file(Path(args.machine)) if args.machine else _read_this_machine()
        found, offers = _choose(args, spec, path.parent, devices)
        wanted = format_placement(_record(spec, found))
        writes = found.is_complete and not args.dry_run
        if writes:
            write_atomically(path.parent / FILE, wanted)
        if args.svg:
            write_text(args.svg, draw(found))
    file = str(path.parent / FILE) if writes else None
    # the picture on stdout and nothing else
    if args.svg != "-":
        data = {"complete": found.is_complete, "file": file, **_to_json(found), "offers": offers_json(offers)}
        print_data(args, data, [*_to_lines(found), *offer_lines(offers)])
    _note_result(args, found, bool(offers), file)
    return 0 if found.is_complete else 1


def _find_mistakes(spec: StackSpec) -> Iterator[Mistake]:
    if spec.target == "kubernetes":
        raise StackgenError("a cluster chooses the GPUs of its pods itself", "set a count, for example `gpus: 1`")
    automatic = [index for index, model in enumerate(spec.models) if model.gpus == "auto"]
    if not automatic:
        raise StackgenError("no model has `gpus: auto`, so there is nothing to choose", "set `gpus: auto` for a model")
    if spec.gpu_driver == "amd":
        yield Mistake("gpu_driver", "`gpus: auto` works with NVIDIA GPUs, because the estimate is measured on them",
                      hint="list the GPUs of each model, for example `gpus: [0]`")  # fmt: skip
    for index, model in enumerate(spec.models):
        if model.gpus == "auto":
            yield from find_mistakes(index, model)
        elif model.gpus == "all" or (isinstance(model.gpus, int) and model.gpus):
            what = (
                f"{model.gpus} can't be combined with `auto` of other models, because only a list says which GPUs "
                "are taken"
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


def _choose(
    args: Namespace, spec: StackSpec, folder: Path, devices: Sequence[Device]
) -> tuple[Plan, tuple[Offer, ...]]:
    kinds = list(dict.fromkeys(one.gpu for one in devices))
    recorded = {} if args.repack else read_placement(folder)
    candidates = find_candidates(spec, folder, args.offline, recorded)
    demands = [one.demand(kinds) for one in candidates]
    kept = _kept(demands, devices, recorded)
    found = plan_places(demands, devices, kept, _blocked(spec, devices))
    return found, find_offers(candidates, found, kept)


def _kept(
    demands: Sequence[Demand], devices: Sequence[Device], recorded: Mapping[str, Recorded]
) -> dict[tuple[int, int], tuple[Device, ...]]:
    """The recorded places whose GPUs the machine still has."""
    by_uuid = {one.uuid: one for one in devices}
    found = {}
    for one in demands:
        place = recorded.get(one.name)
        for number, gpus in enumerate(place.replicas if place and place.model == one.model else ()):
            if number < one.replicas and all(uuid in by_uuid for uuid, _ in gpus):
                found[one.index, number] = tuple(by_uuid[uuid] for uuid, _ in gpus)
    return found


def _blocked(spec: StackSpec, devices: Sequence[Device]) -> dict[str, str]:
    """The GPUs that models of the stack list, by UUID."""
    names = {id: one.uuid for one in devices for id in (str(one.index), one.uuid)}
    return {names[id]: served_names(model)[0] for model in spec.models if isinstance(model.gpus, tuple)
            for id in (each.rpartition("=")[2] for each in model.gpus) if id in names}  # fmt: skip


def _read_file(path: Path) -> tuple[Device, ...]:
    return parse_machine(read_mapping(read_text(path), str(path)), str(path))


def _read_this_machine() -> tuple[Device, ...]:
    gpus: Any = read_nvidia_facts(run_tool).get("gpus") or ()
    known = [one for one in gpus if one.memory_total and one.uuid]
    if parts := [str(one.index) for one in known if one.mig]:
        note(f"left out, because they are divided by MIG: GPU {', '.join(parts)}")
    known = [one for one in known if not one.mig]
    if not known:
        raise MachineError("this machine has no whole GPU that nvidia-smi lists", HINT)
    answer = run_tool(["nvidia-smi", "topo", "-m"])
    if not answer or answer[0]:
        note("warning: `nvidia-smi topo -m` fails, so all GPUs count as connected over PCIe")
    pairs = parse_topology(answer[1]) if answer and not answer[0] else []
    islands = join_islands([one.index for one in known], pairs)
    for one in known:
        if one.memory_free is not None and one.memory_total - one.memory_free > IDLE:
            note(f"GPU {one.index} has {size_text(one.memory_total - one.memory_free)} in use now. `stackgen gpus` "
                 "shows by whom")  # fmt: skip
    return tuple(Device(one.index, one.uuid, observed_gpu(one.name, one.memory_total, one.compute), islands[one.index])
                 for one in known)  # fmt: skip


def _record(spec: StackSpec, found: Plan) -> dict[str, Recorded]:
    places: dict[str, list[tuple[tuple[str, int], ...]]] = {}
    for one in found.places:
        places.setdefault(one.demand.name, []).append(tuple((gpu.uuid, gpu.index) for gpu in one.devices))
    models = {served_names(model)[0]: model.model for model in spec.models}
    return {name: Recorded(models[name], tuple(replicas)) for name, replicas in places.items()}


def _to_json(found: Plan) -> dict[str, Any]:
    users: dict[str, list[str]] = {uuid: [name] for uuid, name in found.blocked.items()}
    for place in found.places:
        for gpu in place.devices:
            users.setdefault(gpu.uuid, []).append(f"{place.demand.name} {place.replica + 1}")
    gpus = [{"index": one.index, "uuid": one.uuid, "name": one.gpu.name, "memory": one.gpu.memory,
             "island": one.island, "models": users.get(one.uuid, [])} for one in found.devices]  # fmt: skip
    models = [{"name": one.demand.name, "replica": one.replica + 1, "gpus": [gpu.uuid for gpu in one.devices],
               "indices": [gpu.index for gpu in one.devices], "share": one.demand.share, "kept": one.is_kept,
               "why": one.why, "not_elsewhere": list(one.others)} for one in found.places]  # fmt: skip
    return {"models": models, "gpus": gpus}


def _to_lines(found: Plan) -> Iterator[str]:
    rows = [(one.demand.name, str(one.replica + 1), ",".join(str(gpu.index) for gpu in one.devices) or "-",
             one.devices[0].gpu.name if one.devices else "-", one.why) for one in found.places]  # fmt: skip
    yield from format_table(("MODEL", "REPLICA", "GPUS", "KIND", "WHY THERE"), rows)
    # the replicas of a model have the same reasons, unless one of them has no room
    reasons = dict.fromkeys(
        (one.demand.name if one.devices else f"{one.demand.name} {one.replica + 1}", text)
        for one in found.places for text in one.others
    )  # fmt: skip
    if reasons:
        yield ""
        yield from format_table(("MODEL", "WHY NOT ELSEWHERE"), list(reasons))
    used = {gpu.uuid for one in found.places for gpu in one.devices} | set(found.blocked)
    if free := [f"{one.index} ({one.gpu.name})" for one in found.devices if one.uuid not in used]:
        yield ""
        yield f"free: GPU {', '.join(free)}"


def _note_result(args: Namespace, found: Plan, has_offers: bool, file: str | None) -> None:
    if file:
        note(f"recorded in {file}. `stackgen render {args.stack}` uses it")
    elif found.is_complete:
        note("nothing was recorded (--dry-run)")
    else:
        count = sum(not one.devices for one in found.places)
        note(f"no room for {count} of {len(found.places)} replicas, so nothing was recorded")
        if found.moving_helps:
            note("there is room for all of them if others move: `stackgen plan --repack`")
        elif not has_offers:
            note("no change of a field and no shared GPU makes room for all. What helps: fewer replicas, smaller "
                 "models, or more GPUs. `stackgen fit MODEL --gpu NAME` shows what one model needs")  # fmt: skip
