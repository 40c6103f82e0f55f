"""A stack on disk: where its file is, what it plans, and where its rendered files go."""

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
from stackgen.stack.load import NOT_YAML, build, load_stack, read_value
from stackgen.stack.schema import MODELINE
from stackgen.targets.compose import ComposeSite

__all__ = ["Stack", "from_flags", "open_stack", "stack_file"]

STACK_LEVEL = ("name", "port", "bind")
MODEL_LEVEL = (
    "engine", "replicas", "served_names", "revision", "max_model_len", "tensor_parallel_size", "gpu_memory_utilization",
    "file",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stack:
    """A validated stack: the spec, its plan for containers, its folder, and the files that belong there.

    `own_file` is the text of stack.yaml where it was made from flags, "" where the user wrote it.
    """

    spec: StackSpec
    plan: Plan
    folder: Path
    source: str
    own_file: str = ""

    def files(self) -> tuple[RenderedFile, ...]:
        """All rendered files; the first is the Compose file."""
        return render(self.plan, self.source)


def stack_file(words: str) -> Path | None:
    """The stack file that the user means by `words` (a file, or a folder with stack.yaml), if it is one."""
    path = Path(words)
    if path.suffix in (".yaml", ".yml"):
        return path
    # `meta-llama/Llama` may be a folder here as well: only one with a stack.yaml is a stack
    if path.is_dir() and ((path / "stack.yaml").exists() or path == Path()):
        return path / "stack.yaml"
    return None


def open_stack(words: str, output: str | None = None) -> Stack:
    """The stack in the file or folder `words`. Raises SpecError."""
    path = stack_file(words) or Path(words) / "stack.yaml"
    folder = Path(output) if output else path.parent
    spec = load_stack(path)
    plan = resolve(spec, ComposeSite(path.parent, folder), str(path))
    return Stack(spec, plan, folder, path.name)


def from_flags(model: str, flags: dict[str, Any], sets: list[str], output: str | None = None) -> Stack:
    """A stack of one model from the flags of `stackgen render MODEL`. Raises SpecError."""
    entry: dict[str, Any] = {"model": model} | {
        name: flags[name] for name in MODEL_LEVEL if flags.get(name) is not None
    }
    if flags.get("gpus") is not None:
        entry["gpus"] = _gpus(flags["gpus"])
    data: dict[str, Any] = {name: flags[name] for name in STACK_LEVEL if flags.get(name) is not None}
    data.setdefault(
        "name", re.sub(r"[^a-z0-9]+", "-", model.rstrip("/").rpartition("/")[2].lower()).strip("-")[:60] or "stack"
    )
    data["models"] = [entry]
    for assignment in sets:
        _assign(data, entry, assignment)
    spec = build(data, "command line")
    folder = Path(output) if output else Path("compose") / spec.name
    if is_local(model) and not os.path.isabs(os.path.expanduser(model)):
        entry["model"] = str(Path(model).resolve())  # stack.yaml will lie in another folder than this one
        spec = build(data, "command line")
    plan = resolve(spec, ComposeSite(folder, folder), "command line")
    text = f"{MODELINE}\n" + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)
    return Stack(spec, plan, folder, "stack.yaml", text)


def _gpus(text: str) -> Any:
    """`2` is a count; `0,1`, `device=0` and UUIDs are a list; `all` and `none` are themselves."""
    if text.isdecimal():
        return int(text)
    if text in ("all", "none"):
        return text
    parts = text.removeprefix("device=").strip("[]").split(",")
    return [int(part) if part.strip().isdecimal() else part.strip() for part in parts if part.strip()]


def _assign(data: dict[str, Any], entry: dict[str, Any], assignment: str) -> None:
    """`--set FIELD=VALUE`: a field of the model, or of the stack where the name says so (`storage.path`)."""
    name, equals, value = assignment.partition("=")
    if not equals or not name:
        raise SpecError("command line", [Mistake("--set", f"{assignment!r} is not FIELD=VALUE")])
    try:
        parsed = read_value(value)
    except NOT_YAML:
        parsed = value
    *parents, last = name.replace("-", "_").split(".")
    place = data if (parents or [last])[0] in StackSpec.model_fields else entry
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise SpecError("command line", [Mistake("--set", f"{parent} holds no fields")])
    place[last] = parsed
