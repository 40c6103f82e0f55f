"""Decides from samples over time whether something grows, and formats the result as a Markdown table."""

import itertools
import statistics
from dataclasses import dataclass, field

__all__ = ["Series", "slope"]

# with fewer samples, the slope is mostly noise
MIN_SAMPLES = 10
# more missing samples than this share hide a growth
MAX_MISSING = 0.1


def slope(times, values):
    """Growth of `values` per unit of `times`: the median slope of all pairs (Theil-Sen). Peaks hardly change it."""
    pairs = itertools.combinations(zip(times, values, strict=True), 2)
    return statistics.median((second - first) / (end - start) for (start, first), (end, second) in pairs)


@dataclass
class Series:
    """Samples of one quantity. `limit` is its highest growth in the second half; `ceiling` its highest value at all."""

    name: str
    unit: str
    limit: float
    ceiling: float | None = None
    times: list = field(default_factory=list)
    values: list = field(default_factory=list)
    missing: int = 0

    def add(self, time, value):
        if value is None:
            self.missing += 1
            return
        self.times.append(time)
        self.values.append(value)

    def second_half(self):
        start = (self.times[0] + self.times[-1]) / 2
        return [(time, value) for time, value in zip(self.times, self.values, strict=True) if time >= start]

    def growth(self):
        """The growth from the middle of the run to its end. The first half contains the warm-up."""
        times, values = zip(*self.second_half(), strict=True)
        return slope(times, values) * (times[-1] - times[0])

    def problem(self):
        """What is wrong with the series, or ""."""
        if len(self.values) < MIN_SAMPLES:
            return f"only {len(self.values)} samples"
        if self.missing > MAX_MISSING * len(self.values):
            return f"{self.missing} samples are missing"
        if (grown := self.growth()) > self.limit:
            return f"grew by {grown:.1f} {self.unit} in the second half, limit {self.limit:g}"
        if self.ceiling is not None and max(self.values) > self.ceiling:
            return f"reached {max(self.values):.1f} {self.unit}, limit {self.ceiling:g}"
        return ""

    def row(self):
        """A row of `table`."""
        name = f"{self.name} ({self.unit})" if self.unit else self.name
        if len(self.values) < MIN_SAMPLES:
            return (name, "", "", "", f"{self.limit:g}", self.problem())
        late = [value for _, value in self.second_half()]
        figures = (f"{one:.1f}" for one in (statistics.median(late), max(self.values)))
        problem = self.problem()
        return (name, *figures, f"{self.growth():+.1f}", f"{self.limit:g}", problem or "flat")


def table(header, rows):
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))
