"""Findings as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stackgen.doctor.finding import Finding
from stackgen.doctor.table import count_by_status, exit_code

__all__ = ["as_json", "as_text"]

# symbol and ANSI color of each status, in the order in which they are printed
SYMBOLS = {"fail": ("✗", "31"), "warn": ("!", "33"), "unknown": ("?", "36"), "ok": ("✓", "32")}
TITLES = {
    "fail": "failures (the stack can't start)",
    "warn": "warnings",
    "unknown": "unknown on this machine",
    "ok": "passed",
}
VERDICTS = {0: "no failures", 1: "the stack can't start", 3: "the machine is not ready"}


def as_json(findings: Sequence[Finding], stack: str = "") -> dict[str, Any]:
    """The object that `doctor --json` prints; the doctor page of the documentation describes it."""
    code = exit_code(findings)
    return {"ok": code == 0, "exit_code": code, "stack": stack or None, "counts": count_by_status(findings),
            "findings": [asdict(finding) for finding in findings]}  # fmt: skip


def as_text(findings: Sequence[Finding], stack: str = "", color: bool = False, verbose: bool = False) -> str:
    """Findings grouped by status, worst first, then one summary line. `ok` findings only with `verbose`."""
    lines: list[str] = []
    for status, (symbol, code) in SYMBOLS.items():
        group = [finding for finding in findings if finding.status == status]
        if not group or (status == "ok" and not verbose):
            continue
        lines.append(f"{TITLES[status]}:")
        for one in group:
            mark = f"\033[{code}m{symbol}\033[0m" if color else symbol
            place = f"{one.place}: " if one.place else ""
            lines.append(f"  {mark} {one.status:7} {one.id} {place}{one.message}")
            # the same labels as in the report of `stackgen check`
            lines += [f"      {label}: {text}" for label, text in (("seen", one.evidence), ("fix", one.fix)) if text]
    total = count_by_status(findings)
    subject = stack or "this machine (no stack)"
    parts = [f"{total[status]} {status}" for status in SYMBOLS if total[status]]
    lines.append(f"{subject}: {VERDICTS[exit_code(findings)]} ({', '.join(parts) or 'no check ran'})")
    return "\n".join(lines)
