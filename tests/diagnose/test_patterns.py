"""Every pattern of every rule has an example, and the words of its cause and fix that the example must produce.

`patterns.tsv` has one row for each pattern, so that a new pattern does not get the cause and fix of another message.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from stackgen.diagnose import Evidence, Finding, ServiceEvidence, diagnose
from stackgen.diagnose.rule import Rule
from stackgen.diagnose.rules import RULES
from tests.diagnose.test_texts import collect_examples

TABLE = Path(__file__).parent / "patterns.tsv"
EXAMPLES = collect_examples()
WITH_PATTERNS = [one for one in RULES if one.all_patterns]


def load_table() -> dict[tuple[str, str], tuple[str, str]]:
    """Words of the cause and of the fix, by rule and pattern."""
    rows = [line.split("\t") for line in TABLE.read_text("utf-8").splitlines()[1:]]
    return {(rule, pattern): (cause, fix) for rule, pattern, cause, fix in rows}


EXPECTED = load_table() if TABLE.exists() else {}


def find_example(rule: Rule, pattern: re.Pattern[str]) -> str:
    """A line that no earlier variant of the rule matches: such a line gets the cause and fix of this pattern."""
    groups = [one.patterns for one in rule.variants if not one.applies] + [rule.patterns]
    own = next(index for index, group in enumerate(groups) if pattern in group)
    earlier = [one for group in groups[:own] for one in group]
    lines = [line for line in EXAMPLES[rule.id] if pattern.search(line)]
    return next(line for line in lines if not any(one.search(line) for one in earlier))


def diagnose_line(rule: Rule, line: str) -> Finding:
    engine = rule.engines[0] if rule.engines else ""
    makers = "HIP error ROCm0\n" if rule.drivers == ("amd",) else ""
    if "log" in rule.inputs:
        status = '\nINFO: 10.0.0.1:4 - "POST /v1/chat/completions HTTP/1.1" 400 Bad Request' if rule.refusal else ""
        state, health = ("running", "healthy") if rule.refusal else ("exited", "")
        level = "ERROR 08-01 10:12:09 [x.py:1] " if rule.refusal else ""
        log = f"{makers}{level}{line}{status}"
        service = ServiceEvidence("a", engine=engine, state=state, health=health, exit_code=1, log=log)
        evidence = Evidence((service,))
    elif "compose" in rule.inputs:
        evidence = Evidence(compose_output=line)
    else:
        check, _, message = line.partition(": ")
        evidence = Evidence(checks=((check, message),))
    return next(one for one in diagnose(evidence) if one.id == rule.id)


@pytest.mark.parametrize("rule", WITH_PATTERNS, ids=lambda one: one.id)
def test_every_pattern_produces_its_own_cause_and_fix(rule: Rule) -> None:
    for pattern in rule.all_patterns:
        found = diagnose_line(rule, find_example(rule, pattern))
        cause, fix = EXPECTED[rule.id, pattern.pattern]
        assert cause in found.cause and fix in found.fix, (pattern.pattern, found.cause, found.fix)
        assert cause and fix and "?" not in found.cause


def test_the_table_has_no_row_without_a_pattern() -> None:
    patterns = {(one.id, pattern.pattern) for one in RULES for pattern in one.all_patterns}
    assert set(EXPECTED) == patterns


def test_patterns_with_different_fixes_are_different_rows() -> None:
    fixes = defaultdict(set)
    for (rule, _), (_, fix) in EXPECTED.items():
        fixes[rule].add(fix)
    assert {"SG-D002", "SG-D010", "SG-G002", "SG-G005", "SG-V006", "SG-V020"} <= {
        rule for rule, texts in fixes.items() if len(texts) > 1
    }
