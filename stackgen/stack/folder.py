"""Opens a stack: finds its file, validates it, resolves its plan, and finds the folder of its rendered files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stackgen.errors import Mistake, SpecError
from stackgen.plan import Plan
from stackgen.render.templating import RenderedFile, render
from stackgen.resolve.pipeline import resolve
from stackgen.spec import StackSpec, is_local
from stackgen.stack.load import build_spec, load_stack
from stackgen.stack.schema import MODELINE
from stackgen.stack.yaml_text import YAML_ERRORS, read_value
from stackgen.targets.compose import ComposeSite

__all__ = ["Stack", "build_from_flags", "find_stack_file", "open_stack"]

# flags of `stackgen render MODEL` that have the name of a field
STACK_FLAGS = ("name", "port", "bind")
MODEL_FLAGS = (
    "engine", "replicas", "served_names", "revision", "max_model_len", "tensor_parallel_size", "gpu_memory_utilization",
    "file",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stack:
    """A validated stack: its spec, its plan for containers, and the folder of its rendered files.

    `source` is the stack file's name, for the header of rendered files. `generated_file` is the text of stack.yaml if
    the stack was built from flags, and "" if the user wrote the file.
    """

    spec: StackSpec
    plan: Plan
    folder: Path
    source: str
    generated_file: str = ""

    def files(self) -> tuple[RenderedFile, ...]:
        """Renders all files. The first one is the Compose file."""
        return render(self.plan, self.source)


def find_stack_file(path_or_model: str) -> Path | None:
    """Returns the stack file at a path (a YAML file, or a folder with stack.yaml). None if it is a model instead."""
    path = Path(path_or_model)
    if path.suffix in (".yaml", ".yml"):
        return path
    # a folder may have the name of a model (`meta-llama/Llama`): only a folder with a stack.yaml is a stack
    if path.is_dir() and ((path / "stack.yaml").exists() or path == Path()):
        return path / "stack.yaml"
    return None


def open_stack(where: str, output: str | None = None) -> Stack:
    """Returns the stack in the file or folder `where`. Raises SpecError.

    `output` is the folder of the rendered files. Default: the folder of the stack file.
    """
    path = find_stack_file(where) or Path(where) / "stack.yaml"
    folder = Path(output) if output else path.parent
    spec = load_stack(path)
    # two folders: local paths are relative to stack.yaml, and rendered paths to the output folder
    plan = resolve(spec, ComposeSite(path.parent, folder), str(path))
    return Stack(spec, plan, folder, path.name)


def build_from_flags(model: str, flags: dict[str, Any], sets: list[str], output: str | None = None) -> Stack:
    """Returns a stack with one model from the flags of `stackgen render MODEL`. Raises SpecError.

    `flags` are values by field name, `sets` the `FIELD=VALUE` of `--set`. The default folder is `compose/NAME`.
    """
    entry: dict[str, Any] = {"model": model} | {
        name: flags[name] for name in MODEL_FLAGS if flags.get(name) is not None
    }
    if flags.get("gpus") is not None:
        entry["gpus"] = _parse_gpus(flags["gpus"])
    data: dict[str, Any] = {name: flags[name] for name in STACK_FLAGS if flags.get(name) is not None}
    # a stack name has at most 63 characters
    data.setdefault(
        "name", re.sub(r"[^a-z0-9]+", "-", model.rstrip("/").rpartition("/")[2].lower()).strip("-")[:60] or "stack"
    )
    data["models"] = [entry]
    for assignment in sets:
        _apply_assignment(data, entry, assignment)
    spec = build_spec(data, "command line")
    folder = Path(output) if output else Path("compose") / spec.name
    if is_local(model) and not os.path.isabs(os.path.expanduser(model)):
        # absolute, because stack.yaml is written to another folder than the current one
        entry["model"] = str(Path(model).resolve())
        spec = build_spec(data, "command line")
    plan = resolve(spec, ComposeSite(folder, folder), "command line")
    text = f"{MODELINE}\n" + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)
    return Stack(spec, plan, folder, "stack.yaml", text)


def _parse_gpus(text: str) -> Any:
    """Parses `--gpus`: `2` is a count, `0,1`, `device=0` and UUIDs are lists, `all` and `none` stay as they are."""
    # isdecimal() and not isdigit(), which also accepts `²`, and int() does not
    if text.isdecimal():
        return int(text)
    if text in ("all", "none"):
        return text
    parts = text.removeprefix("device=").strip("[]").split(",")
    return [int(part) if part.strip().isdecimal() else part.strip() for part in parts if part.strip()]


def _apply_assignment(data: dict[str, Any], entry: dict[str, Any], assignment: str) -> None:
    """Applies `--set FIELD=VALUE` to the stack if it has a field of this name (`storage.path`), else to the model."""
    name, equals, value = assignment.partition("=")
    if not equals or not name:
        mistake = Mistake(
            "--set", f"{assignment!r} does not have the form FIELD=VALUE", hint="for example --set dtype=bfloat16"
        )
        raise SpecError("command line", [mistake])
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
                "--set", f"{assignment!r} sets a field of `{parent}`, which is a single value without fields"
            )
            raise SpecError("command line", [mistake])
    place[last] = parsed
