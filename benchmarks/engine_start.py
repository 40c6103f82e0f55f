#!/usr/bin/env python3
"""First and second start of a real vLLM: pairs of starts of one stack, the first of each pair without compiled code.

engine_start.py --image IMAGE --model FOLDER [--pairs 3] [--on GPUS]

IMAGE must be able to compile: on the CPU, it needs g++ and Python.h. Each pair has a variable of its own, which gives
it an empty folder for compiled code. One start before the first pair fills the page cache. The folders are removed at
the end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

STACKGEN = [sys.executable, "-m", "stackgen"]


def stackgen(*args, check=True):
    done = subprocess.run([*STACKGEN, *args], capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(
            f"stackgen {' '.join(args)} failed with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return done.stdout


def write(folder, args, pair):
    model = {
        "model": args.model, "engine": "vllm", "image": args.image, "gpus": args.on, "served_names": ["m"],
        "cpu_kv_cache_gib": 1, "max_model_len": 1024, "start_timeout": 1800, "extra_env": {"VLLM_PAIR": str(pair)},
    }  # fmt: skip
    data = {"name": "engine-start", "port": args.port, "gateway": False, "models": [model]}
    # JSON is YAML
    (folder / "stack.yaml").write_text(json.dumps(data))


def start(folder):
    """Seconds of a start from nothing: in total, and by phase of the engine."""
    report = json.loads(stackgen("up", str(folder), "--yes", "--json", "--skip-doctor"))
    stackgen("down", str(folder))
    engine = next(one for one in report["start"]["services"] if one["service"].startswith("vllm"))
    return report["start"]["seconds"], {one["phase"]: one["seconds"] for one in engine["phases"]}


def compiled(folder):
    """The folder of compiled code that the stack uses, as `stackgen storage` names it."""
    environment = json.loads(subprocess.run(
        ["docker", "compose", "config", "--format", "json"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout)["services"]["vllm-m"]["environment"]  # fmt: skip
    return "code/" + environment["VLLM_CACHE_ROOT"].rpartition("/")[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--on", default="none", help="`gpus` of stack.yaml")
    parser.add_argument("--port", type=int, default=18990)
    args = parser.parse_args()
    args.model = os.path.abspath(args.model)
    folders, rows = set(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            for pair in range(args.pairs + 1):
                write(folder, args, pair)
                stackgen("render", str(folder))
                folders.add(compiled(folder))
                first, second = start(folder), start(folder) if pair else None
                if second:
                    rows.append((first, second))
                    print(f"pair {pair}: {first[0]:6.1f} s, then {second[0]:6.1f} s: {second[0] / first[0]:.2f}")
        finally:
            stackgen("down", str(folder), check=False)
            # nothing uses them without this stack file
            (folder / "stack.yaml").unlink(missing_ok=True)
            for one in folders:
                stackgen("storage", "remove", one, "--yes", check=False)
    print(f"\n{'phase':32} {'first':>8} {'second':>8}   medians of {len(rows)} pairs, in seconds")
    for phase in dict.fromkeys(phase for first, _ in rows for phase in first[1]):
        medians = [statistics.median(pair[which][1].get(phase, 0.0) for pair in rows) for which in (0, 1)]
        print(f"{phase:32} {medians[0]:8.1f} {medians[1]:8.1f}")
    first, second = (statistics.median(pair[which][0] for pair in rows) for which in (0, 1))
    ratio = statistics.median(pair[1][0] / pair[0][0] for pair in rows)
    print(f"{'total':32} {first:8.1f} {second:8.1f}   second / first: {ratio:.2f}")


if __name__ == "__main__":
    main()
