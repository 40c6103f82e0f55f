"""`placement.yaml` next to stack.yaml: the GPUs that `stackgen plan` chose for models with `gpus: auto`.

A file of its own and not a part of stackgen.lock, because a stack is rendered from it (docs/decisions/placement.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stackgen.engines.base import served_names
from stackgen.errors import Mistake, SpecError
from stackgen.render.read import read_regular
from stackgen.spec import ModelSpec, StackSpec
from stackgen.stack.yaml_text import read_mapping

__all__ = ["FILE", "Recorded", "format_placement", "place_models", "read_placement"]

FILE = "placement.yaml"
VERSION = 1
HEADER = "# Written by `stackgen plan`: the GPUs of models with `gpus: auto`. Keep it with stack.yaml.\n"
HINT = "run `stackgen plan`, which writes it again"
UUID = re.compile(r"GPU-[0-9A-Za-z-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Recorded:
    """The place of one model: `replicas` are (UUID, index) of the GPUs of each replica."""

    model: str
    replicas: tuple[tuple[tuple[str, int], ...], ...]


def format_placement(places: Mapping[str, Recorded]) -> str:
    """The text of the file. `places` is by served name."""
    rows = [
        {"name": name, "model": one.model,
         "replicas": [[{"uuid": uuid, "index": index} for uuid, index in gpus] for gpus in one.replicas]}
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
        raise SpecError(str(path), [Mistake("version", f"is not {VERSION}", hint=HINT)])
    try:
        return {str(row["name"]): _read_row(row) for row in data["models"]}
    except (KeyError, TypeError, ValueError):
        raise SpecError(str(path), [Mistake("models", "is not what `stackgen plan` writes", hint=HINT)]) from None


def _read_row(row: Mapping[str, Any]) -> Recorded:
    replicas = tuple(tuple((one["uuid"], one["index"]) for one in gpus) for gpus in row["replicas"])
    for uuid, index in (one for gpus in replicas for one in gpus):
        # the UUIDs get into the Compose file
        if not isinstance(uuid, str) or not UUID.fullmatch(uuid) or type(index) is not int:
            raise ValueError(uuid)
    return Recorded(str(row["model"]), replicas)


def place_models(spec: StackSpec, folder: Path, source: str) -> StackSpec:
    """`spec` with the recorded GPUs instead of `auto`. Without a file, `auto` stays, and resolve reports it.

    Raises SpecError for a model that has changed, a replica without a place, and GPUs that other models list too.
    """
    if not (places := read_placement(folder)):
        return spec
    mistakes: list[Mistake] = []
    models = [_place_model(index, model, places, mistakes) for index, model in enumerate(spec.models)]
    mistakes += _find_taken(spec.models, places)
    if mistakes:
        raise SpecError(source, mistakes)
    return spec.model_copy(update={"models": tuple(models)})


def _place_model(index: int, model: ModelSpec, places: Mapping[str, Recorded], mistakes: list[Mistake]) -> ModelSpec:
    if model.gpus != "auto":
        return model
    path, found = f"models[{index}].gpus", places.get(served_names(model)[0])
    if found is None or found.model != model.model:
        mistakes.append(Mistake(path, f"{FILE} has no place for this model", hint="run `stackgen plan`, which adds it"))
    elif len(found.replicas) < model.replicas:
        hint = f"set `replicas: {model.replicas}` in stack.yaml, and run `stackgen plan`"
        what = f"{FILE} has places for {len(found.replicas)} of {model.replicas} replicas"
        mistakes.append(Mistake(path, what, hint=hint))
    else:
        uuids = tuple(uuid for gpus in found.replicas[: model.replicas] for uuid, _ in gpus)
        return model.model_copy(update={"gpus": uuids})
    return model


def _find_taken(models: Sequence[ModelSpec], places: Mapping[str, Recorded]) -> list[Mistake]:
    """Lists of GPUs that the places contain too: an index and a UUID of the same GPU look different."""
    used = {id: name for name, one in places.items() for gpus in one.replicas for uuid, index in gpus
            for id in (uuid, str(index))}  # fmt: skip
    auto = {served_names(model)[0] for model in models if model.gpus == "auto"}
    found = []
    for number, model in enumerate(models):
        ids = [id.rpartition("=")[2] for id in model.gpus] if isinstance(model.gpus, tuple) else []
        found += [Mistake(f"models[{number}].gpus", f"GPU {id} is the place of {used[id]} in {FILE}",
                          hint="list another GPU, or run `stackgen plan`, which moves the other model")
                  for id in ids if used.get(id) in auto]  # fmt: skip
    return found
