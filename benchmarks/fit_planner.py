"""Prints llm-d-planner's answers for the rows of benchmarks/fit_data/, as JSON. The Python must have llm-d-planner.

    python3 -m venv planner && planner/bin/pip install llm-d-planner==0.3.3 transformers huggingface_hub
    planner/bin/python benchmarks/fit_planner.py > planner.json

It gets the same facts as `fit`: config.json and the size of the weight files, which it would read from the Hub itself.
It knows GPUs by their catalog size (80 GiB for an H100), and its constants were calibrated on 49 of these rows.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

from planner import capacity_planner

DATA = Path(__file__).parent / "fit_data"
# sizes that its GPU catalog has
CATALOG = {"79.19": 80, "79.18": 80, "79.25": 80, "23.53": 24, "44.39": 48, "95.01": 96, "23.99": 24}


def make_config(values: dict) -> SimpleNamespace:
    nested = {name: make_config(value) if isinstance(value, dict) and name.endswith("_config")
              and name != "quantization_config" else value for name, value in values.items()}  # fmt: skip
    config = SimpleNamespace(**nested)
    config.get_text_config = lambda: getattr(config, "text_config", config)
    config.to_dict = lambda: values
    return config


def main() -> None:
    models = json.loads((DATA / "models.json").read_text())
    lines = [line for line in (DATA / "rows.tsv").read_text().splitlines() if not line.startswith("#")]
    found = []
    for row in csv.DictReader(lines, delimiter="\t"):
        if row["gpu_gib"] not in CATALOG or not row["kv_gib"]:
            found.append(None)
            continue
        size = float(row["checkpoint_gib"])
        # it would ask the Hub
        capacity_planner.model_memory_req = lambda *_args, size=size, **_more: size
        tp, pp = int(row["tp"]), int(row["pp"])
        total = capacity_planner.allocatable_kv_cache_memory(
            row["model"], make_config(models[row["model"]]), CATALOG[row["gpu_gib"]], float(row["utilization"]),
            tp=tp, pp=pp, max_model_len=int(row["max_model_len"] or 4096),
        )  # fmt: skip
        found.append(total / (tp * pp))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
