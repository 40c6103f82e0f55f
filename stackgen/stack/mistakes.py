"""Turns pydantic's validation errors into messages about the stack file: the path, what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from stackgen import engines
from stackgen.errors import Mistake
from stackgen.spec import PROVIDERS, ModelSpec, StackSpec

__all__ = ["describe_validation_error", "suggest"]


def describe_validation_error(error: ValidationError, prefix: str, model: type[BaseModel]) -> Iterator[Mistake]:
    """Yields each error of `error` once. `prefix` is put before its path. `model` is the class that was validated."""
    seen = set()
    for item in error.errors(include_url=False):
        # pydantic adds `[key]` for an invalid key of a mapping, which no path in the file contains
        location = [part for part in item["loc"] if part != "[key]"]
        path = (prefix + _format_path(location)).rstrip(".")
        kind, value = item["type"], item.get("input")
        message, hint = item["msg"][:1].lower() + item["msg"][1:], ""
        if kind == "missing":
            message, hint = "is missing", _field_description(model, location)
        elif kind == "extra_forbidden":
            message, hint = "unknown field", _hint_unknown_field(str(location[-1]), model, location)
        elif kind == "string_type" and not isinstance(value, (dict, list)):
            # no suggestion: YAML reads `010` as 8 and `no` as False, and only the user knows which text was meant
            message = f"must be text, but YAML reads the value as {value!r}. Put the value in quotes"
        elif kind == "string_pattern_mismatch":
            message = f"{value!r} does not match the pattern {item['ctx']['pattern']}"
            hint = _field_description(model, location)
        elif kind == "literal_error":
            message = f"must be {item['ctx']['expected']}, not {value!r}"
            hint = suggest(str(value), _expected_values(item["ctx"]))
        elif kind == PROVIDERS:
            known = item["ctx"][PROVIDERS]
            message = f"unknown {location[-1]} {value!r}"
            hint = suggest(value, known) or f"choose one of {', '.join(known)}"
        elif kind in ("tuple_type", "dict_type", "model_type"):
            message = "must be a list" if kind == "tuple_type" else "must be a mapping"
            hint = _field_description(model, location)
        # pydantic reports an error once for each member of a union
        if (path, message) not in seen:
            seen.add((path, message))
            yield Mistake(path, message, hint=hint)


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns a hint with the name in `known` that `name` is closest to; "" if none is close."""
    close = get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""


def _hint_unknown_field(name: str, model: type[BaseModel], location: list[Any]) -> str:
    owner = _find_owner(model, location)
    # users copy flags such as --max-model-len from a command line
    suggestion = suggest(name.replace("-", "_"), list(owner.model_fields))
    if suggestion or not issubclass(owner, (ModelSpec, StackSpec)):
        return suggestion
    others = [other for other in engines.names() if name in engines.get(other).Model.model_fields]
    if issubclass(owner, StackSpec):
        return f"the field belongs to a model: models[0].{name}" if others else ""
    if name in StackSpec.model_fields:
        return "the field belongs to the stack: move it one level up"
    return f"only {' and '.join(others)} models have this field" if others else ""


def _find_owner(model: type[BaseModel], location: list[Any]) -> type[BaseModel]:
    """Returns the model class that has the last part of `location` as its field."""
    for part in location[:-1]:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        # `X | None` and `tuple[X, ...]` contain the class in their arguments
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return model


def _field_description(model: type[BaseModel], location: list[Any]) -> str:
    field = _find_owner(model, location).model_fields.get(str(location[-1]))
    return field.description or "" if field else ""


def _expected_values(context: dict[str, str]) -> list[str]:
    # pydantic gives the allowed values only as text: "'a', 'b' or 'c'"
    return [value.strip("'") for value in context["expected"].replace(" or ", ", ").split(", ")]


def _format_path(location: Iterable[Any]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")
