"""Charts of latencies: computes where lines, dots and labels go; templates/report/plots.html.j2 prints the SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "BOTTOM", "HEIGHT", "LEFT", "RIGHT", "TOP", "WIDTH", "Bar", "BarChart", "LineChart", "Rule", "Tick", "bar_chart",
    "duration_axis", "format_duration", "line_chart", "round_ticks",
]  # fmt: skip

# the width of a phone's screen without margins: text has its full size on a phone, and is larger on wider screens
WIDTH, HEIGHT = 328.0, 168.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 14.0, 18.0, 34.0
# more points than pixels can't be seen; each group keeps its slowest point, because slow tokens matter
MAX_POINTS = 240
LABEL_GAP = 12.0
ROW_HEIGHT, BAR_LEFT = 30.0, 2.0
# longer names don't fit into the chart; the chart's description has the full name
MAX_NAME_LENGTH = 44


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: its position in SVG units, and its label."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A horizontal line at a level such as p99, in SVG units; `label_y` is moved so that labels don't overlap."""

    kind: str
    y: float
    label_y: float
    text: str


@dataclass(frozen=True, slots=True)
class LineChart:
    """Measurements in the order they were taken. `about` describes the chart for screen readers."""

    title: str
    about: str
    x_label: str
    unit: str
    points: tuple[tuple[float, float], ...]
    rules: tuple[Rule, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM

    @property
    def path(self) -> str:
        """The points in the syntax of an SVG polyline."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its name, shortened and in full, its formatted value, and its position and width in SVG units."""

    name: str
    full: str
    text: str
    y: float
    width: float


@dataclass(frozen=True, slots=True)
class BarChart:
    """One horizontal bar per name. `about` describes the chart for screen readers."""

    title: str
    about: str
    unit: str
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    height: float
    width: float = WIDTH
    left: float = BAR_LEFT

    @property
    def bottom(self) -> float:
        """The y of the axis."""
        return self.height - BOTTOM


def format_duration(seconds: float) -> str:
    """`0.4 ms`, `31 ms`, `1.25 s` or `3 min 20 s`: two to four significant digits."""
    # the thresholds are where rounding would change the number of digits, so 0.9999 is `1.00 s` and not `1000 ms`
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    # rounded first: 179.7 s is `3 min 0 s` and not `2 min 60 s`
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def line_chart(title: str, samples: Sequence[float], levels: Sequence[tuple[str, float]], x_label: str) -> LineChart:
    """A chart of `samples` (at least one, in seconds) with horizontal lines at `levels` (name, seconds)."""
    # the 0.0 is needed: max() of a single number raises TypeError
    scale, unit, ticks = duration_axis(max(*samples, *(value for _, value in levels), 0.0))
    top = ticks[-1]
    height = HEIGHT - TOP - BOTTOM

    def y(seconds: float) -> float:
        return TOP + height * (1 - seconds * scale / top)

    plot_width = WIDTH - LEFT - RIGHT

    def x(index: int) -> float:
        # a single sample is drawn in the middle, since there is no distance to divide
        return LEFT + plot_width * (index / (len(samples) - 1) if len(samples) > 1 else 0.5)

    step = math.ceil(len(samples) / MAX_POINTS)
    slowest = [
        max(range(start, min(start + step, len(samples))), key=lambda index: samples[index])
        for start in range(0, len(samples), step)
    ]
    level_texts = ", ".join(f"{name} {format_duration(value)}" for name, value in levels)
    count = f"{len(samples)} measurement{'s' if len(samples) != 1 else ''}"
    span = f"{format_duration(min(samples))} to {format_duration(max(samples))}"
    last = len(samples)
    # at most three labels, so that they never overlap
    marks = sorted({1, math.ceil(last / 2), last}) if last > 2 else list(range(1, last + 1))
    return LineChart(
        title,
        about=f"{title}: {count}, {span}{'; ' if level_texts else ''}{level_texts}",
        x_label=x_label,
        unit=unit,
        points=tuple((x(index), y(samples[index])) for index in slowest),
        rules=_rules([(name, value, y(value)) for name, value in levels]),
        x_ticks=tuple(Tick(x(mark - 1), str(mark)) for mark in marks),
        y_ticks=tuple(Tick(y(tick / scale), f"{tick:g}") for tick in ticks),
    )


def bar_chart(title: str, values: Sequence[tuple[str, float]]) -> BarChart:
    """A chart of `values` (at least one, name and seconds)."""
    scale, unit, ticks = duration_axis(max(value for _, value in values))
    # the value's label needs room to the right of the longest bar
    max_width = WIDTH - BAR_LEFT - 64.0
    drawn = tuple(
        Bar(
            name=name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…",
            full=name,
            text=format_duration(value),
            y=index * ROW_HEIGHT,
            # at least one unit, so that the fastest bar can still be seen
            width=max(1.0, max_width * value * scale / ticks[-1]),
        )
        for index, (name, value) in enumerate(values)
    )
    values_text = "; ".join(f"{bar.full} {bar.text}" for bar in drawn)
    marks = tuple(Tick(BAR_LEFT + max_width * tick / ticks[-1], f"{tick:g}") for tick in ticks)
    return BarChart(
        title,
        about=f"{title}: {values_text}",
        unit=unit,
        bars=drawn,
        ticks=marks,
        height=len(drawn) * ROW_HEIGHT + BOTTOM + 4,
    )


def duration_axis(largest: float) -> tuple[float, str, tuple[float, ...]]:
    """Units per second, the unit's name, and round tick values from 0 to at least `largest` (seconds)."""
    scale, unit = (1000.0, "ms") if largest < 1 else (1.0, "s")
    return scale, unit, round_ticks(largest * scale)


def round_ticks(largest: float) -> tuple[float, ...]:
    """Round numbers for an axis, from 0 to at least `largest`."""
    # a measurement of 0 still needs an axis
    value = max(largest, 0.001)
    raw = value / 4
    # 0.9999 and 1e-9 absorb floating-point errors, which would add an empty interval
    power: float = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.9999)
    return tuple(round(step * index, 6) for index in range(math.ceil(value / step - 1e-9) + 1))


def _rules(levels: Sequence[tuple[str, float, float]]) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    free = math.inf
    # from the bottom up: each label goes above the one before it, however close their lines are
    for name, value, y in sorted(levels, key=lambda one: -one[2]):
        label = min(y - 3, free - LABEL_GAP)
        # 9 keeps the topmost label inside the chart
        rules.append(Rule(name, y=y, label_y=max(label, 9.0), text=f"{name} {format_duration(value)}"))
        free = label
    return tuple(rules)
