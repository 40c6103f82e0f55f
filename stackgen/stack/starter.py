"""Writes the files of `stackgen init`: a commented stack.yaml, its JSON Schema, and a .env with new keys."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from stackgen.errors import StackgenError
from stackgen.render.write import write_atomically
from stackgen.resources import templates_dir
from stackgen.stack.envfile import create_env
from stackgen.stack.folder import build_from_flags
from stackgen.stack.schema import MODELINE, stack_schema
from stackgen.targets.compose import quote

__all__ = ["write_starter"]


def write_starter(folder: Path, engine: str, model: str, gpus: str, file: str | None = None) -> list[Path]:
    """Writes the files to `folder` and returns their paths. An existing .env is not changed.

    `file` is a GGUF file of the Hub repository, for llama.cpp. Raises StackgenError if stack.yaml exists, and SpecError
    if the engine, model or GPUs are wrong. After an error, nothing is written.
    """
    path = folder / "stack.yaml"
    if path.exists():
        raise StackgenError(f"{path} already exists", "edit it, or choose another folder")
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:60] or "stack"
    # only validates, so that an error is raised before anything is written
    build_from_flags(model, {"engine": engine, "gpus": gpus, "name": name, "file": file}, [])
    values = {
        "name": _yaml_scalar(name),
        "model": _yaml_scalar(model),
        "engine": engine + (f"\n    file: {_yaml_scalar(file)}" if file else ""),
        "gpus": _yaml_gpus(gpus),
        "modeline": MODELINE,
    }
    # a text with placeholders, because a YAML library would drop the comments
    template = (templates_dir() / "stack.yaml.txt").read_text("utf-8")
    text = re.sub(r"@(\w+)@", lambda match: values[match[1]], template)
    write_atomically(path, text)
    schema = folder / "stack.schema.json"
    write_atomically(schema, json.dumps(stack_schema(), indent=2) + "\n")
    return [path, schema, *([folder / ".env"] if create_env(folder) else [])]


def _yaml_scalar(text: str) -> str:
    # quoted if YAML would not read the same text: a folder may have the name 2024, and a path may contain a `#`
    return text if re.fullmatch(r"[A-Za-z./][A-Za-z0-9_./-]*", text) and yaml.safe_load(text) == text else quote(text)


def _yaml_gpus(text: str) -> str:
    # `device=0` is the syntax of `docker run --gpus`
    listed = text.removeprefix("device=")
    return text if text.isdigit() or text in ("all", "none") else f"[{listed}]"
