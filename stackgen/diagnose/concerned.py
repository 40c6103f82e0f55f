"""The settings of a stack that an error of an engine concerns, with their values and their places in stack.yaml."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stackgen.diagnose.messages import SETTING, WORDS
from stackgen.diagnose.settings import ARGUMENTS, TOUCHED
from stackgen.flags import normalize_flag
from stackgen.flags.arguments import FIELD_OF_FLAG
from stackgen.spec import ModelSpec

__all__ = ["Concerned", "find_concerned"]

# how much of a value is shown
VALUE_CHARS = 80
# values that nobody should print
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.I)
ENV = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")


@dataclass(frozen=True, slots=True)
class Concerned:
    """A setting, as stack.yaml names it, with its value; `place` is its path in stack.yaml, "" for a log alone."""

    name: str
    value: str
    place: str

    def __str__(self) -> str:
        shown = self.value if len(self.value) <= VALUE_CHARS else f"{self.value[:VALUE_CHARS]}…"
        return " ".join(filter(None, (self.name, shown, self.place and f"({self.place})")))


def find_concerned(
    names: Iterable[str], text: str, log: str, engine: str, model: ModelSpec | None, index: int
) -> tuple[Concerned, ...]:
    """Those of the settings `names`, and of the settings that `text` names or is about, that the stack sets.

    `names` are flags and environment variables of the engine. Without `model`, the settings are those that vLLM's line
    of its arguments in `log` has. `index` is the model's place in stack.yaml.
    """
    wanted = dict.fromkeys((*names, *_read_names(text, engine), *_read_areas(text)))
    arguments = next((found["text"] for found in ARGUMENTS.finditer(log)), "")
    found: dict[str, Concerned] = {}
    for name in wanted:
        one = _find_in_model(name, engine, model, index) if model else _find_in_arguments(name, arguments)
        if one:
            found.setdefault(one.name, one)
    return tuple(found.values())


def _read_names(text: str, engine: str) -> Iterator[str]:
    """The flags, fields and variables that `text` itself names."""
    for word in SETTING.findall(text):
        yield word if ENV.fullmatch(word) else normalize_flag(word)


def _read_areas(text: str) -> Iterator[str]:
    for pattern, settings in (*WORDS, *TOUCHED):
        if pattern.search(text):
            yield from settings


def _find_in_model(name: str, engine: str, model: ModelSpec, index: int) -> Concerned | None:
    path = f"models[{index}]"
    variable = name.removeprefix("extra_env.")
    if ENV.fullmatch(variable):
        value = (getattr(model, "extra_env", None) or {}).get(variable)
        shown = "" if SECRET.search(variable) else str(value)
        return None if value is None else Concerned(variable, shown, f"{path}.extra_env")
    flag = normalize_flag(name)
    plain = flag.lstrip("-").replace("-", "_")
    fields = dict.fromkeys((FIELD_OF_FLAG.get(engine, {}).get(flag, plain), plain))
    for field in fields:
        value = getattr(model, field, None) if field in type(model).model_fields else None
        if value not in (None, "", (), [], {}, False) and field in model.model_fields_set:
            return Concerned(f"{field}:", _show(value), f"{path}.{field}")
    arguments = [str(one) for one in getattr(model, "extra_args", None) or ()]
    for at, argument in enumerate(arguments):
        head, equals, value = argument.partition("=")
        if not head.startswith("-") or normalize_flag(head) not in (flag, f"--no-{flag.lstrip('-')}"):
            continue
        following = arguments[at + 1] if at + 1 < len(arguments) and not arguments[at + 1].startswith("-") else ""
        return Concerned(head, value if equals else following, f"{path}.extra_args")
    return None


def _find_in_arguments(name: str, arguments: str) -> Concerned | None:
    plain = normalize_flag(name).lstrip("-").replace("-", "_")
    found = re.search(rf"'{re.escape(plain)}': (?P<value>'[^']*'|\{{.{{0,200}}?\}}|\[.{{0,200}}?\]|[^,}}]+)", arguments)
    if not found or found["value"] in ("None", "False"):
        return None
    return Concerned(f"--{plain.replace('_', '-')}", found["value"].strip("'"), "")


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "true"
    if isinstance(value, str | int | float):
        return str(value)
    dumped = value.model_dump(exclude_unset=True) if hasattr(value, "model_dump") else value
    try:
        return json.dumps(dumped, default=lambda one: one.model_dump(exclude_unset=True))
    except (TypeError, AttributeError):
        return ""
