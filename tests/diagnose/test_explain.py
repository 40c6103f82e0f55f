"""Pages of rules for the terminal and docs/errors/, and findings in the layout of rustc errors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stackgen.diagnose import diagnose
from stackgen.diagnose.explain import find_rule, format_finding, format_markdown, format_page
from stackgen.diagnose.rule import Edit, Finding, Rule
from stackgen.diagnose.rules import RULES
from stackgen.errors import StackgenError
from tests.diagnose.fixtures import LOGS, load_fixture

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("rule", RULES, ids=lambda one: one.id)
def test_every_rule_has_a_page(rule: Rule) -> None:
    for text in (format_page(rule), format_markdown(rule)):
        prose = re.split("Matches: |stackgen reports this cause when a line matches", text)[0]
        assert rule.id in text and not re.search(r"\{[a-z_]+\}|\[\[", prose), prose


@pytest.mark.parametrize(("id", "hint"), [("SG-V0012", "did you mean SG-V0"), ("SG-V112", "did you mean SG-V"),
                                          ("banana", "lists all rules"), ("SG-0000", "lists all rules")])  # fmt: skip
def test_an_unknown_id_suggests_the_closest_one(id: str, hint: str) -> None:
    with pytest.raises(StackgenError) as raised:
        find_rule(id)
    assert hint in raised.value.hint and raised.value.exit_code == 2


def test_ids_are_accepted_in_any_case_and_without_the_prefix() -> None:
    assert find_rule("sg-v012") is find_rule("V012") is find_rule("SG-V012")


def test_rules_correct_older_wrong_advice() -> None:
    eager = [one.id for one in RULES if "continuous batching" in one.explain.lower()]
    length = [one.id for one in RULES if "batch size" in one.explain and "max_model_len" in one.explain]
    assert {"SG-S003", "SG-S005", "SG-M006"} <= set(eager)
    assert {"SG-V001", "SG-V012", "SG-S002"} <= set(length)


def test_a_finding_is_laid_out_like_a_rustc_error() -> None:
    edit = Edit(("models", 0, "max_model_len"), "4096", "8192")
    found = Finding("SG-V012", "the KV cache is too small", "vllm-a", "too small", ("To serve …",), "lower it", edit)
    assert format_finding(found).splitlines() == [
        "error[SG-V012]: the KV cache is too small",
        "  vllm-a: To serve …",
        "  cause: too small",
        "  fix: lower it",
        "       in stack.yaml:",
        "       models[0]:",
        "         max_model_len: 4096    # was 8192",
        "  more: stackgen explain SG-V012",
    ]
    assert format_finding(found, first=False).startswith("also[SG-V012]")


def test_each_step_of_a_fix_has_its_own_line() -> None:
    fix = "lower it (a; b), or run `x; y`; if that does not help, raise it"
    found = Finding("SG-V012", "the KV cache is too small", "a", "too small", ("To serve …",), fix)
    assert format_finding(found).splitlines()[3:] == [
        "  fix: - lower it (a; b), or run `x; y`",
        "       - if that does not help, raise it",
        "  more: stackgen explain SG-V012",
    ]
    rule = find_rule("SG-M002")
    for page in (format_page(rule), format_markdown(rule)):
        assert "\n- if two models should share the GPU, " in page


def test_a_real_failure_is_formatted() -> None:
    text = format_finding(diagnose(load_fixture(LOGS / "SG-V012-kvsmall.log").evidence)[0])
    assert "max_model_len: 2097024" in text and "Engine core" not in text


@pytest.mark.parametrize("one", RULES, ids=lambda one: one.id)
def test_the_page_of_a_rule_says_what_to_do_without_a_log(one: Rule) -> None:
    """Where only a log decides about the fix, the page has a text of its own instead of a name in capitals."""
    page = format_markdown(one)
    for fix in re.findall(r"Fix:(?:\*\*)? (.*)", page):
        words = re.sub(r"\b[A-Z][A-Z-]*[A-Z]\b", "", fix)
        assert re.search(r"[a-z]{2,}", words), fix
        # a sentence that was still to be filled in
        assert not re.search(r"\b(REMEDY|PLACES)\b", fix), fix


def test_the_generated_pages_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "generate_docs.py"), "--check"],
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert "errors/" not in done.stderr, done.stderr
    names = {path.stem for path in (ROOT / "docs" / "errors").glob("SG-*.md")}
    assert names == {one.id for one in RULES}
