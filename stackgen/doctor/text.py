"""Findings as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stackgen.doctor.finding import Check, Finding
from stackgen.doctor.table import CHECKS, count_by_status, exit_code, list_unchecked

__all__ = ["as_json", "as_text"]

# symbol and ANSI color of each status, in the order in which they are printed
SYMBOLS = {"fail": ("✗", "31"), "warn": ("!", "33"), "unknown": ("?", "36"), "ok": ("✓", "32")}
TITLES = {
    "fail": "failures (the stack can't start)",
    "warn": "warnings",
    "unknown": "not checked, because facts are missing",
    "ok": "passed",
}
# without the GPU driver's answer, none of these checks can know anything
GPU_CHECK = "gpu"
NEED_GPUS = (
    "driver", "gpu-ids", "gpu-memory", "mig", "ecc", "persistence", "mixed-gpus", "gpu-age", "gpu-taken", "dtype",
    "fit",
)  # fmt: skip
# a newcomer asks who can reach the stack, so the answer is shown although it is `ok`
ALWAYS_SHOWN = ("exposure",)
VERDICTS = {0: "no failures", 1: "the stack can't start", 3: "the machine is not ready"}


def as_json(findings: Sequence[Finding], stack: str = "", checks: Sequence[Check] = CHECKS) -> dict[str, Any]:
    """The object that `doctor --json` prints; the doctor page of the documentation describes it."""
    code = exit_code(findings)
    unchecked = [{"id": id, "reason": reason} for id, reason in list_unchecked(findings, bool(stack), checks).items()]
    return {"ok": code == 0, "exit_code": code, "stack": stack or None, "counts": count_by_status(findings),
            "findings": [asdict(finding) for finding in findings], "not_checked": unchecked}  # fmt: skip


def as_text(
    findings: Sequence[Finding], stack: str = "", color: bool = False, verbose: bool = False,
    checks: Sequence[Check] = CHECKS,
) -> str:  # fmt: skip
    """Findings grouped by status, worst first, then one summary line.

    Only with `verbose`: other `ok` findings than who can reach the ports, checks of GPUs if the driver does not answer,
    and the checks without a finding.
    """
    lines: list[str] = []
    folded = () if verbose else _fold(findings)
    for status, (symbol, code) in SYMBOLS.items():
        group = [finding for finding in findings if finding.status == status and finding not in folded]
        if status == "ok" and not verbose:
            group = [finding for finding in group if finding.check in ALWAYS_SHOWN]
        if not group:
            continue
        lines.append(f"{TITLES[status]}:")
        for one, following in zip(group, [*group[1:], None], strict=True):
            mark = f"\033[{code}m{symbol}\033[0m" if color else symbol
            place = (f"{stack}:{one.line}: " if one.line else "") + (f"{one.place}: " if one.place else "")
            # 7: the length of `unknown`, the longest status
            lines.append(f"  {mark} {one.status:7} {one.id} {place}{one.message}")
            # facts that are missing for several checks are named once, after the last of these checks
            if status == "unknown" and following and (one.evidence, one.fix) == (following.evidence, following.fix):
                continue
            # the same labels as in the report of `stackgen check`
            lines += [f"      {label}: {text}" for label, text in (("seen", one.evidence), ("fix", one.fix)) if text]
            if one.check == GPU_CHECK and folded:
                ids = " ".join(dict.fromkeys(other.id for other in folded))
                lines.append(f"      also not checked, because the GPUs are unknown: {ids}")
    if verbose:
        by_reason: dict[str, list[str]] = {}
        for id, reason in list_unchecked(findings, bool(stack), checks).items():
            by_reason.setdefault(reason, []).append(id)
        lines += ["not checked, because these checks do not apply:"] if by_reason else []
        lines += [f"  - {' '.join(ids)}: {reason}" for reason, ids in by_reason.items()]
    total = count_by_status(findings)
    subject = stack or "this machine (no stack)"
    parts = [f"{total[status]} {status}" for status in SYMBOLS if total[status]]
    result = exit_code(findings)
    verdict = "the cluster is not ready" if result == 3 and checks is not CHECKS else VERDICTS[result]
    lines.append(f"{subject}: {verdict} ({', '.join(parts) or 'no check ran'})")
    return "\n".join(lines)


def _fold(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings that say nothing more than that the GPU driver did not answer."""
    if not any(one.check == GPU_CHECK and one.status in ("fail", "unknown") for one in findings):
        return ()
    return tuple(one for one in findings if one.check in NEED_GPUS and one.status == "unknown")
