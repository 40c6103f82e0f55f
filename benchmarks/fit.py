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
        "`benchmarks/fit.py --write` writes this page. `stackgen fit` estimates how much memory is left for the KV cache.",
        "This page compares the estimates with the line `Available KV cache memory` in public start-up logs of vLLM.",
        "`benchmarks/fit_data/rows.tsv` contains one row for each log, with its source and date.",
        "",
        "A hash of the model and its settings divides the rows into two halves. `benchmarks/fit_constants.py` fits the",
        "constants for activations, CUDA and NCCL to one half. The form of the formulas was chosen with all rows.",
        "",
        "## Errors",
        "",
        *head,
        summary("half without influence on the constants", errors(reported)),
        summary("half to which the constants are fitted", errors([row for row in current if row.half == "fit"])),
        "",
        f"The table leaves out {len(measured) - len(current)} rows of vLLM before 0.8.3, which had another engine. For these",
        "versions, `stackgen fit` always reports that the result is too close to call.",
        "",
        "Most rows come from one kind of GPU, the H100, and from vLLM 0.11 to 0.19. Few public logs of newer versions name",
        "all settings, so the bounds of `stackgen fit` are wider for newer versions.",
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
        f"For {len(verdicts)} deployments that started, the verdict is \"fits\" {verdicts.count('fits')} times, \"too close "
        f"to call\" {verdicts.count('too close to call')} times, and \"doesn't fit\" {verdicts.count(NOT)} times.",
        f"For {len(failed)} deployments that did not start, the verdict is \"fits\" "
        f"{sum(row.estimate().verdict == 'fits' for row in failed)} times.",
        "Most of the deployments that are too close to call have a `gpu_memory_utilization` of 0.95 and a version before",
        "0.21. These versions don't count CUDA graphs and the first sampling in their budget.",
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
        "rows, with the same config.json and sizes of weights. The constants of llm-d-planner were calibrated on 49 of",
        "these rows, which are in both halves.",
        "",
        *head,
        summary("llm-d-planner, all rows", theirs),
        summary("stackgen fit, all rows", ours),
        summary("llm-d-planner, half without influence on stackgen's constants",
                [abs(other - kv) / kv * 100 for row, other in held if (kv := row.number("kv_gib"))]),
        summary("stackgen fit, half without influence on stackgen's constants", errors([row for row, _ in held])),
        "",
        "## Other engines",
        "",
        "`tests/live/test_fit.py` compares the estimate with llama.cpp's own projection, and with the weights and the cache",
        "of a running FastChat worker, which must be equal to the byte. `benchmarks/fit_fastchat.py` compares FastChat",
        "workers of six architectures, and checks that the peak memory of the worker's process is inside the bounds.",
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
