"""`placement.yaml` next to stack.yaml: the GPUs that `stackgen plan` chose for models with `gpus: auto`.

A file of its own and not a part of stackgen.lock, because a stack is rendered from it (docs/decisions/placement.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from stackgen.engines.base import served_names
from stackgen.errors import Mistake, SpecError
from stackgen.render.read import PLACEMENT_FILE, read_regular
from stackgen.spec import ModelSpec, StackSpec
from stackgen.stack.yaml_text import read_mapping

__all__ = [
    "FILE", "Recorded", "RecordedGpu", "apply_places", "format_placement", "place_models", "read_placement",
    "rename_places",
]  # fmt: skip

FILE = PLACEMENT_FILE
VERSION = 1
HEADER = "# Written by `stackgen plan`: the GPUs of models with `gpus: auto`. Keep it with stack.yaml.\n"
HINT = "run `stackgen plan`, which writes the file again"
UUID = re.compile(r"GPU-[0-9A-Za-z-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RecordedGpu:
    """A GPU: `host` is its machine in `hosts`, "" for a stack on one machine."""

    uuid: str
    index: int
    host: str = ""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The place of one model: the GPUs of each replica."""

    model: str
    replicas: tuple[tuple[RecordedGpu, ...], ...]


def format_placement(places: Mapping[str, Recorded]) -> str:
    """The text of the file. `places` is by served name."""
    rows = [
        {"name": name, "model": one.model,
         "replicas": [[{"uuid": gpu.uuid, "index": gpu.index} | ({"host": gpu.host} if gpu.host else {})
                       for gpu in gpus] for gpus in one.replicas]}
        for name, one in places.items()
    ]  # fmt: skip
    data = {"version": VERSION, "models": rows}
    return HEADER + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)


def read_placement(folder: Path) -> dict[str, Recorded]:
    """The recorded places by served name; {} without a file. Raises SpecError if the file is damaged."""
    path = folder / FILE
    try:
        text = read_regular(path).decode("utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(str(path), [Mistake("", f"can't be read: {error}", hint=HINT)]) from None
    data = read_mapping(text, str(path))
    if data.get("version") != VERSION:
        raise SpecError(str(path), [Mistake("version", f"must be {VERSION}", hint=HINT)])
    try:
        return {str(row["name"]): _read_row(row) for row in data["models"]}
    except (KeyError, TypeError, ValueError):
        raise SpecError(str(path), [Mistake("models", "was not written by `stackgen plan`", hint=HINT)]) from None


def _read_row(row: Mapping[str, Any]) -> Recorded:
    replicas = tuple(tuple(RecordedGpu(one["uuid"], one["index"], str(one.get("host", ""))) for one in gpus)
                     for gpus in row["replicas"])  # fmt: skip
    for one in (one for gpus in replicas for one in gpus):
        # the UUIDs get into the Compose file
        if not isinstance(one.uuid, str) or not UUID.fullmatch(one.uuid) or type(one.index) is not int:
            raise ValueError(one.uuid)
    return Recorded(str(row["model"]), replicas)


def place_models(spec: StackSpec, folder: Path, source: str) -> StackSpec:
    """`spec` with the GPUs that `folder` records instead of `auto`. Without a file, `auto` stays; resolve reports it.

    Raises SpecError for a model that has changed, a replica without a place, and GPUs that other models list too.
    """
    return apply_places(spec, read_placement(folder), source)


def apply_places(spec: StackSpec, places: Mapping[str, Recorded], source: str) -> StackSpec:
    """`spec` with the GPUs in `places` instead of `auto`. Raises SpecError as `place_models` does.

    With `hosts`, a model is one entry for each machine that runs it: the further ones are after all other models.
    """
    if not places:
        return spec
    mistakes: list[Mistake] = []
    entries = [_place_model(index, model, spec, places, mistakes) for index, model in enumerate(spec.models)]
    mistakes += _find_taken(spec, places)
    if mistakes:
        raise SpecError(source, mistakes)
    # the first ones keep their index, which errors name
    models = (*(first for first, *_ in entries), *(more for _, *rest in entries for more in rest))
    return spec.model_copy(update={"models": models})


def rename_places(places: Mapping[str, Recorded], before: StackSpec, after: StackSpec) -> dict[str, Recorded]:
    """`places` for a copy of the stack file whose local models have another path."""
    names = {served_names(old)[0]: (served_names(new)[0], new.model)
             for old, new in zip(before.models, after.models, strict=True)}  # fmt: skip
    return {names[name][0]: replace(one, model=names[name][1]) for name, one in places.items() if name in names}


def _place_model(
    index: int, model: ModelSpec, spec: StackSpec, places: Mapping[str, Recorded], mistakes: list[Mistake]
) -> list[ModelSpec]:
    if model.gpus != "auto":
        return [model]
    path, found = f"models[{index}].gpus", places.get(served_names(model)[0])
    wanted = model.replicas * max(1, len(model.host))
    if found is None or found.model != model.model:
        mistakes.append(
            Mistake(path, f"{FILE} has no place for this model", hint=("run `stackgen plan`, which adds the model"))
        )
    elif len(found.replicas) < wanted:
        hint = f"set `replicas: {model.replicas}` in stack.yaml, and run `stackgen plan`"
        what = f"{FILE} has places for {len(found.replicas)} of {wanted} replicas"
        mistakes.append(Mistake(path, what, hint=hint))
    elif unknown := sorted({gpu.host for gpus in found.replicas for gpu in gpus} - (set(spec.hosts) or {""})):
        what = f"{FILE} has a place on {unknown[0]!r}" if unknown[0] else f"the places in {FILE} name no host"
        mistakes.append(Mistake(path, f"{what}, and the stack has {', '.join(spec.hosts) or 'no hosts'}",
                                hint="run `stackgen plan`, which chooses again"))  # fmt: skip
    else:
        return _split(model, found.replicas[:wanted], bool(spec.hosts))
    return [model]


def _split(model: ModelSpec, replicas: Sequence[Sequence[RecordedGpu]], has_hosts: bool) -> list[ModelSpec]:
    """The model with its GPUs; with several machines, one entry for each."""
    groups: dict[str, list[Sequence[RecordedGpu]]] = {}
    for gpus in replicas:
        groups.setdefault(gpus[0].host, []).append(gpus)
    return [
        model.model_copy(update={
            "gpus": tuple(gpu.uuid for gpus in group for gpu in gpus), "replicas": len(group),
            **({"host": (host,)} if has_hosts else {}),
        })
        for host, group in groups.items()
    ]  # fmt: skip


def _find_taken(spec: StackSpec, places: Mapping[str, Recorded]) -> list[Mistake]:
    """Lists of GPUs that the places contain too: an index and a UUID of the same GPU look different."""
    used = {(gpu.host, id): name for name, one in places.items() for gpus in one.replicas for gpu in gpus
            for id in (gpu.uuid, str(gpu.index))}  # fmt: skip
    auto = {served_names(model)[0] for model in spec.models if model.gpus == "auto"}
    found = []
    for number, model in enumerate(spec.models):
        ids = [id.rpartition("=")[2] for id in model.gpus] if isinstance(model.gpus, tuple) else []
        # without `host`, a model is on the first machine
        hosts = (model.host or (spec.front,)) if spec.hosts else ("",)
        found += [Mistake(f"models[{number}].gpus", f"GPU {id} is already assigned to {used[host, id]} in {FILE}",
                          hint="list another GPU, or run `stackgen plan`, which moves the other model")
                  for id in ids for host in hosts if used.get((host, id)) in auto]  # fmt: skip
    return found
