"""Which endpoints a command line means, and that what it names is what is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackgen.cli import build_parser
from stackgen.endpoints import from_words

STACK = """
name: two
models:
  - {model: o/a, engine: vllm, gpus: [0], served_names: [a, alias]}
  - {model: o/b, engine: vllm, gpus: [1], served_names: [b]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "stack.yaml").write_text(STACK)
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=of-the-stack\n")
    return str(tmp_path)


def targets(*words: str) -> list[tuple[tuple[str, ...], str | None]]:
    return [(target.models, target.api_key) for target in from_words(build_parser().parse_args(["check", *words]))]


def test_a_stack_means_all_its_endpoints(folder: str) -> None:
    assert targets(folder) == [(("a", "alias"), "of-the-stack"), (("b",), "of-the-stack")]


def test_a_model_picks_the_endpoint_that_serves_it(folder: str) -> None:
    assert targets(folder, "--model", "b") == [(("b",), "of-the-stack")]
    assert targets(folder, "--model", "alias") == [(("a", "alias"), "of-the-stack")]


def test_a_model_that_no_endpoint_serves_is_asked_for_all_the_same(folder: str) -> None:
    """Else the check of a misspelled name would pass on another model."""
    assert targets(folder, "--model", "A") == [(("A",), "of-the-stack")]


def test_a_key_on_the_command_line_wins(folder: str) -> None:
    assert {key for _, key in targets(folder, "--api-key", "other")} == {"other"}
