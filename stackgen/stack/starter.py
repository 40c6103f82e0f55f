"""`stackgen init`: a commented stack.yaml that is documentation at once, its schema, and a .env with a new key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from stackgen.errors import StackgenError
from stackgen.render.write import write_atomically
from stackgen.resources import templates_dir
from stackgen.stack.envfile import create_env
from stackgen.stack.folder import from_flags
from stackgen.stack.schema import MODELINE, stack_schema
from stackgen.targets.compose import quoted

__all__ = ["write_starter"]


def write_starter(folder: Path, engine: str, model: str, gpus: str, file: str | None = None) -> list[Path]:
    """Writes the files into `folder`; an existing stack.yaml is an error, an existing .env is left alone.

    `file` is the GGUF of a Hub repository, for llama.cpp. Returns the paths written. Raises SpecError when engine,
    model or GPUs are wrong: nothing is written then.
    """
    path = folder / "stack.yaml"
    if path.exists():
        raise StackgenError(f"{path} is there already", "edit it, or name another folder")
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:60] or "stack"
    from_flags(model, {"engine": engine, "gpus": gpus, "name": name, "file": file}, [])
    values = {
        "name": _word(name),
        "model": _word(model),
        "engine": engine + (f"\n    file: {_word(file)}" if file else ""),
        "gpus": _yaml_gpus(gpus),
        "modeline": MODELINE,
    }
    template = (templates_dir() / "stack.yaml.txt").read_text("utf-8")
    text = re.sub(r"@(\w+)@", lambda match: values[match[1]], template)
    write_atomically(path, text)
    schema = folder / "stack.schema.json"
    write_atomically(schema, json.dumps(stack_schema(), indent=2) + "\n")
    return [path, schema, *([folder / ".env"] if create_env(folder) else [])]


def _word(text: str) -> str:
    """`text` as a YAML scalar: a folder may be called 2024, and a path may hold a `#`."""
    return text if re.fullmatch(r"[A-Za-z./][A-Za-z0-9_./-]*", text) and yaml.safe_load(text) == text else quoted(text)


def _yaml_gpus(text: str) -> str:
    listed = text.removeprefix("device=")
    return text if text.isdigit() or text in ("all", "none") else f"[{listed}]"
