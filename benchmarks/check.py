#!/usr/bin/env python3
"""The cost of a check compared with curl: whole processes that send the same requests in turn, median of N.

check.py [--runs 5] [--endpoints 1 10 100 1000]

The curl loop starts one process per request, like a shell script, and ignores the responses. With several endpoints,
both send up to 32 requests concurrently. The upstream answers in microseconds, so the times are those of the clients.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from upstream import KEY

from stackgen.check import check
from stackgen.check.options import Options
from stackgen.check.target import Target
from stackgen.providers.endpoints import dialects

HERE = Path(__file__).parent
COUNTS = (1, 10, 100, 1000)


def requests(url, profile):
    """The requests that a check with this profile sends, as curl commands."""
    report = check([Target("it", url, KEY, ("tiny",))], Options(profile=profile), dialects=dialects())
    assert report.ok, report
    for result in report.endpoints[0].results:
        for one in result.exchanges:
            body = ["-H", "Content-Type: application/json", "-d", one.request] if one.request else []
            yield ["curl", "-s", "-o", "/dev/null", "-H", f"Authorization: Bearer {KEY}", *body, one.url]


def compare(commands, runs, env):
    times = {name: [] for name in commands}
    # the first round warms caches; a single long run doesn't need that
    warm = 1 if runs > 1 else 0
    for number in range(runs + warm):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, env=env)
            if number >= warm:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--endpoints", type=int, nargs="+", default=COUNTS)
    args = parser.parse_args()
    runs, counts = args.runs, args.endpoints
    # bytecode as an installed package has it, or Python would compile stackgen in each run
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {"BENCH_KEY": KEY}
    server = subprocess.Popen(
        [sys.executable, str(HERE / "upstream.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), url, counts, runs, env)
    finally:
        server.stdin.close()
        server.wait(timeout=10)


def measure(folder, url, counts, runs, env):
    print(f"{'':10}endpoints  requests each   stackgen        curl   stackgen / curl")
    for profile in ("quick", "default"):
        sent = list(requests(url, profile))
        script = folder / f"{profile}.sh"
        script.write_text("".join(f"{shlex.join(command)}\n" for command in sent))
        for count in counts:
            file = folder / f"{count}.yaml"
            entries = "".join(f"  - {{name: e{n}, base_url: '{url}', api_key_env: BENCH_KEY, models: [tiny]}}\n"
                              for n in range(count))  # fmt: skip
            file.write_text(f"endpoints:\n{entries}")
            quick = ["--quick"] if profile == "quick" else []
            commands = {
                "stackgen": [sys.executable, "-m", "stackgen", "check", str(file), *quick],
                "curl": ["sh", "-c", f"seq {count} | xargs -P 32 -I@ sh {shlex.quote(str(script))}"],
            }
            # once: 1,000 endpoints are many thousand curl processes
            medians = compare(commands, runs if count < 1000 else 1, env)
            ratio = medians["stackgen"] / medians["curl"]
            print(f"{profile:10}{count:9}  {len(sent):13}   {medians['stackgen']:7.2f} s  {medians['curl']:8.2f} s"
                  f"   {ratio:9.2f} x", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
