"""The estimate against start-up logs of real GPUs that were published (benchmarks/fit_data/rows.tsv)."""

from __future__ import annotations

from statistics import median

import pytest

from benchmarks.fit_rows import Row, read_rows
from stackgen.fit.gpus import GIB

ROWS = [row for row in read_rows() if row.is_current and row.fields["gpu_gib"]]
MEASURED = [row for row in ROWS if row.fields["kv_gib"] and (row.number("kv_gib") or 0) > 0]
# what is printed is rounded to 0.01 GiB
ROUNDING = 0.006


def name(row: Row) -> str:
    return " ".join(row.fields[key] for key in ("model", "version", "tp", "pp", "dtype", "kv_cache_dtype"))


def test_the_rows_are_split_into_two_halves_of_similar_size() -> None:
    fitted = sum(row.half == "fit" for row in MEASURED)
    assert len(MEASURED) >= 50
    assert 0.35 < fitted / len(MEASURED) < 0.65


@pytest.mark.parametrize("row", [row for row in MEASURED if row.fields["kv_tokens"]], ids=name)
def test_bytes_of_cache_for_each_token_are_those_of_the_log(row: Row) -> None:
    plan, printed = row.estimate().plan, row.number("kv_gib") or 0
    measured = (row.number("kv_tokens") or 0) * plan.token_bytes / GIB
    assert abs(measured - printed) <= ROUNDING + plan.block_bytes / GIB


def test_room_for_the_cache_is_within_5_percent_in_the_half_that_made_no_constant() -> None:
    errors = []
    for row in MEASURED:
        printed = row.number("kv_gib") or 0
        if row.half == "report":
            errors.append(abs(row.estimate().cache[1] / GIB - printed) / printed)
    assert median(errors) < 0.01
    assert max(errors) < 0.10


@pytest.mark.parametrize("row", MEASURED, ids=name)
def test_the_measured_room_is_inside_the_bounds(row: Row) -> None:
    low, _, high = row.estimate().cache
    assert low / GIB - ROUNDING <= (row.number("kv_gib") or 0) <= high / GIB + ROUNDING


@pytest.mark.parametrize("row", [row for row in ROWS if "did not start" in row.fields["note"]], ids=name)
def test_no_model_fits_that_did_not_start(row: Row) -> None:
    assert row.estimate().verdict != "fits"


def test_most_models_that_started_fit_at_the_default_utilization() -> None:
    started = [row for row in ROWS if "did not start" not in row.fields["note"]]
    assert all(row.estimate().verdict != "doesn't fit" for row in started)
    assert sum(row.estimate().verdict == "fits" for row in started) > 0.6 * len(started)
