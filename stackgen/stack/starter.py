"""Writes the files of `stackgen init`: a commented stack.yaml, its JSON Schema, a .env with new keys, .gitignore."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from stackgen.catalog import find_parser
from stackgen.catalog.flags import PARSER_FLAGS
from stackgen.errors import StackgenError
from stackgen.render.read import stack_file_in
from stackgen.render.write import write_atomically
from stackgen.resources import templates_dir
from stackgen.stack.envfile import create_env
from stackgen.stack.folder import build_from_flags
from stackgen.stack.gitignore import complete_gitignore
from stackgen.stack.schema import MODELINE, stack_schema
from stackgen.targets.compose import quote

__all__ = ["write_starter"]


def write_starter(folder: Path, engine: str, model: str, gpus: str, file: str | None = None) -> list[Path]:
    """Writes the files to `folder` and returns their paths. An existing .env is not changed.

    `file` is a GGUF file of the Hub repository, for llama.cpp. Raises StackgenError if stack.yaml exists, and SpecError
    if the engine, model or GPUs are wrong. After an error, nothing is written.
    """
    path = stack_file_in(folder)
    if path.exists():
        hint = f"`stackgen render {folder}` writes missing files: .env with keys, and the rendered files"
        raise StackgenError(f"{path} already exists", f"edit the file, or choose another folder. {hint}")
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:60] or "stack"
    # only validates, so that an error is raised before anything is written
    spec = build_from_flags(model, {"engine": engine, "gpus": gpus, "name": name, "file": file}, []).spec
    values = {
        "name": _yaml_scalar(name),
        "model": _yaml_scalar(model),
        "engine": engine + (f"\n    file: {_yaml_scalar(file)}" if file else ""),
        "gpus": _yaml_gpus(gpus),
        "arch": _arch_line() if engine == "vllm" and gpus == "none" else "",
        "parsers": "".join(_parser_lines(engine, model)),
        "modeline": MODELINE,
    }
    # a text with placeholders, because a YAML library would drop the comments
    template = (templates_dir() / "stack.yaml.txt").read_text("utf-8")
    text = re.sub(r"@(\w+)@", lambda match: values[match[1]], template)
    write_atomically(path, text)
    schema = folder / "stack.schema.json"
    write_atomically(schema, json.dumps(stack_schema(), indent=2) + "\n")
    env = [folder / ".env"] if create_env(folder) else []
    return [path, schema, *env, *([folder / ".gitignore"] if complete_gitignore(folder, spec) else [])]


def _arch_line() -> str:
    # Linux reports aarch64, and macOS arm64
    return "cpu_arch: arm64       # of vLLM's image for the CPU\n" if platform.machine() in ("aarch64", "arm64") else ""


def _parser_lines(engine: str, model: str) -> Iterator[str]:
    """The parsers that the catalog names for the model; the names are vLLM's."""
    if engine != "vllm":
        return
    for field in PARSER_FLAGS:
        if fact := find_parser(field, model):
            yield f"    {field}: {_yaml_scalar(fact.value)}   # {fact.origin} names it ({fact.date})\n"


def _yaml_scalar(text: str) -> str:
    # quoted if YAML would not read the same text: a folder may have the name 2024, and a path may contain a `#`
    return text if re.fullmatch(r"[A-Za-z./][A-Za-z0-9_./-]*", text) and yaml.safe_load(text) == text else quote(text)


def _yaml_gpus(text: str) -> str:
    # `device=0` is the syntax of `docker run --gpus`
    listed = text.removeprefix("device=")
    return text if text.isdigit() or text in ("all", "none") else f"[{listed}]"
