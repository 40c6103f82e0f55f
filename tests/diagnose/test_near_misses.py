"""Lines that resemble the words of a rule, but have another cause; and what is left of a diagnosis without its rule.

`near_misses.tsv` has one log a row: the rule that must come first ("" for any), rules that must not apply, words of
the cause or fix, the log's kind, its lines (separated by ⏎) and their source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from stackgen.diagnose import Evidence, Finding, ServiceEvidence, diagnose, rule_engine
from stackgen.diagnose.rule import Rule
from stackgen.diagnose.rules import RULES
from stackgen.runtimes.observation.evidence import collect_from_log
from tests.diagnose.fixtures import load_fixtures
from tests.diagnose.reports import load_reports

TABLE = Path(__file__).parent / "near_misses.tsv"
# what a source of a rule names: a file of a program, a thread, a version that was seen, or stackgen's own text
REFERENCE = re.compile(
    r"\w\.(?:py|go|cc|cpp|cuh?|c|h|rs|sh)\b|(?:issues?|pull requests?|commit) [0-9a-f]+|(?:was|were) reproduced(?! )|"
    r"reproduced (?:with|on|by)|recorded answers|/metrics of|stackgen check|Docker reports|`docker ps`|errno \d+|"
    r"scripts?/|\d\.\d+"
)


@dataclass(frozen=True)
class Row:
    expected: str
    never: tuple[str, ...]
    words: str
    where: str
    text: str
    source: str


def load_rows() -> list[Row]:
    rows = [line.split("\t") for line in TABLE.read_text("utf-8").splitlines()[1:]]
    return [Row(one, tuple(never.split()), words, where, text.replace(" ⏎ ", "\n"), source)
            for one, never, words, where, text, source in rows]  # fmt: skip


def diagnose_row(row: Row) -> tuple[Finding, ...]:
    if row.where == "compose":
        return diagnose(Evidence(compose_output=row.text))
    if row.where == "log":
        return diagnose(collect_from_log(row.text))
    service = ServiceEvidence("a", engine=row.where, state="exited", exit_code=1, log=row.text)
    return diagnose(Evidence((service,)))


@pytest.mark.parametrize("row", load_rows(), ids=lambda one: f"{one.expected}-{one.text[:40]}")
def test_a_line_with_another_cause_is_not_taken_for_the_rules_own(row: Row) -> None:
    found = diagnose_row(row)
    assert not {one.id for one in found} & set(row.never), (found[0].id, found[0].evidence)
    if row.expected:
        first = found[0]
        assert first.id == row.expected, (first.id, first.title, first.evidence)
        assert row.words in f"{first.cause} {first.fix}", (first.cause, first.fix)


@pytest.mark.parametrize("rule", RULES, ids=lambda one: one.id)
def test_every_rule_names_where_its_words_come_from(rule: Rule) -> None:
    assert REFERENCE.search(rule.source), rule.source
    assert not re.search(r"(?:many|in) public reports?|from memory", rule.source), rule.source


# a log whose rule is removed may be explained by these, which are true of it as well: (its rule, what is left)
ALSO_TRUE = {
    # the general message of the same cause
    ("SG-M004", "SG-M008"), ("SG-M005", "SG-M008"), ("SG-M007", "SG-M008"), ("SG-M013", "SG-M008"),
    ("SG-M006", "SG-M007"), ("SG-M010", "SG-G011"), ("SG-A002", "SG-A003"), ("SG-G027", "SG-G006"),
    ("SG-G016", "SG-G006"), ("SG-A042", "SG-C051"),
    ("SG-C050", "SG-C056"),
    ("SG-H006", "SG-H010"), ("SG-G042", "SG-G011"), ("SG-D021", "SG-A001"), ("SG-F003", "SG-F007"),
    ("SG-A025", "SG-A011"), ("SG-S006", "SG-S003"), ("SG-A031", "SG-A020"), ("SG-G048", "SG-A020"),
    ("SG-G042", "SG-G034"), ("SG-A030", "SG-A025"), ("SG-M018", "SG-A011"), ("SG-D028", "SG-V004"),
    ("SG-H007", "SG-H020"), ("SG-H011", "SG-H020"), ("SG-H012", "SG-H020"), ("SG-H013", "SG-H020"),
    ("SG-G004", "SG-G034"), ("SG-G064", "SG-G003"), ("SG-C014", "SG-G011"), ("SG-G022", "SG-G003"),
    # what follows from it: an image that could not be stored
    ("SG-H008", "SG-D002"),
    # the scheduler's message, whatever its reasons
    ("SG-K001", "SG-K016"), ("SG-K002", "SG-K016"), ("SG-K003", "SG-K016"), ("SG-K005", "SG-K016"),
    ("SG-K006", "SG-K016"), ("SG-K023", "SG-K011"),
    # what is left of the events: the container restarts
    ("SG-K002", "SG-K026"), ("SG-G003", "SG-K026"),
    # the reason of the driver, in the message of the kubelet
    ("SG-K022", "SG-G016"),
    # the status that the client of a proxy gets
    ("SG-C012", "SG-C048"), ("SG-C020", "SG-C048"),
    # the missing path, whoever lists it; the pod of a container that ended
    ("SG-G026", "SG-D006"), ("SG-L011", "SG-K026"), ("SG-K009", "SG-K026"),
    # the state of the container
    ("SG-D007", "SG-D012"), ("SG-D007", "SG-D034"), ("SG-D011", "SG-C008"),
    ("SG-D024", "SG-D050"),
    # the backtrace below the check of llama.cpp, which names no check
    ("SG-A050", "SG-A051"), ("SG-A053", "SG-A051"), ("SG-A054", "SG-A051"),
    # an object of SGLang lacks what its code uses
    ("SG-X011", "SG-V045"),
    # the KeyError from which Transformers makes its message
    ("SG-V007", "SG-V080"),
}  # fmt: skip
# rules that repeat what the message says, without a cause of their own
GENERAL = ("combinations", "engine_messages", "gpu_kernels", "messages", "packages", "sizes", "surroundings")


def general_rules() -> set[str]:
    ids: set[str] = set()
    for name in GENERAL:
        path = Path(rule_engine.__file__).parent / "rules" / f"{name}.py"
        ids |= set(re.findall(r'^\s+"(SG-[A-Z]\d+)",$', path.read_text("utf-8"), re.M)) if path.exists() else set()
    return ids


LOGS = [("report", one.name, one.evidence) for one in load_reports()] + [
    # the rules of flags and model configurations match the messages of one program each
    ("log", one.name, one.evidence)
    for one in load_fixtures()
    if re.match(r"SG-[DGHLM]", one.rule)
]


@pytest.mark.parametrize("log", LOGS, ids=lambda one: one[1])
def test_without_its_rule_a_log_gets_no_other_cause(
    log: tuple[str, str, Evidence], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pattern that is too general shows itself when the rule that usually comes before it is missing."""
    evidence = log[2]
    before = diagnose(evidence)
    if not before or before[0].id == "SG-0000":
        return
    own = before[0].id
    monkeypatch.setattr(rule_engine, "RULES", tuple(one for one in RULES if one.id != own))
    left = [one for one in diagnose(evidence) if one.id not in {known.id for known in before}]
    allowed = {"SG-0000", *general_rules(), *(other for rule, other in ALSO_TRUE if rule == own)}
    wrong = [(one.id, one.evidence[:1]) for one in left if one.id not in allowed]
    assert wrong == [], f"without {own}"
