#!/usr/bin/env python3
"""Cost of `stackgen keys` with many keys: CPU time with 10,000 and 100,000 keys, and their ratio.

keys.py [--runs 3]

Ten times as many keys may take at most 15 times as long: exit code 1 if it is more. No gateway is started.
"""

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
STACK = "name: sgbench-keys\ngateway: true\nmodels: [{model: ./m, engine: vllm}]\n"
ACTIONS = (("list",), ("list", "--json"), ("new", "bench"), ("remove", "bench"))
SMALL, LARGE, MAX_RATIO = 10_000, 100_000, 15


def cpu_seconds(folder, action):
    """CPU time of the whole process: unlike wall time, it does not depend on what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "stackgen", "keys", *action, "--stack", folder]
    # no Docker engine: the gateway's part does not depend on the number of keys that are unchanged
    env = {**os.environ, "DOCKER_HOST": "unix:///nonexistent"}
    subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(count, runs):
    """The shortest time of each action with `count` keys."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "stack.yaml").write_text(STACK)
        (path / ".env").write_text("STACKGEN_API_KEY=sk-bench\n")
        (path / "gateway").mkdir()
        hashes = (hashlib.sha256(str(number).encode()).hexdigest().upper() for number in range(count))
        lines = "".join(f"{one} k{number}\n" for number, one in enumerate(hashes))
        (path / "gateway" / "keys.map").write_text("managed 1\n" + lines)
        times = {action: [] for action in ACTIONS}
        for _ in range(runs):
            for action in ACTIONS:
                times[action].append(cpu_seconds(folder, action))
        return {action: min(seconds) for action, seconds in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    # without the start of Python; 0.05 s is the accuracy of the measurement
    base, small, large = (measure(count, runs) for count in (1, SMALL, LARGE))
    worst = 0.0
    for action in ACTIONS:
        ratio = (large[action] - base[action]) / max(small[action] - base[action], 0.05)
        worst = max(worst, ratio)
        times = f"{small[action]:.2f} s with {SMALL} keys, {large[action]:.2f} s with {LARGE}"
        print(f"{' '.join(action):12} {times}, without the start: {ratio:.1f} times")
    return int(worst > MAX_RATIO)


if __name__ == "__main__":
    sys.exit(main())
