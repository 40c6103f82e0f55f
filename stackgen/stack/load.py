"""From a file (or flags) to a StackSpec. All mistakes are found in one go, each with its place and a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from stackgen import engines
from stackgen.errors import Mistake, SpecError
from stackgen.plan.clouds import CLOUDS
from stackgen.spec import PROVIDERS, EndpointsSpec, ModelSpec, StackSpec

__all__ = ["NOT_YAML", "load_endpoints", "load_stack", "parse_stack", "read_mapping", "read_text", "read_value"]

T = TypeVar("T")
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# PyYAML's constructors raise whatever they meet: `!!bool x` is a KeyError, `? [a]` a TypeError
NOT_YAML = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def load_stack(path: Path) -> StackSpec:
    """The stack described by the file at `path`, or by `path/stack.yaml`. Raises SpecError."""
    return parse_stack(read_text(path), str(path))


def load_endpoints(path: Path) -> EndpointsSpec:
    """The named endpoints in the file at `path`. Raises SpecError."""
    return _parse(read_text(path), str(path), _endpoints)


def read_text(path: Path) -> str:
    """The file's text; a file that can't be read is a SpecError."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        hint = "`stackgen init` writes one"
    except (OSError, UnicodeDecodeError) as error:
        hint = str(error)
    raise SpecError(str(path), [Mistake("", "can't be read", hint)])


def parse_stack(text: str, source: str = "stack.yaml") -> StackSpec:
    """The stack described by `text`. Raises SpecError with all mistakes, with line numbers."""
    return _parse(text, source, build)


def _parse(text: str, source: str, make: Callable[[dict[str, Any], str], T]) -> T:
    try:
        return make(read_mapping(text, source), source)
    except SpecError as error:
        lines = _lines(text)
        mistakes = [one if one.line else replace(one, line=_line(one.path, lines)) for one in error.mistakes]
        raise SpecError(source, sorted(mistakes, key=lambda mistake: mistake.line or 0)) from None


def read_mapping(text: str, source: str) -> dict[str, Any]:
    """The YAML mapping in `text`; broken YAML and keys given twice are mistakes."""
    try:
        node = _nodes(text)
        twice = list(_duplicates(node)) if node else []
        data = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        # libyaml's own words since 0.2.6 (PyYAML 6.0.4): it says no before `_nodes` could
        problem = problem.replace("exceeded maximum nesting depth", "it is nested too deeply")
        raise SpecError(source, [Mistake("", f"not YAML: {problem}", line=mark.line + 1 if mark else None)]) from None
    except NOT_YAML as error:
        raise SpecError(source, [Mistake("", f"not YAML: {error}")]) from None
    if twice:
        hint = "YAML keeps only the last"
        raise SpecError(source, [Mistake("", f"the key {key!r} stands twice", hint, line) for key, line in twice])
    if not isinstance(data, dict):
        raise SpecError(source, [Mistake("", "must be a mapping: `name:` and `models:`, or `endpoints:`")])
    return data


def read_value(text: str) -> Any:
    """The YAML value in `text`. Raises one of NOT_YAML."""
    _nodes(text)
    return yaml.load(text, Loader=Loader)


def _nodes(text: str) -> Any:
    """The nodes of `text`; ValueError where aliases (a loop, a bomb) or brackets make far too many of them."""
    root = yaml.compose(text, Loader=Loader)
    waiting, count = [(root, 0)] if root else [], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > 30 or count > 300_000:
            raise ValueError("it is nested too deeply, or its aliases repeat without end")
        if isinstance(node, yaml.CollectionNode):
            for item in node.value:
                waiting += [(inner, depth + 1) for inner in (item if isinstance(item, tuple) else (item,))]
    return root


def build(data: dict[str, Any], source: str) -> StackSpec:
    """A validated stack from plain data; each model is read by its engine's own type."""
    mistakes = [*_unprintable("", data), *_twice(data)]
    models: list[ModelSpec] = []
    raw = data.get("models")
    for index, entry in enumerate(raw if isinstance(raw, list) else []):
        try:
            models.append(_model(entry, f"models[{index}]", mistakes))
        except ValidationError as error:
            mistakes += _explain(error, f"models[{index}].", engines.get(entry["engine"]).Model)
        except LookupError:
            continue
    rest = dict(data)
    if isinstance(raw, list):
        # already read above; what is wrong inside must not be reported twice
        rest["models"] = models or raw
    elif raw is not None:
        mistakes.append(Mistake("models", "must be a list: each model starts with `- model:`"))
        rest["models"] = [None]
    try:
        stack = StackSpec.model_validate(rest, context=_context())
    except ValidationError as error:
        mistakes += _explain(error, "", StackSpec)
    if mistakes:
        raise SpecError(source, mistakes)
    return stack


def _endpoints(data: dict[str, Any], source: str) -> EndpointsSpec:
    mistakes = [*_unprintable("", data), *_twice(data)]
    try:
        found = EndpointsSpec.model_validate(data, context=_context())
    except ValidationError as error:
        mistakes += _explain(error, "", EndpointsSpec)
    if mistakes:
        raise SpecError(source, mistakes)
    return found


def _context() -> dict[str, tuple[str, ...]]:
    # the spec knows no engine; every engine is a provider and a dialect, as every cloud is
    return {PROVIDERS: (*engines.names(), *CLOUDS)}


def _twice(data: dict[str, Any]) -> Iterator[Mistake]:
    entries = data.get("endpoints")
    names = [entry.get("name") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    for index, name in enumerate(names):
        if isinstance(name, str) and name in names[:index]:
            yield Mistake(f"endpoints[{index}].name", f"{name!r} stands twice")


def _model(entry: Any, path: str, mistakes: list[Mistake]) -> ModelSpec:
    if not isinstance(entry, dict):
        mistakes.append(Mistake(path, "must be a mapping with `model:` and `engine:`"))
        raise LookupError
    known = ", ".join(engines.names())
    name = entry.get("engine")
    if name is None:
        mistakes.append(Mistake(f"{path}.engine", "is missing", f"one of {known}"))
        raise LookupError
    if not isinstance(name, str) or name not in engines.names():
        hint = _suggest(str(name), engines.names()) or f"one of {known}"
        mistakes.append(Mistake(f"{path}.engine", f"{name!r} is no engine", hint))
        raise LookupError
    return engines.get(name).Model.model_validate(entry, context=_context())


def _explain(error: ValidationError, prefix: str, model: type[BaseModel]) -> Iterator[Mistake]:
    """Pydantic's errors in the user's terms."""
    told = set()
    for item in error.errors(include_url=False):
        location = [part for part in item["loc"] if part != "[key]"]
        path = (prefix + _path(location)).rstrip(".")
        kind, given = item["type"], item.get("input")
        message, hint = item["msg"][:1].lower() + item["msg"][1:], ""
        if kind == "missing":
            message, hint = "is missing", _description(model, location)
        elif kind == "extra_forbidden":
            message, hint = "is no field here", _unknown(str(location[-1]), model, location)
        elif kind == "string_type" and not isinstance(given, (dict, list)):
            message = f"must be text, and YAML reads it as {given!r}: put it in quotes"
        elif kind == "string_pattern_mismatch":
            message, hint = f"{given!r} does not have the form {item['ctx']['pattern']}", _description(model, location)
        elif kind == "literal_error":
            message, hint = f"{given!r} must be {item['ctx']['expected']}", _suggest(str(given), _words(item["ctx"]))
        elif kind == PROVIDERS:
            known = item["ctx"][PROVIDERS]
            message, hint = f"{given!r} is no {location[-1]}", _suggest(given, known) or f"one of {', '.join(known)}"
        elif kind in ("tuple_type", "dict_type", "model_type"):
            message = "must be a list" if kind == "tuple_type" else "must be a mapping"
            hint = _description(model, location)
        if (path, message) not in told:
            told.add((path, message))
            yield Mistake(path, message, hint)


def _unknown(name: str, model: type[BaseModel], location: list[Any]) -> str:
    owner = _owner(model, location)
    suggestion = _suggest(name.replace("-", "_"), list(owner.model_fields))
    if suggestion or not issubclass(owner, (ModelSpec, StackSpec)):
        return suggestion
    others = [other for other in engines.names() if name in engines.get(other).Model.model_fields]
    if issubclass(owner, StackSpec):
        return f"it belongs to a model: models[0].{name}" if others else ""
    if name in StackSpec.model_fields:
        return "it belongs to the stack, one level up"
    return f"a field of engine {' and '.join(others)} only" if others else ""


def _owner(model: type[BaseModel], location: list[Any]) -> type[BaseModel]:
    """The model class that holds the last part of `location`."""
    for part in location[:-1]:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return model


def _description(model: type[BaseModel], location: list[Any]) -> str:
    field = _owner(model, location).model_fields.get(str(location[-1]))
    return field.description or "" if field else ""


def _suggest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""


def _words(context: dict[str, str]) -> list[str]:
    return [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]


def _path(location: Iterable[Any]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _unprintable(path: str, value: Any) -> Iterator[Mistake]:
    """No command line and no environment can hold a NUL, and lone surrogates are no text."""
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= ch <= "\udfff" for ch in value):
            yield Mistake(path, "holds a NUL or a broken character, which no program can be given")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _unprintable(f"{path}.{key}".lstrip("."), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _unprintable(f"{path}[{index}]", inner)


def _duplicates(node: Any) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = key.value if isinstance(key.value, str) else id(key)
            if name in seen:
                yield str(key.value), key.start_mark.line + 1
            seen.add(name)
            yield from _duplicates(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _duplicates(item)


def _lines(text: str) -> dict[str, int]:
    """The line (from 1) of each path in the file; empty where it is no YAML."""
    found: dict[str, int] = {}

    def walk(node: Any, path: str) -> None:
        found.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = f"{path}.{key.value}".lstrip(".")
                found[inner] = key.start_mark.line + 1
                walk(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, f"{path}[{index}]")

    try:
        node = _nodes(text)
    except NOT_YAML:
        return found
    if node:
        walk(node, "")
    return found


def _line(path: str, lines: dict[str, int]) -> int | None:
    """The line of `path`, or of the nearest thing around it that stands in the file."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path)
