"""Public commands, Compose files, units and values of 2025 and 2026: what an import reaches, and that nothing is lost.

The files say the same as their origins, with other names, hosts and paths; `sources.tsv` has the origins and dates.
"""

from __future__ import annotations

import os
import random
import shlex
from pathlib import Path

import pytest

from stackgen.engines.vllm import VllmModel
from stackgen.errors import SpecError
from stackgen.flags import load_flags
from stackgen.importing.source import Imported, import_text
from stackgen.importing.stack_file import build_text, find_problems
from stackgen.stack.load import parse_stack
from tests.importing.sources import MASK, Source, find_lost, find_untrue, read_sources

SOURCES = read_sources()


def run(source: Source) -> Imported:
    """The import of a source in a folder of its own, without variables of this machine."""
    found = import_text(source.path.read_text(), str(source.path), source.path.parent)
    found.problems = find_problems(build_text(found, source.path.name), source.path.parent)
    return found


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name not in ("PATH", "HOME"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("source", SOURCES, ids=lambda one: one.path.name)
def test_every_word_of_a_public_source_is_carried_or_named(source: Source) -> None:
    if source.result == "none":
        with pytest.raises(SpecError) as error:
            run(source)
        # the reason, and what to do
        assert "does not say which model" in error.value.message
        return
    found = run(source)
    # with the field `speculative`, stackgen checks the method, and has no dspark
    refused = source.path.name.startswith("03-") and "speculative" in VllmModel.model_fields
    assert found.result == ("notes" if refused else source.result)
    assert list(find_lost(source.path.read_text(), found)) == []
    assert list(find_untrue(found)) == []
    # a reason for everything that is not in the stack as the source says it
    assert all(item.reason for item in found.ledger.items if item.outcome not in ("carried", ""))


@pytest.mark.parametrize("source", [one for one in SOURCES if one.result != "none"], ids=lambda one: one.path.name)
def test_the_imported_file_is_a_stack_file(source: Source) -> None:
    found = run(source)
    text = build_text(found, source.path.name)
    # errors of values are reported as problems, and only these sources have one
    if found.problems:
        assert {one.path for one in found.problems} <= {"models[0].quantization", "models[0].load_format"}
    else:
        spec = parse_stack(text)
        assert [model.model for model in spec.models] == [one["model"] for one in found.assembled.data["models"]]


def test_there_are_enough_sources_and_the_account_is_not_blind() -> None:
    assert len(SOURCES) == 55
    assert len({one.path.name for one in SOURCES}) == 55
    assert sum(one.result == "whole" for one in SOURCES) > 25
    found = run(SOURCES[0])
    text = SOURCES[0].path.read_text()
    # the account itself must notice a lost word, and a field that says something else
    assert list(find_lost(text.replace("--port 8011", "--port 8011 --lost-flag 17"), found))
    found.assembled.data["models"][0]["max_model_len"] = 1
    assert list(find_untrue(found))


def test_no_flag_of_an_engine_disappears() -> None:
    """Random arguments from the engines' own tables: each is in a field, in extra_args, or has a reason."""
    chance = random.Random(20261129)
    for engine, start in (("vllm", "vllm serve example-org/model"), ("llamacpp", "llama-server -m /m/x.gguf")):
        known = load_flags(engine)
        assert known
        names = sorted(name for name in known.by_name if name not in ("-h", "--help", "--model", "-m", "--version"))
        for _ in range(60):
            words = shlex.split(start)
            for name in chance.sample(names, 8):
                words += (
                    [name, chance.choice(["1", "auto", "x y", "a=b", '{"k": 1}'])]
                    if known.by_name[name].get("value")
                    else [name]
                )
            found = import_text(shlex.join(words), "command", Path())
            told = [item.text for item in found.ledger.items]
            # values of flags such as --api-key are hidden
            assert len(told) == len(words)
            assert all(one == other or MASK in one for one, other in zip(told, words, strict=True))
            assert all(item.outcome for item in found.ledger.items)
            assert list(find_untrue(found)) == []
