"""The page docs/reference/manifest-rules.md: each planted mistake, and what a real API server answers to it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.kubernetes.planted import EFFECTS, MISTAKES, NOT_SENT, TWINS

__all__ = ["rules_page"]

RECORDED = Path(__file__).parents[1] / "tests" / "cluster" / "recorded" / "mistakes.json"
INTRO = """\
`stackgen render --target kubernetes` never writes the mistakes on this page. The tests apply rules to all manifests of
the examples. For each rule, the tests also make at least one mistake, which the rule must find. All mistakes except
one were also sent to a real API server (Kubernetes {version}, `kubectl apply --server-side --dry-run=server
--validate=strict`).

The API server refuses {refused} of {count} mistakes. It accepts the other {accepted}, which show up only later, in a
running cluster. Before a start, only the rules find these {accepted}. This API server is older than Pod Security and
resource claims, and the webhooks of LeaderWorkerSet and KEDA did not run.
"""
VERSION = "1.20.2"


def rules_page(note: str) -> str:
    """Returns the page, with `note` at the top."""
    answers: dict[str, str] = json.loads(RECORDED.read_text())
    rules = {name: rule for name, (rule, _) in MISTAKES.items()} | {TWINS: "twins"}
    refused = [name for name in rules if name not in NOT_SENT and answers[name] != "accepted"]
    accepted = [name for name in rules if name not in refused]
    count = len(rules) - len(NOT_SENT)
    intro = INTRO.format(version=VERSION, count=count, refused=len(refused), accepted=count - len(refused))
    parts = [note, "# Mistakes in manifests\n", intro]
    parts += ["## Accepted by the API server\n", "| mistake | rule | what happens |", "|---|---|---|"]
    parts += [f"| {name} | `{rules[name]}` | {_cell(EFFECTS[name])} |" for name in accepted]
    parts += ["", "## Refused by the API server\n", "| mistake | rule | its message |", "|---|---|---|"]
    parts += [f"| {name} | `{rules[name]}` | {_code(answers[name])} |" for name in refused]
    return "\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    # a message that contains backticks
    return f"`` {_cell(text)} ``" if "`" in text else f"`{_cell(text)}`"
