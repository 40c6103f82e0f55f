"""Loads stack.yaml, endpoints.yaml or command-line flags into a validated spec, and reports all errors at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from stackgen import engines
from stackgen.errors import Mistake, SpecError
from stackgen.plan.clouds import CLOUDS
from stackgen.spec import PROVIDERS, EndpointsSpec, ModelSpec, StackSpec
from stackgen.stack.mistakes import describe_validation_error, suggest
from stackgen.stack.yaml_text import find_lines, read_mapping

__all__ = ["build_spec", "load_endpoints", "load_stack", "parse_stack", "read_text"]

T = TypeVar("T")


def load_stack(path: Path) -> StackSpec:
    """Returns the stack in the file at `path`. Raises SpecError with all errors and their lines."""
    return parse_stack(read_text(path), str(path))


def load_endpoints(path: Path) -> EndpointsSpec:
    """Returns the named endpoints in the file at `path`. Raises SpecError with all errors and their lines."""
    return _parse(read_text(path), str(path), _build_endpoints)


def read_text(path: Path) -> str:
    """Returns the text of a file. Raises SpecError if it can't be read or is not UTF-8."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        mistake = Mistake("", "the file does not exist", hint="`stackgen init` writes one")
    except (OSError, UnicodeDecodeError) as error:
        mistake = Mistake("", "the file can't be read", hint=str(error))
    # outside of the except block: the traceback of --debug would otherwise show two errors
    raise SpecError(str(path), [mistake])


def parse_stack(text: str, source: str = "stack.yaml") -> StackSpec:
    """Returns the stack that `text` describes. Raises SpecError with all errors and their lines."""
    return _parse(text, source, build_spec)


def _parse(text: str, source: str, make: Callable[[dict[str, Any], str], T]) -> T:
    try:
        return make(read_mapping(text, source), source)
    except SpecError as error:
        # line numbers need a second pass, which only a file with errors is worth
        lines = find_lines(text)
        mistakes = [one if one.line else replace(one, line=_find_line(one.path, lines)) for one in error.mistakes]
        raise SpecError(source, sorted(mistakes, key=lambda mistake: mistake.line or 0)) from None


def build_spec(data: dict[str, Any], source: str) -> StackSpec:
    """Returns the stack in `data`, with each model validated by its engine's class. Raises SpecError with all errors.

    `source` is the file name for messages.
    """
    mistakes = [*_find_unprintable("", data), *_find_duplicate_endpoints(data)]
    models: list[ModelSpec] = []
    entries = data.get("models")
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        try:
            models.append(_build_model(entry, f"models[{index}]", mistakes))
        except ValidationError as error:
            mistakes += describe_validation_error(error, f"models[{index}].", engines.get(entry["engine"]).Model)
        except LookupError:
            # `_build_model` has added the error to `mistakes`
            continue
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


def _build_model(entry: Any, path: str, mistakes: list[Mistake]) -> ModelSpec:
    """Validates a model with its engine's class. For an unknown engine, adds an error and raises LookupError."""
    if not isinstance(entry, dict):
        mistakes.append(Mistake(path, "must be a mapping with `model:` and `engine:`"))
        raise LookupError
    known = ", ".join(engines.names())
    name = entry.get("engine")
    if name is None:
        mistakes.append(Mistake(f"{path}.engine", "is missing", hint=f"choose one of {known}"))
        raise LookupError
    if not isinstance(name, str) or name not in engines.names():
        hint = suggest(str(name), engines.names()) or f"choose one of {known}"
        mistakes.append(Mistake(f"{path}.engine", f"unknown engine {name!r}", hint=hint))
        raise LookupError
    return engines.get(name).Model.model_validate(entry, context=_validation_context())


def _validation_context() -> dict[str, tuple[str, ...]]:
    # passed as context: each engine and cloud is a provider and a dialect, and stackgen.spec must not import engines
    return {PROVIDERS: (*engines.names(), *CLOUDS)}


def _find_duplicate_endpoints(data: dict[str, Any]) -> Iterator[Mistake]:
    entries = data.get("endpoints")
    # the data is not validated yet, so an entry may have any type
    names = [entry.get("name") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    for index, name in enumerate(names):
        if isinstance(name, str) and name in names[:index]:
            yield Mistake(f"endpoints[{index}].name", f"{name!r} is used twice", hint="give each endpoint its own name")


def _find_unprintable(path: str, value: Any) -> Iterator[Mistake]:
    if isinstance(value, str):
        # arguments and environment variables can't contain a NUL, and lone surrogates can't be encoded
        if "\0" in value or any("\ud800" <= ch <= "\udfff" for ch in value):
            yield Mistake(
                path, "contains a NUL or a broken character, which can't be passed to a program. Remove the character"
            )
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _find_unprintable(f"{path}.{key}".lstrip("."), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _find_unprintable(f"{path}[{index}]", inner)


def _find_line(path: str, lines: dict[str, int]) -> int | None:
    """Returns the line of `path`, or of its nearest parent in the file."""
    # a missing field has no line of its own
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path)
