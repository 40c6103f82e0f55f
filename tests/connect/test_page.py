"""docs/clients.md: generated from the recorded results, for every client that has a recipe."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType

import pytest

from stackgen.connect.recipe import recipe_names
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def clients() -> ModuleType:
    spec = importlib.util.spec_from_file_location("clients", ROOT / "benchmarks" / "clients.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_recorded_results(clients: ModuleType) -> None:
    results = json.loads(clients.RESULTS.read_text())
    assert clients.PAGE.read_text() == clients.render_page(results)
    assert set(results) == set(recipe_names())


def test_a_failure_has_its_reason_on_the_page(clients: ModuleType) -> None:
    row = {"date": "2026-11-28", "known": "no API", "version": "1", "outcome": "fails",
           "text": "exit code 1: `x` | <b>"}  # fmt: skip
    page = clients.render_page({"codex": {"fastchat direct": row}})
    assert "| codex | 1 |  |  |  |  | fails |  |" in page
    reason = "`exit code 1: x b`. Before the client starts, `stackgen connect` reports this problem."
    assert f"- codex, fastchat direct: {reason}" in page
