"""Pages of rules: for the terminal, for docs/errors/, and findings as rustc would tell them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stackgen.diagnose import diagnose
from stackgen.diagnose.explain import find_rule, markdown, page, told
from stackgen.diagnose.rule import Edit, Finding, Rule
from stackgen.diagnose.rules import RULES
from stackgen.errors import StackgenError
from tests.diagnose.fixtures import LOGS, load

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("rule", RULES, ids=lambda one: one.id)
def test_every_rule_has_a_page(rule: Rule) -> None:
    for text in (page(rule), markdown(rule)):
        said = text.partition("Told by")[0]
        assert rule.id in text and not re.search(r"\{[a-z_]+\}|\[\[", said), said


@pytest.mark.parametrize(("id", "hint"), [("SG-V0012", "did you mean SG-V0"), ("SG-V112", "did you mean SG-V"),
                                          ("banana", "lists them all"), ("SG-0000", "lists them all")])  # fmt: skip
def test_an_unknown_id_is_refused_with_the_nearest(id: str, hint: str) -> None:
    with pytest.raises(StackgenError) as raised:
        find_rule(id)
    assert hint in raised.value.hint and raised.value.exit_code == 2


def test_ids_in_any_case_and_without_the_prefix() -> None:
    assert find_rule("sg-v012") is find_rule("V012") is find_rule("SG-V012")


def test_older_wrong_advice_is_corrected_where_it_is_looked_for() -> None:
    eager = [one.id for one in RULES if "continuous batching" in one.explain.lower()]
    length = [one.id for one in RULES if "batch size" in one.explain and "max_model_len" in one.explain]
    assert {"SG-S003", "SG-S005", "SG-M006"} <= set(eager)
    assert {"SG-V001", "SG-V012", "SG-S002"} <= set(length)


def test_a_finding_is_told_like_an_error_of_rustc() -> None:
    edit = Edit(("models", 0, "max_model_len"), "4096", "8192")
    found = Finding("SG-V012", "the KV cache is too small", "vllm-a", "too small", ("To serve …",), "lower it", edit)
    assert told(found).splitlines() == [
        "error[SG-V012]: the KV cache is too small",
        "  vllm-a: To serve …",
        "  cause: too small",
        "  fix: lower it",
        "       in stack.yaml:",
        "       models[0]:",
        "         max_model_len: 4096    # was 8192",
        "  more: stackgen explain SG-V012",
    ]
    assert told(found, first=False).startswith("also[SG-V012]")


def test_a_real_one_is_told() -> None:
    text = told(diagnose(load(LOGS / "SG-V012-kvsmall.log").evidence)[0])
    assert "max_model_len: 2097024" in text and "Engine core" not in text


def test_the_generated_pages_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "generate_docs.py"), "--check"],
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert "errors/" not in done.stderr, done.stderr
    names = {path.stem for path in (ROOT / "docs" / "errors").glob("SG-*.md")}
    assert names == {one.id for one in RULES}
