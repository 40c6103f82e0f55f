"""Reads benchmarks/fit_data/: configs of public models, and what vLLM printed when it started them."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from stackgen.fit import Estimate, Gpu, Model, Settings, Weights, estimate
from stackgen.fit.config import read_config
from stackgen.fit.gpus import GIB

DATA = Path(__file__).parent / "fit_data"
# the engine before V1, which vLLM removed; `fit` does not estimate it
OLD = (0, 8, 3)
KEY = ("model", "version", "tp", "pp", "dtype", "quantization", "kv_cache_dtype")


@dataclass(frozen=True)
class Row:
    """One start-up log. Sizes are GiB; None: not published."""

    fields: dict[str, str]

    def number(self, name: str) -> float | None:
        return float(self.fields[name]) if self.fields[name] else None

    @property
    def half(self) -> str:
        """`fit`: constants are fitted on the row. `report`: only errors are reported. The rule is older than both."""
        key = " ".join(self.fields[name] for name in KEY)
        return "fit" if hashlib.sha256(key.encode()).digest()[0] % 2 == 0 else "report"

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.fields["version"].split("."))

    @property
    def is_current(self) -> bool:
        return self.version >= OLD

    def estimate(self) -> Estimate:
        """What `fit` says, from config.json, the size of the weight files, and the flags."""
        get = self.fields.get
        config = json.loads((DATA / "models.json").read_text())[get("model")]
        settings = Settings(
            version=self.version, tensor_parallel=int(get("tp", "1")), pipeline_parallel=int(get("pp", "1")),
            utilization=self.number("utilization"), max_model_len=int(self.number("max_model_len") or 0) or None,
            max_num_seqs=int(self.number("max_num_seqs") or 0) or None, dtype=get("dtype", ""),
            quantization=get("quantization", ""), kv_cache_dtype=get("kv_cache_dtype", "auto"),
            block_size=128 if "block size 128" in get("note", "") else 0,
        )  # fmt: skip
        weights = Weights(int((self.number("checkpoint_gib") or 0) * GIB), (), "size of the files")
        gpu = Gpu("A100" if "A100" in get("note", "") else "", int((self.number("gpu_gib") or 0) * GIB))
        return estimate(Model(read_config(config), weights, get("model", "")), settings, gpu)


def read_rows() -> list[Row]:
    lines = [line for line in (DATA / "rows.tsv").read_text().splitlines() if not line.startswith("#")]
    return [Row(dict(row)) for row in csv.DictReader(lines, delimiter="\t")]
