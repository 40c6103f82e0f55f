"""The flags of `stackgen render MODEL` that have no field of the same kind: `--gpus` and `--set FIELD=VALUE`."""

from __future__ import annotations

from typing import Any

from stackgen.errors import Mistake, SpecError
from stackgen.spec import StackSpec
from stackgen.stack.yaml_text import YAML_ERRORS, read_value

__all__ = ["apply_assignment", "parse_gpus"]


def parse_gpus(text: str) -> Any:
    """Parses `--gpus`: `2` is a count, `0,1`, `device=0` and UUIDs are lists, `all` and `none` stay as they are."""
    # isdecimal() and not isdigit(), which also accepts `²`, and int() does not
    if text.isdecimal():
        if int(text) == 0:
            what = "0 is ambiguous. Write `--gpus none` for no GPU, or `--gpus device=0` for the GPU with index 0"
            raise SpecError("command line", [Mistake("--gpus", what)])
        return int(text)
    if text == "auto":
        what = "`auto` is only for a stack file"
        hint = "write a stack file with `stackgen init`, and run `stackgen plan`"
        raise SpecError("command line", [Mistake("--gpus", what, hint=hint)])
    if text in ("all", "none"):
        return text
    parts = text.removeprefix("device=").strip("[]").split(",")
    return [int(part) if part.strip().isdecimal() else part.strip() for part in parts if part.strip()]


def apply_assignment(data: dict[str, Any], entry: dict[str, Any], assignment: str) -> None:
    """Applies `--set FIELD=VALUE` to the stack if it has a field of this name (`storage.path`), else to the model."""
    name, equals, value = assignment.partition("=")
    if not equals or not name:
        what = f"{assignment!r} does not have the form FIELD=VALUE"
        raise SpecError("command line", [Mistake("--set", what, hint="for example --set dtype=bfloat16")])
    try:
        parsed = read_value(value)
    # a value that is not valid YAML is text: `--set revision=[` needs no quotes
    except YAML_ERRORS:
        parsed = value
    # `--set max-num-seqs=8` works too, because users know the field as a flag
    *parents, last = name.replace("-", "_").split(".")
    place = data if (parents or [last])[0] in StackSpec.model_fields else entry
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            mistake = Mistake(
                "--set", f"{assignment!r} sets a field of `{parent}`, which is a single value without fields",
                hint=f"set `{parent}` itself: --set {parent}=VALUE",
            )  # fmt: skip
            raise SpecError("command line", [mistake])
    place[last] = parsed
