"""A report for a colleague or a bug tracker: evidence, logs and rendered files as a tarball, without secrets."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.explain import told
from stackgen.diagnose.gpus import summary
from stackgen.diagnose.model import Finding
from stackgen.diagnose.secrets import Scrubber

__all__ = ["pack"]

FOLDER = "stackgen-report"


def pack(
    evidence: Evidence, findings: tuple[Finding, ...], files: Mapping[str, str], versions: Mapping[str, str]
) -> bytes:
    """The tarball (gzip). `files` are rendered files by path; each text is scrubbed, `.env` keeps only its names."""
    scrub = Scrubber(evidence.secrets)
    texts = {
        "README.txt": "Made by `stackgen diagnose --bundle`. Secrets are removed; still look it through.\n",
        "findings.txt": "\n\n".join(told(one, first=not index) for index, one in enumerate(findings)) + "\n",
        "findings.json": _json(_leaves([one.to_json() for one in findings], scrub)),
        "evidence.json": _json(_leaves(_evidence(evidence), scrub)),
        "versions.json": _json(dict(versions)),
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
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as tar:
        for name, text in texts.items():
            data = scrub(text).encode("utf-8", "replace")
            # no owner, no time of this machine
            entry = tarfile.TarInfo(f"{FOLDER}/{scrub(name)}")
            entry.size, entry.mode = len(data), 0o600
            tar.addfile(entry, io.BytesIO(data))
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


def _leaves(data: Any, scrub: Scrubber) -> Any:
    """`data` with every text scrubbed: once inside of JSON, quotes and line ends would hide a secret."""
    if isinstance(data, dict):
        return {name: _leaves(value, scrub) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_leaves(one, scrub) for one in data]
    return scrub(data) if isinstance(data, str) else data


def _names_only(text: str) -> str:
    """The names of `.env`, and whether each has a value."""
    lines = []
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        # a comment may hold an old key
        if equals and not line.lstrip().startswith("#"):
            lines.append(f"{name.strip()}={'set' if value.strip() else ''}")
    return "\n".join(lines) + "\n"


def _name(path: str) -> str:
    return path.replace("..", "_").strip("/") or "log"


def _json(data: object) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n"
