"""A report for a colleague or a bug tracker: evidence, logs and rendered files as a tarball, without secrets."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import asdict

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.explain import told
from stackgen.diagnose.gpus import summary
from stackgen.diagnose.rule import Finding
from stackgen.diagnose.secrets import Scrubber, stack_secrets

__all__ = ["pack"]

FOLDER = "stackgen-report"
# a value in quotes may go on in the next lines
VARIABLE = re.compile(
    r"(?m)^[ \t]*(?:export[ \t]+)?(?P<name>[\w.-]+)[ \t]*=[ \t]*(?P<value>\"(?:\\.|[^\"\\])*\"|'[^']*'|[^\n]*)"
)


def pack(
    evidence: Evidence, findings: tuple[Finding, ...], files: Mapping[str, str], versions: Mapping[str, str]
) -> bytes:
    """The tarball (gzip). `files` are rendered files by path; each text is scrubbed, `.env` keeps only its names."""
    scrub = Scrubber((*evidence.secrets, *stack_secrets(evidence.spec, evidence.plan)))
    # clean already, and still JSON
    data = {
        "findings.json": [one.to_json() for one in findings],
        "evidence.json": _evidence(evidence),
        "versions.json": dict(versions),
    }
    texts = {
        "README.txt": "Made by `stackgen diagnose --bundle`. Secrets are removed; still look it through.\n",
        "findings.txt": "\n\n".join(told(one, first=not index) for index, one in enumerate(findings)) + "\n",
    }
    for service in evidence.services:
        texts[f"logs/{_name(service.service)}.log"] = service.log
        if service.metrics:
            texts[f"metrics/{_name(service.service)}.txt"] = service.metrics
    if evidence.gpus:
        texts["gpus.txt"] = "\n".join(summary(evidence.gpus)) + "\n"
    if evidence.compose_output:
        texts["logs/compose-up.txt"] = evidence.compose_output
    for path, text in files.items():
        texts[f"files/{_name(path)}"] = _names_only(text) if path.rpartition("/")[2].startswith(".env") else text
    clean = {name: scrub(text) for name, text in texts.items()} | {
        name: json.dumps(scrub.tree(one), indent=2, ensure_ascii=False, default=str) + "\n"
        for name, one in data.items()
    }
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as tar:
        for name, text in clean.items():
            packed = text.encode("utf-8", "replace")
            # no owner, no time of this machine
            entry = tarfile.TarInfo(f"{FOLDER}/{scrub(name)}")
            entry.size, entry.mode = len(packed), 0o600
            tar.addfile(entry, io.BytesIO(packed))
    return memory.getvalue()


def _evidence(evidence: Evidence) -> dict[str, object]:
    """All that is known but the logs, which have files of their own, and the secrets."""
    services = [{**asdict(one), "log": f"logs/{_name(one.service)}.log", "metrics": ""} for one in evidence.services]
    return {
        "services": services,
        "checks": [list(pair) for pair in evidence.checks],
        "gpus": evidence.gpus.to_json() if evidence.gpus else None,
        "spec": evidence.spec.model_dump(mode="json") if evidence.spec else None,
    }


def _names_only(text: str) -> str:
    """The names of `.env`, and whether each has a value. Comments are left out: one may hold an old key."""
    found = [(match["name"], match["value"].strip("\"' \t\r")) for match in VARIABLE.finditer(text)]
    return "".join(f"{name}={'set' if value else ''}\n" for name, value in found)


def _name(path: str) -> str:
    return path.replace("..", "_").strip("/") or "log"
