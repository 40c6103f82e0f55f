"""Charts of latency over throughput: one line for each run, a dot for each level of load.

templates/report/bench.html.j2 prints the SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stackgen.bench.result import Level, Run
from stackgen.check.report.plots import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Tick,
    duration_axis,
    format_duration,
    round_ticks,
)

__all__ = ["Curve", "CurveChart", "Dot", "curve_chart"]

X_LABEL = "tokens per second"


@dataclass(frozen=True, slots=True)
class Dot:
    """One level: its place in SVG units, and its load as text."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Curve:
    """The levels of one run, by load."""

    title: str
    dots: tuple[Dot, ...]

    @property
    def path(self) -> str:
        """The dots in the syntax of an SVG polyline."""
        return " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in self.dots)


@dataclass(frozen=True, slots=True)
class CurveChart:
    """A chart; `about` describes it for screen readers. `limit`: the y of a limit, and its text."""

    title: str
    about: str
    unit: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    limit: Tick | None = None
    x_label: str = X_LABEL
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM


def curve_chart(title: str, field: str, runs: Sequence[Run], limit: float | None = None) -> CurveChart | None:
    """The p95 of `field` (`ttft`, `itl` or `latency`) over the throughput of each run; None without a measurement."""
    values = [[(level, _p95(level, field)) for level in run.levels] for run in runs]
    known = [(level, seconds) for row in values for level, seconds in row if seconds is not None]
    if not known:
        return None
    scale, unit, y_values = duration_axis(max(*(seconds for _, seconds in known), limit or 0.0))
    x_values = round_ticks(max(level.tokens_per_second for level, _ in known))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(rate: float) -> float:
        return LEFT + width * rate / x_values[-1]

    def y(seconds: float) -> float:
        return TOP + height * (1 - seconds * scale / y_values[-1])

    curves = tuple(
        Curve(run.title, tuple(Dot(x(level.tokens_per_second), y(seconds), level.name)
                               for level, seconds in row if seconds is not None))
        for run, row in zip(runs, values, strict=True)
    )  # fmt: skip
    texts = "; ".join(
        f"{run.title}: " + ", ".join(f"{level.name} {run.unit} {level.tokens_per_second:.1f} tokens/s "
                                     f"{format_duration(seconds)}" for level, seconds in row if seconds is not None)
        for run, row in zip(runs, values, strict=True)
    )  # fmt: skip
    return CurveChart(
        title, f"{title}, 95th percentile, over {X_LABEL}. {texts}", unit, curves,
        tuple(Tick(x(value), f"{value:g}") for value in x_values),
        tuple(Tick(y(value / scale), f"{value:g}") for value in y_values),
        Tick(y(limit), f"limit {format_duration(limit)}") if limit is not None else None,
    )  # fmt: skip


def _p95(level: Level, field: str) -> float | None:
    found = getattr(level, field)
    return None if found is None else found.p95
