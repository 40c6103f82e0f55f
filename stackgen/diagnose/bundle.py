"""The bundle for a colleague or a bug tracker: evidence, logs and rendered files as a tarball, without secrets."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import asdict

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.explain import format_finding
from stackgen.diagnose.gpus import format_gpus
from stackgen.diagnose.rule import Finding
from stackgen.stack.redactor import SecretRedactor
from stackgen.stack.secrets import VARIABLE, find_stack_secrets

__all__ = ["build_bundle"]

FOLDER = "stackgen-report"


def build_bundle(
    evidence: Evidence, findings: tuple[Finding, ...], files: Mapping[str, str], versions: Mapping[str, str]
) -> bytes:
    """The bundle as a gzipped tarball.

    `files` maps the path of a rendered file to its text, `versions` a program to its version. Every text is redacted.
    From `.env`, only the names of variables are kept.
    """
    redact = SecretRedactor((*evidence.secrets, *find_stack_secrets(evidence.spec, evidence.plan)))
    # redacted value by value: redacting the printed JSON could break its syntax
    data = {
        "findings.json": [one.to_json() for one in findings],
        "evidence.json": _evidence_json(evidence),
        "versions.json": dict(versions),
    }
    texts = {
        "README.txt": "`stackgen diagnose --bundle` wrote these files and removed secrets from them. Review the files "
        "before you send them.\n",
        "findings.txt": "\n\n".join(format_finding(one, first=not index) for index, one in enumerate(findings)) + "\n",
    }
    for service in evidence.services:
        texts[f"logs/{_file_name(service.service)}.log"] = service.log
        if service.metrics:
            texts[f"metrics/{_file_name(service.service)}.txt"] = service.metrics
    if evidence.gpus:
        texts["gpus.txt"] = "\n".join(format_gpus(evidence.gpus)) + "\n"
    if evidence.compose_output:
        texts["logs/compose-up.txt"] = evidence.compose_output
    for path, text in files.items():
        is_env = path.rpartition("/")[2].startswith(".env")
        texts[f"files/{_file_name(path)}"] = _variable_names(text) if is_env else text
    redacted = {name: redact(text) for name, text in texts.items()} | {
        name: json.dumps(redact.redact_json(one), indent=2, ensure_ascii=False, default=str) + "\n"
        for name, one in data.items()
    }
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as tar:
        for name, text in redacted.items():
            content = text.encode("utf-8", "replace")
            # a plain TarInfo: a TarInfo from a file would contain the owner and times of this machine
            entry = tarfile.TarInfo(f"{FOLDER}/{redact(name)}")
            # readable by its owner only, as redaction may miss something private
            entry.size, entry.mode = len(content), 0o600
            tar.addfile(entry, io.BytesIO(content))
    return memory.getvalue()


def _evidence_json(evidence: Evidence) -> dict[str, object]:
    """The evidence without secrets and logs. Logs and metrics have their own files in the bundle."""
    services = [
        {**asdict(one), "log": f"logs/{_file_name(one.service)}.log", "metrics": ""} for one in evidence.services
    ]
    return {
        "services": services,
        "checks": [list(pair) for pair in evidence.checks],
        "gpus": evidence.gpus.to_json() if evidence.gpus else None,
        "machine": asdict(evidence.machine) if evidence.machine else None,
        "spec": evidence.spec.model_dump(mode="json") if evidence.spec else None,
    }


def _variable_names(text: str) -> str:
    """The names in `.env`, and whether each has a value. Comments are dropped: they may contain an old key."""
    found = [(match["name"], match["value"].strip("\"' \t\r")) for match in VARIABLE.finditer(text)]
    return "".join(f"{name}={'set' if value else ''}\n" for name, value in found)


def _file_name(path: str) -> str:
    # `..` could leave the folder where somebody unpacks the bundle
    return path.replace("..", "_").strip("/") or "log"
