"""Latencies as pictures: where each line, dot and word stands. Templates print what is computed here as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bar", "Bars", "Rule", "Series", "Tick", "bars", "duration", "series"]

# The width of a phone's screen less its margins: there the letters have their full size, and elsewhere more.
WIDTH, HEIGHT = 328.0, 168.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 14.0, 18.0, 34.0
# more dots than pixels show nothing; each that stays is the slowest of its group, as the slow ones matter
MOST_POINTS = 240
LABEL_GAP = 12.0
ROW, BAR_LEFT = 30.0, 2.0
LONGEST_NAME = 44


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: where, in units of the picture, and its words."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A level line such as p99: `y` of the line, `label_y` of its words, which keep clear of one another."""

    kind: str
    y: float
    label_y: float
    text: str


@dataclass(frozen=True, slots=True)
class Series:
    """Measurements in the order they were made. `about` says in words what the picture shows."""

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
        """The points as an SVG polyline has them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True, slots=True)
class Bar:
    """One value: its name (cut to what fits), the whole name, the value in words, where its bar stands."""

    name: str
    full: str
    text: str
    y: float
    width: float


@dataclass(frozen=True, slots=True)
class Bars:
    """One value for each name, as bars that lie below one another."""

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
        """Where the axis lies."""
        return self.height - BOTTOM


def duration(seconds: float) -> str:
    """`0.4 ms`, `31 ms`, `1.25 s`, `3 min 20 s`: as many digits as a person reads."""
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {seconds % 60:.0f} s"


def series(title: str, samples: Sequence[float], levels: Sequence[tuple[str, float]], x_label: str) -> Series:
    """A picture of `samples` (s) in their order with lines at `levels` (name, s); there must be a sample."""
    scale, unit, ticks = _axis(max(*samples, *(value for _, value in levels), 0.0))
    top = ticks[-1]
    height = HEIGHT - TOP - BOTTOM

    def y(seconds: float) -> float:
        return TOP + height * (1 - seconds * scale / top)

    room = WIDTH - LEFT - RIGHT

    def x(index: int) -> float:
        return LEFT + room * (index / (len(samples) - 1) if len(samples) > 1 else 0.5)

    step = math.ceil(len(samples) / MOST_POINTS)
    slowest = [
        max(range(start, min(start + step, len(samples))), key=lambda index: samples[index])
        for start in range(0, len(samples), step)
    ]
    known = ", ".join(f"{name} {duration(value)}" for name, value in levels)
    count = f"{len(samples)} measurement{'s' if len(samples) != 1 else ''}"
    span = f"{duration(min(samples))} to {duration(max(samples))}"
    last = len(samples)
    marks = sorted({1, math.ceil(last / 2), last}) if last > 2 else list(range(1, last + 1))
    return Series(
        title,
        f"{title}: {count}, {span}{'; ' if known else ''}{known}",
        x_label,
        unit,
        tuple((x(index), y(samples[index])) for index in slowest),
        _rules([(name, value, y(value)) for name, value in levels]),
        tuple(Tick(x(mark - 1), str(mark)) for mark in marks),
        tuple(Tick(y(tick / scale), f"{tick:g}") for tick in ticks),
    )


def bars(title: str, values: Sequence[tuple[str, float]]) -> Bars:
    """A picture of named `values` (s); there must be one."""
    scale, unit, ticks = _axis(max(value for _, value in values))
    # the words stand right of the longest bar
    room = WIDTH - BAR_LEFT - 64.0
    drawn = tuple(
        Bar(
            name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…",
            name,
            duration(value),
            index * ROW,
            max(1.0, room * value * scale / ticks[-1]),
        )
        for index, (name, value) in enumerate(values)
    )
    told = "; ".join(f"{bar.full} {bar.text}" for bar in drawn)
    marks = tuple(Tick(BAR_LEFT + room * tick / ticks[-1], f"{tick:g}") for tick in ticks)
    return Bars(title, f"{title}: {told}", unit, drawn, marks, len(drawn) * ROW + BOTTOM + 4)


def _axis(largest: float) -> tuple[float, str, tuple[float, ...]]:
    """Units in a second, their name, and round numbers from 0 to at least `largest` (s)."""
    scale, unit = (1000.0, "ms") if largest < 1 else (1.0, "s")
    # a server that answers in no time still has an axis
    value = max(largest * scale, 0.001)
    raw = value / 4
    power: float = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.9999)
    return scale, unit, tuple(round(step * index, 6) for index in range(math.ceil(value / step - 1e-9) + 1))


def _rules(levels: Sequence[tuple[str, float, float]]) -> tuple[Rule, ...]:
    found: list[Rule] = []
    free = math.inf
    # from the bottom up, each label above the one before it, however near the lines are
    for name, value, y in sorted(levels, key=lambda one: -one[2]):
        label = min(y - 3, free - LABEL_GAP)
        found.append(Rule(name, y, max(label, 9.0), f"{name} {duration(value)}"))
        free = label
    return tuple(found)
