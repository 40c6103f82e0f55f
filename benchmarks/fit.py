# ruff: noqa: E501
"""Prints how far `stackgen fit` is off on public start-up logs, by model family; writes docs/reference/fit-accuracy.md.

.venv/bin/python benchmarks/fit.py                         the tables
.venv/bin/python benchmarks/fit.py --write                 also writes the page
.venv/bin/python benchmarks/fit.py --planner planner.json  also compares with llm-d-planner (fit_planner.py)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fit_rows import DATA, Row, read_rows
from stackgen.fit.estimate import NOT
from stackgen.fit.gpus import GIB

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "fit-accuracy.md"
PLANNER = DATA / "planner-0.3.3.json"


def errors(rows: list[Row]) -> list[float]:
    """Absolute errors of the room for the KV cache, in percent."""
    return [abs(row.estimate().cache[1] / GIB - kv) / abs(kv) * 100 for row in rows if (kv := row.number("kv_gib"))]


def summary(name: str, found: list[float]) -> str:
    return f"| {name} | {len(found)} | {median(found):.2f} % | {fmean(found):.2f} % | {max(found):.2f} % |"


def page(rows: list[Row], planner: list[float | None]) -> str:
    measured = [row for row in rows if (row.number("kv_gib") or 0) > 0 and row.fields["gpu_gib"]]
    current = [row for row in measured if row.is_current]
    reported = [row for row in current if row.half == "report"]
    head = ["| rows | number | median error | mean error | largest error |", "|---|---|---|---|---|"]
    lines = [
        "# Accuracy of `stackgen fit`",
        "",
        "`benchmarks/fit.py --write` writes this page. It compares the room for the KV cache that `stackgen fit`",
        "expects with the line `Available KV cache memory` of start-up logs of vLLM that other people published. The rows,",
        "their sources and dates are in `benchmarks/fit_data/rows.tsv`.",
        "",
        "A hash of the model and its settings divides the rows into two halves. `benchmarks/fit_constants.py` fits the",
        "constants for activations, CUDA and NCCL on one half. The form of the formulas was chosen with all rows in view.",
        "",
        "## Errors",
        "",
        *head,
        summary("half that made no constant", errors(reported)),
        summary("half that made the constants", errors([row for row in current if row.half == "fit"])),
        "",
        f"Left out: {len(measured) - len(current)} rows of vLLM before 0.8.3, which had another engine. `stackgen fit`",
        "reports these versions as too close to call.",
        "",
        "Most rows are from one kind of GPU, the H100, and from vLLM 0.11 to 0.19. For newer versions, few logs name",
        "all settings. Therefore, the bounds of `stackgen fit` are wider for them.",
        "",
        "## Errors by model family, all rows",
        "",
        *head,
    ]  # fmt: skip
    families: defaultdict[str, list[Row]] = defaultdict(list)
    for row in current:
        config = json.loads((DATA / "models.json").read_text())[row.fields["model"]]
        families[config["architectures"][0]].append(row)
    lines += [summary(name, errors(found)) for name, found in sorted(families.items())]
    started = [row for row in rows if row.is_current and row.fields["gpu_gib"]]
    failed = [row for row in started if "did not start" in row.fields["note"]]
    verdicts = [row.estimate().verdict for row in started if row not in failed]
    lines += [
        "",
        "## Verdicts",
        "",
        f"Of {len(verdicts)} deployments that started, {verdicts.count('fits')} fit, "
        f"{verdicts.count('too close to call')} are too close to call, and {verdicts.count(NOT)} don't fit.",
        f"Of {len(failed)} deployments that did not start, {sum(row.estimate().verdict == 'fits' for row in failed)} fit.",
        "A utilization of 0.95 with a version before 0.21 is the reason for most that are too close to call: these",
        "versions don't count CUDA graphs and the first sampling in their budget.",
    ]  # fmt: skip
    pairs = [(row, other) for row, other in zip(rows, planner, strict=True) if other is not None and row in current]
    theirs = [abs(other - kv) / kv * 100 for row, other in pairs if (kv := row.number("kv_gib"))]
    ours = errors([row for row, _ in pairs])
    held = [(row, other) for row, other in pairs if row.half == "report"]
    lines += [
        "",
        "## Compared with llm-d-planner 0.3.3",
        "",
        "`benchmarks/fit_planner.py` runs `allocatable_kv_cache_memory` of llm-d-planner 0.3.3 (PyPI) on the same",
        "rows, with the same config.json and sizes of weights. Its constants were calibrated on 49 of these rows, in both",
        "halves.",
        "",
        *head,
        summary("llm-d-planner, all rows", theirs),
        summary("stackgen fit, all rows", ours),
        summary("llm-d-planner, half that made no constant of ours",
                [abs(other - kv) / kv * 100 for row, other in held if (kv := row.number("kv_gib"))]),
        summary("stackgen fit, half that made no constant of ours", errors([row for row, _ in held])),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--planner", type=Path, default=PLANNER)
    args = parser.parse_args()
    text = page(read_rows(), json.loads(args.planner.read_text()))
    print(text)
    if args.write:
        PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
