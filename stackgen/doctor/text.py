"""Findings for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stackgen.doctor.finding import Finding
from stackgen.doctor.table import counts, exit_code

__all__ = ["as_json", "as_text"]

SIGNS = {"fail": ("✗", "31"), "warn": ("!", "33"), "unknown": ("?", "36"), "ok": ("✓", "32")}
TITLES = {"fail": "will not work", "warn": "will be regretted", "unknown": "unknown here", "ok": "good"}


def as_json(findings: Sequence[Finding], stack: str = "") -> dict[str, Any]:
    """What `--json` prints; docs/doctor.md describes it."""
    code = exit_code(findings)
    return {"ok": code == 0, "exit_code": code, "stack": stack or None, "counts": counts(findings),
            "findings": [asdict(finding) for finding in findings]}  # fmt: skip


def as_text(findings: Sequence[Finding], stack: str = "", color: bool = False, verbose: bool = False) -> str:
    """Grouped by status, the worst first, with one line that sums up; what is good only where `verbose`."""
    lines: list[str] = []
    for status, (sign, code) in SIGNS.items():
        group = [finding for finding in findings if finding.status == status]
        if not group or (status == "ok" and not verbose):
            continue
        lines.append(f"{TITLES[status]}:")
        for one in group:
            mark = f"\033[{code}m{sign}\033[0m" if color else sign
            place = f"{one.place}: " if one.place else ""
            lines.append(f"  {mark} {one.status:7} {one.id} {place}{one.message}")
            lines += [f"      {word}: {text}" for word, text in (("seen", one.evidence), ("fix", one.fix)) if text]
    total = counts(findings)
    what = stack or "this machine, without a stack"
    word = {0: "nothing stands in the way", 1: "the stack can't start", 3: "the machine is not ready"}
    parts = [f"{total[status]} {status}" for status in SIGNS if total[status]]
    lines.append(f"{what}: {word[exit_code(findings)]} ({', '.join(parts) or 'nothing was looked at'})")
    return "\n".join(lines)
