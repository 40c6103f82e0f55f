#!/usr/bin/env python3
"""Startup cost: whole processes, interleaved in one run, median of N; and growth with the number of models.

startup.py [--runs 15]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "compose" / "vllm-one-gpu"
EMPTY_MODEL = "from pydantic import BaseModel\nclass Empty(BaseModel): pass"


def seconds(command):
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def compare(commands, runs):
    """Medians by name. The commands take turns, so that a slow moment of the machine affects all of them."""
    times = {name: [] for name in commands}
    for number in range(runs + 1):
        for name, command in commands.items():
            spent = seconds(command)
            if number:  # the first round warms caches
                times[name].append(spent)
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    # Compose needs the key; bytecode, because an installed package has it
    os.environ["STACKGEN_API_KEY"] = "x"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"  # as stackgen sets it, so that the rows are comparable
    stackgen = [sys.executable, "-m", "stackgen"]
    medians = compare(
        {
            "python -c pass": [sys.executable, "-c", "pass"],
            "stackgen --help": [*stackgen, "--help"],
            "stackgen render --stdout": [*stackgen, "render", str(EXAMPLE), "--stdout"],
            "  its libraries alone": [sys.executable, "-c", "import yaml, jinja2; from pydantic import BaseModel"],
            "  one empty pydantic model": [sys.executable, "-c", EMPTY_MODEL],
            "docker compose config -q": ["docker", "compose", "-f", str(EXAMPLE / "compose.yaml"), "config", "-q"],
        },
        runs,
    )
    bare, compose = medians["python -c pass"], medians["docker compose config -q"]
    for name, value in medians.items():
        print(
            f"{name:34} {1000 * value:7.1f} ms   {value / bare:5.1f} x python   {value / compose:5.2f} x compose config"
        )

    print("\nmodels   render --stdout   per model   for Kubernetes")
    with tempfile.TemporaryDirectory() as folder:
        growth = {}
        for count in (1, 10, 100, 1000):
            stack = Path(folder, str(count), "stack.yaml")
            stack.parent.mkdir()
            models = "".join(f"  - {{model: org/m{number}, engine: vllm}}\n" for number in range(count))
            stack.write_text(f"name: many\nmodels:\n{models}")
            growth[count] = [*stackgen, "render", str(stack), "--stdout"]
            growth[count, "kubernetes"] = [*growth[count], "--target", "kubernetes"]
        grown = compare(growth, runs)
    before = None
    for count, spent in grown.items():
        if isinstance(count, tuple):
            continue
        more = f"{1000 * (spent - grown[before]) / (count - before):8.2f} ms" if before else ""
        ratio = grown[count, "kubernetes"] / spent
        print(f"{count:6} {1000 * spent:14.0f} ms   {more:11}   {ratio:5.2f} x")
        before = count


if __name__ == "__main__":
    main()
