"""Loads the logs in `reports/`: error lines of public reports, which were not provoked here.

The error lines are the reports' own, as `source` in the first line of each file says. Service prefixes, dates and
frames around them were put in, and names, hosts and paths were replaced. `shown` is the line that shows the cause.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from stackgen.diagnose import Evidence
from stackgen.runtimes.observation.evidence import collect_from_log
from stackgen.stack.load import parse_stack

FOLDER = Path(__file__).parent / "reports"


@dataclass(frozen=True)
class Report:
    """`rule` is the id that must come first ("" if the log shows no failure), `shown` must be in its evidence."""

    name: str
    rule: str
    shown: str
    source: str
    evidence: Evidence
    text: str


def load_report(path: Path) -> Report:
    first, _, text = path.read_text("utf-8").partition("\n")
    head = json.loads(first.removeprefix("# "))
    evidence = collect_from_log(text)
    if stack := head.get("stack"):
        evidence = replace(evidence, spec=parse_stack(stack))
    return Report(path.stem, head["rule"], head["shown"], head["source"], evidence, text)


def load_reports() -> list[Report]:
    return [load_report(path) for path in sorted(FOLDER.glob("*.log"))]
