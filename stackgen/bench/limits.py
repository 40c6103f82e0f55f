"""Up to which load a stack keeps the limits of a service level agreement (SLA)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stackgen.bench.result import Level, Run
from stackgen.check.report.plots import format_duration

__all__ = ["Limits", "Verdict", "judge"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper limits for the 95th percentiles, in seconds; None: no limit. A failed request breaks every level."""

    ttft: float | None = None
    itl: float | None = None
    latency: float | None = None

    def rows(self) -> Iterator[tuple[str, str, float]]:
        """Name of the field of a level, name for people, and seconds of each limit."""
        for field, name, value in (("ttft", "TTFT", self.ttft), ("itl", "inter-token latency", self.itl),
                                   ("latency", "latency", self.latency)):  # fmt: skip
            if value is not None:
                yield field, name, value

    def __bool__(self) -> bool:
        return any(True for _ in self.rows())


@dataclass(frozen=True, slots=True)
class Verdict:
    """`holds`: the highest level up to which all levels keep the limits. `breaks`: the next one, and `reason`."""

    holds: Level | None
    breaks: Level | None
    reason: str = ""

    def describe(self, run: Run) -> str:
        """One sentence."""
        if self.breaks is None:
            return f"every load stays within the limits, up to {run.describe_load(run.levels[-1])}"
        upto = (
            f"the loads stay within the limits up to {run.describe_load(self.holds)}"
            if self.holds
            else "no load stays within the limits"
        )
        return f"{upto}. At {run.describe_load(self.breaks)}, {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"holds": self.holds and self.holds.load, "breaks": self.breaks and self.breaks.load,
                "reason": self.reason or None}  # fmt: skip


def judge(run: Run, limits: Limits) -> Verdict:
    """Compares the 95th percentiles of each level with the limits, from the lowest load to the highest."""
    holds: Level | None = None
    for level in run.levels:
        if reason := _find_problem(level, limits):
            return Verdict(holds, level, reason)
        holds = level
    return Verdict(holds, None)


def _find_problem(level: Level, limits: Limits) -> str:
    if level.failed:
        return f"{level.failed} of {level.failed + level.succeeded} requests failed"
    if not level.succeeded:
        return "no request finished"
    for field, name, limit in limits.rows():
        seen = getattr(level, field)
        if seen is None:
            return f"the {name} was not measured"
        if seen.p95 > limit:
            return f"the p95 of the {name} is {format_duration(seen.p95)}, above {format_duration(limit)}"
    return ""
