"""Loads the logs in `logs/`: complete, real if the first line says so, with what Docker reported about the service."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen.diagnose import Evidence, ServiceEvidence

LOGS = Path(__file__).parent / "logs"
STATES = ("role", "engine", "state", "health", "exit_code", "oom_killed", "restarts", "error", "health_log")


@dataclass(frozen=True)
class Fixture:
    """`rule` is the id that must come first, "" for a healthy log."""

    name: str
    rule: str
    real: bool
    evidence: Evidence
    text: str
    head: dict[str, Any]


def load_fixture(path: Path) -> Fixture:
    first, _, body = path.read_text("utf-8").partition("\n")
    head: dict[str, Any] = json.loads(first.removeprefix("# "))
    kind = head.get("kind", "log")
    if kind == "compose":
        evidence = Evidence(compose_output=body)
    elif kind == "check":
        evidence = Evidence(checks=((head["check"], body.strip()),))
    elif kind == "metrics":
        # the body is the text of /metrics; the log of that server is another fixture
        log = (LOGS / head["log"]).read_text("utf-8").partition("\n")[2]
        service = ServiceEvidence(head["service"], engine=head["engine"], state="running", health="healthy", log=log,
                                  metrics=body)  # fmt: skip
        evidence = Evidence((service,))
    else:
        states = {name: head[name] for name in STATES if name in head}
        evidence = Evidence((ServiceEvidence(head.get("service", "log"), log=body, **states),))
    return Fixture(path.stem, head["rule"], head["source"].startswith("real"), evidence, body, head)


def load_fixtures() -> list[Fixture]:
    return [load_fixture(path) for path in sorted(LOGS.glob("*.log"))]
