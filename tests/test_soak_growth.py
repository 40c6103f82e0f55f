"""What `make soak` calls growth: a leak fails, and what a healthy stack does between two changes does not."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from growth import MIN_SAMPLES, Series, slope, table

SAMPLE, HOUR = 10, 3600
# seconds from one round of changes to the next, and how long a third replica and old workers exist
ROUND, CHANGED = 180, 30


def series(value: Any, limit: float, ceiling: float | None = None, seconds: int = HOUR) -> Series:
    """Samples of `value(seconds)`."""
    found = Series("gateway: descriptors", "", limit, ceiling)
    for at in range(SAMPLE, seconds + 1, SAMPLE):
        found.add(at, value(at))
    return found


def healthy(at: float) -> float:
    """Warm-up in the first ten minutes, noise, and twice as many during a change."""
    level = 40 + min(at, 600) / 60 + random.Random(at).gauss(0, 2)
    return level * 2 if at % ROUND < CHANGED else level


def test_a_healthy_hour_is_flat() -> None:
    assert series(healthy, limit=5).problem() == ""


@pytest.mark.parametrize(
    "leak",
    [
        pytest.param(lambda at: at // ROUND, id="one unit a round"),
        pytest.param(lambda at: at / 300, id="steady"),
        pytest.param(lambda at: max(0, at - HOUR / 2) / 150, id="begins in the middle"),
    ],
)
def test_a_planted_leak_fails(leak: Any) -> None:
    problem = series(lambda at: healthy(at) + leak(at), limit=5).problem()
    assert "grew by" in problem and "limit 5" in problem


def test_growth_that_ends_in_the_first_half_is_warm_up() -> None:
    assert series(lambda at: min(at, HOUR / 2), limit=5).problem() == ""


def test_a_peak_does_not_change_the_slope() -> None:
    assert slope(range(9), [1, 1, 1, 1, 500, 1, 1, 1, 1]) == 0


def test_shrinking_is_no_problem() -> None:
    assert series(lambda at: -at, limit=5).problem() == ""


def test_a_ceiling_counts_over_the_whole_run() -> None:
    assert "reached 900.0" in series(lambda at: 900 if at == SAMPLE else 1, limit=5, ceiling=64).problem()


@pytest.mark.parametrize(
    ("value", "seconds", "problem"),
    [
        pytest.param(lambda at: 1, SAMPLE * (MIN_SAMPLES - 1), "only 9 samples", id="too short"),
        pytest.param(lambda at: None, HOUR, "only 0 samples", id="never read"),
        pytest.param(lambda at: 1 if at < 3000 else None, HOUR, "61 samples are missing", id="not read at the end"),
    ],
)
def test_missing_samples_are_never_flat(value: Any, seconds: int, problem: str) -> None:
    found = series(value, limit=5, seconds=seconds)
    assert found.problem().startswith(problem)
    assert "flat" not in found.row()


def test_the_table_is_markdown_and_names_each_result() -> None:
    lines = table(("quantity", "median", "highest", "growth", "limit", "result"), [series(lambda at: 7, 5).row()])
    assert lines.splitlines()[1:] == [
        "| --- | --- | --- | --- | --- | --- |",
        "| gateway: descriptors | 7.0 | 7.0 | +0.0 | 5 | flat |",
    ]
