"""Turns pydantic's validation errors into messages about the stack file: the path, what is wrong, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Any
from unicodedata import combining, normalize

from pydantic import BaseModel, ValidationError

from stackgen import engines
from stackgen.errors import Mistake
from stackgen.spec import PROVIDERS, ModelSpec, StackSpec

__all__ = ["clip", "describe_validation_error", "find_variables", "shorten", "suggest", "unescape_variables"]

# a message fits a few lines of a terminal, whatever the file contains
MAX_VALUE, MAX_TEXT = 60, 400
# hints list names, but repeat nothing of the file
MAX_HINT = 2000
# `${NAME}`, `${NAME:-default}` and so on anywhere; `$NAME` only as a whole value or the start of a path
VARIABLE = re.compile(r"(?<!\$)\$\{[A-Za-z_]\w*(?::?[-?+][^}]*)?\}|^\$[A-Za-z_]\w*(?=/|$)")
# the text `${NAME}` itself, written as in a Compose file
ESCAPED = re.compile(r"\$(?=\$\{[A-Za-z_]\w*(?::?[-?+][^}]*)?\})")


def shorten(value: Any) -> str:
    """Returns `repr(value)` in one line of at most MAX_VALUE characters, for a message."""
    # a slice first: the repr of a long value would cost as much as the value
    text = repr(value[: MAX_VALUE + 1] if isinstance(value, (str, bytes, list, tuple)) else value)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"


def clip(mistake: Mistake) -> Mistake:
    """Returns `mistake` with its path and message in one line each, and of limited length."""
    texts = (_one_line(mistake.path, MAX_TEXT // 2), _one_line(mistake.message), _one_line(mistake.hint, MAX_HINT))
    return replace(mistake, path=texts[0], message=texts[1], hint=texts[2])


def find_variables(path: str, value: Any) -> Iterator[Mistake]:
    """Yields an error for each text in `value` that refers to an environment variable, as a Compose file can."""
    if isinstance(value, str):
        if found := VARIABLE.search(value):
            hint = "write the value itself. Keys and tokens go into .env"
            # `${PORT:-8000}`
            if found[0] == value and (default := re.search(r":?-([^}]+)\}$", value)):
                hint = f"write the value itself: {shorten(default[1])[1:-1]}"
            # only a value as a whole can come from .env
            if ".extra_env." in path and found[0] == value and (name := re.match(r"\$\{?(\w+)", value)):
                hint = (
                    f"write the value itself, or `{{from_env: {name[1]}}}`, which reads the variable from .env. To "
                    f"pass the text, write $${{{name[1]}}}"
                )
            yield Mistake(
                path, f"contains the variable {shorten(found[0])[1:-1]}, and stack files have no variables",
                hint=hint,
            )  # fmt: skip
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from find_variables(f"{path}.{key}".lstrip("."), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from find_variables(f"{path}[{index}]", inner)


def unescape_variables(value: Any) -> Any:
    """Returns `value` with `${NAME}` in place of `$${NAME}` in its texts, as Compose reads it."""
    if isinstance(value, str):
        return ESCAPED.sub("", value)
    if isinstance(value, dict):
        return {key: unescape_variables(inner) for key, inner in value.items()}
    return [unescape_variables(inner) for inner in value] if isinstance(value, list) else value


def _one_line(text: str, limit: int = MAX_TEXT) -> str:
    # control characters could also move the cursor of a terminal
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", "\N{REPLACEMENT CHARACTER}", text[: limit + 1])
    return line if len(line) <= limit else f"{line[:limit]}…"


def describe_validation_error(error: ValidationError, prefix: str, model: type[BaseModel]) -> Iterator[Mistake]:
    """Yields each error of `error` once. `prefix` is put before its path. `model` is the class that was validated."""
    seen = set()
    found = error.errors(include_url=False)
    for item in found:
        # pydantic counts only the valid entries of a list, so an invalid entry would be reported twice
        if item["type"] == "too_short" and any(one["loc"][:-1] == item["loc"] for one in found):
            continue
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
            message = f"must be text, but YAML reads the value as {shorten(value)}. Put the value in quotes"
        elif kind == "string_pattern_mismatch":
            message = f"{shorten(value)} does not match the pattern {item['ctx']['pattern']}"
            hint = _suggest_name(str(value), item["ctx"]["pattern"]) or _field_description(model, location)
        elif kind in ("bool_parsing", "bool_type"):
            message = f"must be `true` or `false`, not {shorten(value)}"
        elif kind == "literal_error":
            message = f"must be {item['ctx']['expected']}, not {shorten(value)}"
            hint = suggest(str(value), _expected_values(item["ctx"]))
        elif kind == PROVIDERS:
            known = item["ctx"][PROVIDERS]
            message = f"unknown {location[-1]} {shorten(value)}"
            choices = f"choose one of {', '.join(known)}"
            if "fallback" in location:
                choices = "for other providers and servers, write `fallback: {model: …, base_url: …, api_key_env: …}`"
            hint = suggest(value, known) or choices
        elif kind in ("tuple_type", "dict_type", "model_type"):
            message = "must be a list" if kind == "tuple_type" else "must be a mapping"
            hint = _field_description(model, location)
            owner = _find_owner(model, [*location, "name"])
            # a list of names, such as `keys: [ada]`
            if kind == "model_type" and isinstance(value, str) and "name" in owner.model_fields:
                hint = f"write {{name: {shorten(value)[1:-1]}}}"
        # pydantic reports an error once for each member of a union
        if (path, message) not in seen:
            seen.add((path, message))
            yield Mistake(path, message, hint=hint)


def _suggest_name(value: str, pattern: str) -> str:
    """Returns a hint with a name like `value` that matches `pattern`: in lower case, with dashes."""
    # ü is two characters in this form, and the second one is left out
    plain = "".join(one for one in normalize("NFKD", value[:MAX_VALUE].lower()) if not combining(one))
    name = re.sub(r"[^a-z0-9_-]+", "-", plain).strip("-_")
    return f"for example {name}" if re.search(pattern, name) else ""


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns a hint with the name in `known` that `name` is closest to; "" if none is close."""
    # the comparison takes quadratic time, and no known name is that long
    close = get_close_matches(name[:100].lower(), list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""


# fields that users look for in the wrong place, or under another program's name
ELSEWHERE = {
    "hf_token": "the token goes into a file: set HF_TOKEN_FILE in .env to its path",
    "hf_token_file": "the path goes into .env: HF_TOKEN_FILE=/path/of/the/token",
    "api_key": "keys go into .env: STACKGEN_API_KEY; `stackgen keys new` creates more",
    "api_keys": "keys go into .env: STACKGEN_API_KEY; `stackgen keys new` creates more",
    "keys": "the field belongs to `gateway`: write `gateway: {keys: …}`",
    "tls": "the field belongs to `gateway`: write `gateway: {tls: …}`",
    "cors": "the field belongs to `gateway`: write `gateway: {cors: …}`",
    "max_tokens": "max_model_len limits the context, and each request sets its own max_tokens",
    **dict.fromkeys(("ctx", "ctx_size", "context", "context_length", "num_ctx", "n_ctx"), "the field is max_model_len"),
    "lora": "the field is lora_adapters",
    "loras": "the field is lora_adapters",
}
# what people call fields of keys and certificates
SYNONYMS = {
    "budget": "tokens_per_day", "tokens": "tokens_per_day", "token_budget": "tokens_per_day",
    "rpm": "requests_per_minute", "expiry": "expires", "valid_until": "expires", "cert": "certificate",
    "cert_file": "certificate", "key_file": "key", "private_key": "key", "host": "names", "hosts": "names",
}  # fmt: skip


def _hint_unknown_field(name: str, model: type[BaseModel], location: list[Any]) -> str:
    owner = _find_owner(model, location)
    if name in ELSEWHERE and name not in owner.model_fields and issubclass(owner, (ModelSpec, StackSpec)):
        return ELSEWHERE[name]
    if SYNONYMS.get(name) in owner.model_fields:
        return f"the field is {SYNONYMS[name]}"
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
