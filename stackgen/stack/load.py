"""Loads stack.yaml, endpoints.yaml or command-line flags into a validated spec, and reports all errors at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from stackgen import engines
from stackgen.errors import Mistake, SpecError, StackgenError
from stackgen.plan.clouds import CLOUDS
from stackgen.render.read import read_regular
from stackgen.spec import PROVIDERS, EndpointsSpec, ModelSpec, StackSpec
from stackgen.stack.mistakes import (
    clip,
    describe_validation_error,
    find_variables,
    shorten,
    suggest,
    unescape_variables,
)
from stackgen.stack.yaml_text import Place, find_places, read_mapping

__all__ = [
    "apply_placement",
    "build_spec",
    "copy_placement",
    "load_endpoints",
    "load_stack",
    "locate",
    "locate_path",
    "locate_warnings",
    "parse_stack",
    "read_text",
]

T = TypeVar("T")
# far above every real stack file; PyYAML needs up to 400 times the size of the text in memory
MAX_BYTES = 2**19
# a path such as `models[0].extra_env.A`, and what follows it in a warning
WARNED = re.compile(r"[a-z_]+(?:\.\w+|\[\d+\])*(?=:? )")
# more would only scroll away
MAX_MISTAKES = 1000


def load_stack(path: Path) -> StackSpec:
    """Returns the stack in the file at `path`. Raises SpecError with all errors and their lines."""
    text = read_text(path)
    return apply_placement(parse_stack(text, str(path)), path, text)


def apply_placement(spec: StackSpec, path: Path, text: str) -> StackSpec:
    """`spec` with the recorded GPUs of its models with `gpus: auto`; `text` is that of the file `path`."""
    if not any(model.gpus == "auto" for model in spec.models):
        return spec
    # most stacks choose their GPUs themselves
    from stackgen.stack.placement_file import place_models

    try:
        return place_models(spec, path.parent, str(path))
    except SpecError as error:
        # mistakes in placement.yaml have no line in stack.yaml
        raise (locate(error, text, str(path)) if error.source == str(path) else error) from None


def copy_placement(spec: StackSpec, path: Path, text: str, host: str) -> tuple[StackSpec, str]:
    """`spec`, which is moved to the folder of the machine `host`, with its recorded GPUs, and placement.yaml for there.

    `text` is that of the file `path`, next to which the GPUs are recorded. Raises StackgenError without `host`.
    """
    from stackgen.stack.placement_file import apply_places, format_placement, read_placement, rename_places

    if not host:
        what = "the GPUs of `gpus: auto` are recorded next to stack.yaml, so the rendered files belong there too"
        raise StackgenError(what, "render without --output, or copy stack.yaml and run `stackgen plan` there")
    places = rename_places(read_placement(path.parent), parse_stack(text, str(path)), spec)
    try:
        return apply_places(spec, places, str(path)), format_placement(places) if places else ""
    except SpecError as error:
        raise locate(error, text, str(path)) from None


def load_endpoints(path: Path) -> EndpointsSpec:
    """Returns the named endpoints in the file at `path`. Raises SpecError with all errors and their lines."""
    return _parse(read_text(path), str(path), _build_endpoints)


def read_text(path: Path) -> str:
    """Returns the text of a file. Raises SpecError if it can't be read or is not UTF-8."""
    try:
        data = read_regular(path, MAX_BYTES)
        # as an editor reads it: with any line ends
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        mistake = Mistake("", "the file does not exist", hint="run `stackgen init`, which writes one")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        mistake = Mistake(
            "", "the file can't be read: this line is not UTF-8", hint="save the file as UTF-8", line=line
        )
    except OSError as error:
        mistake = Mistake("", f"the file can't be read: {error.strerror}", hint="check its path and permissions")
    # outside of the except block: the traceback of --debug would otherwise show two errors
    raise SpecError(str(path), [mistake])


def parse_stack(text: str, source: str = "stack.yaml") -> StackSpec:
    """Returns the stack that `text` describes. Raises SpecError with all errors and their lines."""
    return _parse(text, source, _build_user_spec)


def _parse(text: str, source: str, make: Callable[[dict[str, Any], str], T]) -> T:
    try:
        # as in Compose: `x-` fields hold YAML anchors, and are the user's own
        return make({key: value for key, value in read_mapping(text, source).items() if not _is_own(key)}, source)
    except SpecError as error:
        raise locate(error, text, source) from None


def locate(error: SpecError, text: str, source: str) -> SpecError:
    """Returns `error` with the place in `text` of each of its mistakes, in the order of the lines."""
    # places need a second pass, which only a file with errors is worth
    places = find_places(text)
    mistakes = [one if one.line else _with_place(one, places) for one in error.mistakes]
    mistakes = [clip(one) for one in sorted(mistakes, key=lambda mistake: mistake.line or 0)]
    if (more := len(mistakes) - MAX_MISTAKES) > 0:
        mistakes = [*mistakes[:MAX_MISTAKES], Mistake("", f"and {more} more error{'s' * (more > 1)}")]
    return SpecError(source, mistakes)


def _is_own(key: Any) -> bool:
    return isinstance(key, str) and key.startswith("x-")


def _build_user_spec(data: dict[str, Any], source: str) -> StackSpec:
    """Builds the stack of a file, which may contain what people expect of a Compose file."""
    if isinstance(data.get("services"), dict) and not isinstance(data.get("models"), list):
        name = Path(source).name
        raise SpecError(source, [Mistake(
            "services", "this is a Docker Compose file, not a stack file",
            hint=f"to start it, run `docker compose -f {name} up`. For a stack.yaml with the same models and "
            f"settings, run `stackgen import {source} -o DIR`",
        )])  # fmt: skip
    found = list(find_variables("", data))
    try:
        spec = build_spec(data if found else unescape_variables(data), source)
    except SpecError as error:
        # a field with a variable is reported once, with the cause
        paths = {mistake.path for mistake in found}
        raise SpecError(source, [*found, *(one for one in error.mistakes if one.path not in paths)]) from None
    if found:
        raise SpecError(source, found)
    return spec


def build_spec(data: dict[str, Any], source: str) -> StackSpec:
    """Returns the stack in `data`, with each model validated by its engine's class. Raises SpecError with all errors.

    `source` is the file name for messages.
    """
    mistakes = [*_find_unprintable("", data), *_find_duplicate_endpoints(data)]
    models: list[ModelSpec] = []
    entries = data.get("models")
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        model, found = _build_model(entry, f"models[{index}]")
        mistakes += found
        models += [model] if model else []
    rest = dict(data)
    if isinstance(entries, list):
        # the models are validated above: validating the raw entries again would report their errors twice
        rest["models"] = models or entries
    elif entries is not None:
        mistakes.append(Mistake("models", "must be a list. Start each model with `- model:`"))
        # a placeholder, so that StackSpec does not report the same field again
        rest["models"] = [None]
    try:
        stack = StackSpec.model_validate(rest, context=_validation_context())
    except ValidationError as error:
        mistakes += describe_validation_error(error, "", StackSpec)
    if mistakes:
        raise SpecError(source, mistakes)
    return stack


def _build_endpoints(data: dict[str, Any], source: str) -> EndpointsSpec:
    mistakes = [*_find_unprintable("", data), *_find_duplicate_endpoints(data)]
    try:
        endpoints = EndpointsSpec.model_validate(data, context=_validation_context())
    except ValidationError as error:
        mistakes += describe_validation_error(error, "", EndpointsSpec)
    if mistakes:
        raise SpecError(source, mistakes)
    return endpoints


def _build_model(entry: Any, path: str) -> tuple[ModelSpec | None, list[Mistake]]:
    """Validates a model with its engine's class. Returns the model, or None and all its errors.

    If the engine is missing, misspelled or unknown, the other fields are validated with the engine that is meant, or
    with the fields that all engines have.
    """
    if not isinstance(entry, dict):
        return None, [Mistake(path, "must be a mapping with `model:` and `engine:`")]
    mistakes: list[Mistake] = []
    name = entry.get("engine")
    rest = entry
    if name is None:
        # the misspelled field is reported as an unknown field, and that the engine is missing is its consequence
        misspelled = next((key for key in entry if isinstance(key, str) and suggest(key, ["engine"])), None)
        if misspelled is None:
            mistakes.append(Mistake(f"{path}.engine", "is missing", hint=f"choose one of {_known_engines()}"))
        else:
            mistakes.append(Mistake(f"{path}.{misspelled}", "unknown field", hint="did you mean engine?"))
            name = entry[misspelled]
            rest = {key: value for key, value in entry.items() if key != misspelled}
    if name is not None and (not isinstance(name, str) or name not in engines.names()):
        close = suggest(str(name), engines.names())
        hint = close or f"choose one of {_known_engines()}"
        mistakes.append(Mistake(f"{path}.engine", f"unknown engine {shorten(name)}", hint=hint))
        name = next((one for one in engines.names() if f" {one}?" in close), None)
    kind = engines.get(name).Model if name else ModelSpec
    fields = {key: value for key, value in rest.items() if name or key not in _engine_fields()}
    try:
        model = kind.model_validate({**fields, "engine": name} if name else fields, context=_validation_context())
    except ValidationError as error:
        return None, mistakes + list(describe_validation_error(error, f"{path}.", kind))
    return (None if mistakes else model), mistakes


def _known_engines() -> str:
    return ", ".join(engines.names())


def _engine_fields() -> set[str]:
    """The fields that only some engines have."""
    every = {field for name in engines.names() for field in engines.get(name).Model.model_fields}
    return every - set(ModelSpec.model_fields)


def _validation_context() -> dict[str, tuple[str, ...]]:
    # passed as context: each engine and cloud is a provider and a dialect, and stackgen.spec must not import engines
    return {PROVIDERS: (*engines.names(), *CLOUDS)}


def _find_duplicate_endpoints(data: dict[str, Any]) -> Iterator[Mistake]:
    entries = data.get("endpoints")
    # the data is not validated yet, so an entry may have any type
    names = [entry.get("name") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    for index, name in enumerate(names):
        if isinstance(name, str) and name in names[:index]:
            yield Mistake(
                f"endpoints[{index}].name", f"{shorten(name)} is used twice", hint="give each endpoint its own name"
            )


def _find_unprintable(path: str, value: Any) -> Iterator[Mistake]:
    if isinstance(value, str):
        # arguments and environment variables can't contain a NUL, and lone surrogates can't be encoded
        if "\0" in value or any("\ud800" <= ch <= "\udfff" for ch in value):
            yield Mistake(path, "contains a NUL or a broken character, which no program accepts. Remove the character")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _find_unprintable(f"{path}.{key}".lstrip("."), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _find_unprintable(f"{path}[{index}]", inner)


def locate_warnings(warnings: Sequence[str], text: str, source: str) -> tuple[str, ...]:
    """`warnings` with the place in `text`, of the file `source`, before those that begin with a path of this file."""
    found = [WARNED.match(one) for one in warnings]
    # most stacks have no such warning, and places need a second pass
    places = find_places(text) if any(found) else {}
    at = [places.get(match[0]) if match else None for match in found]
    return tuple(f"{source}:{place[0]}: {one}" if place else one for one, place in zip(warnings, at, strict=True))


def locate_path(path: str, places: dict[str, Place]) -> Place | None:
    """The place of `path`, or of its nearest parent in the file; that of the file's first field without any."""
    # a missing field has no place of its own
    while path and path not in places:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return places.get(path)


def _with_place(mistake: Mistake, places: dict[str, Place]) -> Mistake:
    line, column = locate_path(mistake.path, places) or (None, None)
    return replace(mistake, line=line, column=column)
