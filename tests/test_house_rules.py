"""Rules of this repository that a test can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stackgen.stack.schema import stack_schema

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "stackgen").rglob("*.py"))
RENDERED = sorted((ROOT / "compose").glob("*/compose.yaml"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_longer_than_300_lines(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= 300


def test_imports_run_one_way() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_help_imports_no_heavy_library() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "stackgen", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "argparse" in imported  # else the output was not parsed
    assert not imported & {"openai", "docker", "rich", "pydantic", "pydantic_core", "jinja2", "yaml", "httpx2"}


def test_every_public_name_has_a_docstring() -> None:
    undocumented = []
    for module in MODULES:
        tree = ast.parse(module.read_text())
        if not ast.get_docstring(tree):
            undocumented.append(str(module))
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):  # type: ignore[arg-type]
                undocumented.append(f"{module}:{node.lineno}")
    assert not undocumented


def test_every_field_of_the_stack_file_is_described() -> None:
    undocumented = []

    def walk(name: str, schema: dict[str, Any]) -> None:
        for field, inner in schema.get("properties", {}).items():
            if not inner.get("description"):
                undocumented.append(f"{name}.{field}")

    schema = stack_schema()
    walk("stack", schema)
    for name, definition in schema["$defs"].items():
        walk(name, definition)
    assert not undocumented


def test_no_image_uses_the_tag_latest() -> None:
    texts = [
        path for folder in ("templates", "compose", "stackgen") for path in (ROOT / folder).rglob("*") if path.is_file()
    ]
    found = [
        str(path)
        for path in texts
        if path.suffix not in (".gz", ".pyc", ".whl")
        and re.search(r"^\s*(FROM|image:).*:latest", path.read_text(), re.M)
    ]
    assert len(texts) > 50
    assert not found


@pytest.mark.parametrize("file", RENDERED, ids=lambda path: path.parent.name)
def test_examples_have_no_top_level_version(file: Path) -> None:
    assert not re.search(r"^version:", file.read_text(), re.M)


def test_the_promised_examples_exist() -> None:
    names = {file.parent.name for file in RENDERED}
    promised = (
        "vllm-one-gpu vllm-tensor-parallel-4 vllm-two-models vllm-cpu fastchat-one-gpu fastchat-two-models fastchat-cpu"
    )
    assert set(promised.split()) <= names
