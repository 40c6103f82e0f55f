"""Charts of latency over throughput: one line for each run, a dot for each level of load.

templates/report/bench.html.j2 prints the SVG.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stackgen.bench.result import Run
from stackgen.check.report.plots import (
    BOTTOM,
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
# higher than the charts of a check: curves of two runs are often close
HEIGHT = 228.0
# beyond this ratio, the lower latencies would be a flat line
LOGARITHMIC = 20.0
# SVG units: the width of a character, the height of a label, and its baseline and direction relative to a dot
CHARACTER, LINE = 6.6, 11.0
PLACES = ((0.0, 15.0, "middle"), (0.0, -7.0, "middle"), (7.0, 4.0, "start"), (-7.0, 4.0, "end"), (6.0, -6.0, "start"),
          (-6.0, -6.0, "end"), (6.0, 14.0, "start"), (-6.0, 14.0, "end"))  # fmt: skip
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Label:
    """A text in SVG units; `anchor` is the value of `text-anchor`."""

    x: float
    y: float
    text: str
    anchor: str

    @property
    def box(self) -> Box:
        """Left, top, right and bottom."""
        width = CHARACTER * len(self.text)
        left = self.x - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor]
        return left, self.y - LINE, left + width, self.y


@dataclass(frozen=True, slots=True)
class Dot:
    """One level: its place in SVG units, and the label with its load."""

    x: float
    y: float
    label: Label


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
    """A chart; `about` describes it for screen readers. `limit`: the y of a limit, with its label."""

    title: str
    about: str
    unit: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    limit: tuple[float, Label] | None = None
    x_label: str = X_LABEL
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM


def curve_chart(title: str, field: str, runs: Sequence[Run], limit: float | None = None) -> CurveChart | None:
    """The p95 of `field` (`ttft`, `itl` or `latency`) over the throughput of each run; None without a measurement.

    The axis of the latencies is logarithmic if they differ by more than a factor of 20.
    """
    values = [[(level, found.p95) for level in run.levels if (found := getattr(level, field))] for run in runs]
    known = [one for row in values for one in row]
    if not known:
        return None
    x_values = round_ticks(max(level.tokens_per_second for level, _ in known))
    seconds = [one for _, one in known] + ([limit] if limit is not None else [])
    unit, y_ticks, y = _latency_axis(min(seconds), max(seconds))

    def x(rate: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * rate / x_values[-1]

    places = [[(x(level.tokens_per_second), y(value), level.name) for level, value in row] for row in values]
    mark = None
    taken: list[Box] = []
    if limit is not None:
        mark = y(limit), _place_limit(f"limit {format_duration(limit)}", y(limit), places)
        taken.append(mark[1].box)
    taken += [(at - 3, height - 3, at + 3, height + 3) for row in places for at, height, _ in row]
    curves = tuple(Curve(run.title, tuple(Dot(at, height, _place_label(at, height, text, taken))
                                          for at, height, text in row))
                   for run, row in zip(runs, places, strict=True))  # fmt: skip
    texts = "; ".join(
        f"{run.title}: " + ", ".join(f"{level.name} {run.unit} {level.tokens_per_second:.1f} tokens/s "
                                     f"{format_duration(value)}" for level, value in row)
        for run, row in zip(runs, values, strict=True)
    )  # fmt: skip
    return CurveChart(title, f"{title}, 95th percentile, over {X_LABEL}. {texts}", unit, curves,
                      tuple(Tick(x(value), f"{value:g}") for value in x_values), y_ticks, mark)  # fmt: skip


def _latency_axis(smallest: float, largest: float) -> tuple[str, tuple[Tick, ...], Callable[[float], float]]:
    """The unit, the ticks, and the y of a number of seconds."""
    height = HEIGHT - TOP - BOTTOM
    scale, unit, linear = duration_axis(largest)
    if largest <= LOGARITHMIC * smallest or smallest <= 0:

        def y(seconds: float) -> float:
            return TOP + height * (1 - seconds * scale / linear[-1])

        return unit, tuple(Tick(y(value / scale), f"{value:g}") for value in linear), y
    powers = range(math.floor(math.log10(smallest)), math.ceil(math.log10(largest)) + 1)
    # 1e-9 absorbs floating-point errors
    steps = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(one for one in steps if one <= smallest * (1 + 1e-9))
    last = min(one for one in steps if one >= largest * (1 - 1e-9))
    span = math.log(last / first)

    def y_log(seconds: float) -> float:
        # rounding keeps a value at the edge of the chart inside it
        return round(TOP + height * (1 - math.log(seconds / first) / span), 3)

    shown = [one for one in steps if first <= one <= last]
    # over three decades, ticks at 2 and 5 would be too close
    if last > 1000 * first:
        shown = [one for one in shown if one in (first, last) or math.log10(one).is_integer()]
    return f"{unit}, logarithmic", tuple(Tick(y_log(one), f"{one * scale:g}") for one in shown), y_log


def _place_limit(text: str, y: float, places: Sequence[Sequence[tuple[float, float, str]]]) -> Label:
    """The label of a limit at that place on its line where it covers the fewest dots and curves."""
    ends = [Label(LEFT + 3, y - 3, text, "start"), Label(WIDTH - RIGHT - 3, y - 3, text, "end"),
            Label((LEFT + WIDTH - RIGHT) / 2, y - 3, text, "middle")]  # fmt: skip
    points = [(at, height) for row in places for at, height, _ in row]
    for row in places:
        for first, second in pairwise(row):
            points += [(first[0] + (second[0] - first[0]) * part / 20, first[1] + (second[1] - first[1]) * part / 20)
                       for part in range(1, 20)]  # fmt: skip
    boxes = [(at - 4, height - 4, at + 4, height + 4) for at, height in points]
    return min(ends, key=lambda end: sum(_overlap(end.box, box) for box in boxes))


def _place_label(x: float, y: float, text: str, taken: list[Box]) -> Label:
    """The label of a dot next to the dot, where it covers no other label, dot or axis; adds it to `taken`."""
    # below the plot are the ticks, and left of it those of the other axis
    axes: list[Box] = [(0.0, HEIGHT - BOTTOM, WIDTH, HEIGHT), (0.0, 0.0, LEFT, HEIGHT), (WIDTH, 0.0, 2 * WIDTH, HEIGHT)]
    labels = [Label(x + right, y + down, text, anchor) for right, down, anchor in PLACES]
    free = (one for one in labels if not any(_overlap(one.box, other) for other in (*axes, *taken)))
    label = next(free, labels[1])
    taken.append(label.box)
    return label


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
