"""Fits the constants of stackgen/fit/terms.py on the half of the rows that is meant for it, and prints them.

    .venv/bin/python benchmarks/fit_constants.py

The form of the formulas was chosen with all rows in view; the numbers come from one half only.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean, median

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fit_rows import Row, read_rows
from stackgen.fit import terms
from stackgen.fit.gpus import GIB

FIRST, LAST = (0, 17), (0, 21)


def activation_error(rows: list[Row]) -> float:
    found = []
    for row in rows:
        predicted = next(term.bytes for term in row.estimate().terms if term.name == "activations")
        found.append(abs(predicted / GIB - (row.number("activation_gib") or 0)))
    return fmean(found)


def main() -> int:
    rows = [row for row in read_rows() if row.half == "fit" and row.is_current and row.fields["gpu_gib"]]
    new = [
        row for row in rows if FIRST <= row.version < LAST and row.number("activation_gib") and row.fields["pp"] == "1"
    ]
    old = [row for row in rows if row.version < FIRST and row.number("activation_gib")]
    eras = terms.ERAS
    best: tuple[float, ...] = (99.0,)
    steps = [(14.0 + 0.1 * n) for n in range(21)]
    for sampler, rest, share in product(steps, (0.08, 0.11, 0.14, 0.17, 0.2), (0.6, 0.7, 0.8, 0.9, 1.0)):
        terms.FORWARD_REST, terms.EXPERT_SHARE = rest, share
        terms.ERAS = tuple(replace(era, sampler=(sampler, *era.sampler[1:])) if FIRST <= era.since < LAST else era
                           for era in eras)  # fmt: skip
        best = min(best, (activation_error(new), sampler, rest, share))
    print(f"0.17 to 0.20, {len(new)} rows: sampler {best[1]:.1f}, rest {best[2]}, experts {best[3]} "
          f"(mean error {best[0]:.3f} GiB)")  # fmt: skip
    oldest: tuple[float, ...] = (99.0,)
    for sampler in (36 + 0.1 * n for n in range(50)):
        terms.ERAS = (replace(eras[0], sampler=(sampler, *eras[0].sampler[1:])), *eras[1:])
        oldest = min(oldest, (activation_error(old), sampler))
    print(f"before 0.17, {len(old)} rows: sampler {oldest[1]:.1f} (mean error {oldest[0]:.3f} GiB)")
    for name, chosen in (
        ("context, before 0.18", [row for row in rows if row.version < (0, 18) and row.fields["tp"] == "1"]),
        ("context, since 0.18", [row for row in rows if row.version >= (0, 18) and row.fields["tp"] == "1"]),
        ("NCCL, before 0.17", [row for row in rows if row.version < (0, 17) and row.fields["tp"] != "1"]),
        ("NCCL, since 0.17", [row for row in rows if row.version >= (0, 17) and row.fields["tp"] != "1"]),
    ):
        sizes = [size for row in chosen if (size := row.number("non_torch_gib")) and row.fields["pp"] == "1"]
        print(f"{name}: {median(sizes):.2f} GiB of {len(sizes)} rows" if sizes else f"{name}: no row")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
