#!/usr/bin/env python3
"""A stack under load for an hour while its replicas restart, its keys change and its number of replicas changes.

soak.py [--minutes 60] [--every 180] [--clients 6] [--pause 0.2] [--port 18700] [--samples FILE]

Two stand-ins for vLLM, the gateway, Prometheus and the exporter run in containers on this machine (needs a Docker
engine). Every --every seconds, one replica restarts, a client's key is created and removed, and `scale` adds and
removes a replica. Exit code 1 if a request is lost, a stream is interrupted other than by a restart, a key does not
count when its command has returned, a command fails, or memory, descriptors, threads or disk grow in the second half of
the run (Theil-Sen slope) by more than the limit that the table shows. The limits don't depend on --minutes, so a longer
run is stricter.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from growth import table
from soak_samples import Sampler, list_files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.live.load import Load  # noqa: E402 - the checkout's own packages
from tests.live.stacks import LiveStack  # noqa: E402

REPLICAS = 2
MODEL = "tiny"
SERVICES = {"vllm-tiny", "vllm-tiny-2", "gateway", "exporter", "prometheus", "grafana"}
KEY_REQUESTS = 20
# the gateway never repeats a request after the first byte of its response (docs/explanation/gateway.md)
RESTART = "restart of a replica"


def image(name):
    built = subprocess.run([ROOT / "scripts" / "build-image", name], capture_output=True, text=True)
    if built.returncode:
        sys.exit(f"scripts/build-image {name}: {built.stderr[-2000:]}")
    return built.stdout.split()[-1]


def grafana_image(standin):
    """Grafana has no part in the soak: a substitute that is only healthy if its image is not available."""
    found, tag = image("grafana"), "stackgen/grafana-substitute:1"
    if found != "none":
        return found
    folder = ROOT / "tests" / "standin" / "grafana"
    subprocess.run(["docker", "build", "--quiet", "--tag", tag, "--build-arg", f"BASE_IMAGE={standin}", folder],
                   check=True, capture_output=True)  # fmt: skip
    return tag


def stack_data(name, port):
    standin = image("vllm-standin")
    model = {"model": "./model", "engine": "vllm", "image": standin, "served_names": [MODEL], "max_model_len": 512,
             "replicas": REPLICAS}  # fmt: skip
    monitoring = {"prometheus_image": image("prometheus"), "grafana_image": grafana_image(standin),
                  "exporter_image": image("exporter"), "prometheus_port": port + 1, "grafana_port": port + 2,
                  "scrape_interval": 5, "check_interval": 5}  # fmt: skip
    return {"name": name, "port": port, "models": [model], "gateway": {"image": image("haproxy")},
            "monitoring": monitoring}  # fmt: skip


class Rounds:
    """Changes the stack, and counts what the load lost meanwhile."""

    def __init__(self, stack, load):
        self.stack, self.load = stack, load
        self.number, self.problems, self.steps = 0, [], {}

    def counts(self):
        return self.load.requests, len(self.load.failures), self.load.interrupted

    def step(self, what, action):
        started, before = time.monotonic(), self.counts()
        self.load.slowest = 0.0
        try:
            action()
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            self.problems.append(f"round {self.number}, {what}: {error}")
        counts = [now - then for now, then in zip(self.counts(), before, strict=True)]
        if counts[2] and what != RESTART:
            self.problems.append(f"round {self.number}, {what}: {counts[2]} streams interrupted")
        self.steps.setdefault(what, []).append((time.monotonic() - started, self.load.slowest, *counts))

    def wait(self, seconds):
        self.step("no change", lambda: time.sleep(max(0, seconds)))

    def run(self):
        self.number += 1
        replica = ("vllm-tiny", "vllm-tiny-2")[self.number % REPLICAS]
        name, folder = f"soak-{self.number}", str(self.stack.folder)
        self.step(RESTART, lambda: self.restart(replica))
        self.step("`keys new`, `keys remove`", lambda: self.change_keys(name, folder))
        for count in (REPLICAS + 1, REPLICAS):
            what = f"`scale {MODEL}={count}`"
            command = ("scale", f"{MODEL}={count}", folder, "--yes", "--progress", "none")
            self.step(what, lambda command=command: self.stack.stackgen(*command))
        requests, lost, interrupted = self.counts()
        counts = f"{requests} requests, {lost} lost, {interrupted} streams interrupted, {len(self.problems)} problems"
        print(f"round {self.number}: {counts}", file=sys.stderr)

    def restart(self, service):
        done = self.stack.compose("restart", service)
        assert not done.returncode, done.stderr
        # Docker reports the health; the other replica must not be the next one while this one starts
        done = self.stack.compose("up", "--detach", "--wait", "--no-recreate", service)
        assert not done.returncode, done.stderr

    def change_keys(self, name, folder):
        key = json.loads(self.stack.stackgen("keys", "new", name, "--stack", folder, "--json"))["key"]
        self.expect(200, key, "keys new")
        self.stack.stackgen("keys", "remove", name, "--stack", folder)
        self.expect(401, key, "keys remove")

    def expect(self, status, key, after):
        """From the moment at which the command returns, every new connection must get `status`."""
        found = [self.ask(key) for _ in range(KEY_REQUESTS)]
        assert set(found) == {status}, f"after `{after}`, expected {status}, got {found}"

    def ask(self, key):
        body = json.dumps({"model": MODEL, "prompt": "hi", "max_tokens": 1}).encode()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.load.port}/v1/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                response.read()
                return response.status
        except urllib.error.HTTPError as error:
            return error.code

    def rows(self):
        for what, steps in self.steps.items():
            seconds, slowest, requests, failed, interrupted = zip(*steps, strict=True)
            counts = (str(sum(one)) for one in (requests, failed, interrupted))
            yield what, str(len(steps)), f"{statistics.median(seconds):.1f} s", *counts, f"{max(slowest):.2f} s"


def leftovers(stack, files):
    """What the commands left behind: files, containers of other services, and processes."""
    new = set(list_files(stack.folder)) - files
    if new:
        yield f"new files in the stack's folder: {', '.join(sorted(new))}"
    running = set(stack.compose("ps", "--all", "--services").stdout.split())
    if running != SERVICES:
        yield f"services: {', '.join(sorted(running ^ SERVICES))} too many or missing"
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        if str(stack.folder) in line:
            yield f"a process is left: {line.strip()[:200]}"
    status = stack.run_stackgen("status", str(stack.folder))
    if status.returncode:
        yield f"`stackgen status`: {status.stdout}{status.stderr}"


def soak(stack, args):
    """Runs load, rounds and samples. Prints the tables. Returns the exit code."""
    stack.stackgen("up", str(stack.folder), "--yes", "--progress", "none")
    load = Load(args.port, [stack.key], clients=args.clients, pause=args.pause)
    with load, Sampler(stack, load) as sampler:
        rounds = Rounds(stack, load)
        end = time.monotonic() + args.minutes * 60
        files = None
        while (left := end - time.monotonic()) > 0:
            started = time.monotonic()
            # the last round must not end in the middle
            if left > args.every / 2:
                rounds.run()
                # the first round creates what every later one overwrites
                files = files or set(list_files(stack.folder))
            rounds.wait(min(args.every - (time.monotonic() - started), end - time.monotonic()))
    problems = [*rounds.problems, *leftovers(stack, files)]
    problems += [f"lost: {one}" for one in load.failures]
    problems += [f"{one.name}: {found}" for one in sampler.series.values() if (found := one.problem())]
    header = ("while", "times", "median duration", "requests", "lost", "streams interrupted", "slowest request")
    print(table(header, rounds.rows()))
    total = f"{load.requests} requests, {len(load.failures)} lost, {load.interrupted} streams interrupted"
    print(f"\nTotal: {total}.\n")
    header = ("quantity", "median, second half", "highest", "growth, second half", "limit", "result")
    print(table(header, (one.row() for one in sampler.series.values())))
    print("\n" + "\n".join(f"FAILED: {one}" for one in problems[:40]) if problems else "\nNo problems.")
    if args.samples:
        sampler.write(args.samples)
    return int(bool(problems))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=180, help="seconds from one round of changes to the next")
    parser.add_argument("--clients", type=int, default=6, help="requests in flight (at most 64)")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between two requests of a client")
    parser.add_argument("--port", type=int, default=18700, help="this port and the next two of 127.0.0.1")
    parser.add_argument("--name", default="sgsoak", help="the stack's name")
    parser.add_argument("--samples", type=Path, help="write all samples as CSV")
    args = parser.parse_args()
    if not 1 <= args.clients <= 64 or args.minutes < 3:
        parser.error("at most 64 clients, and at least 3 minutes")
    if not 30 <= args.every <= args.minutes * 30:
        parser.error("--every: at least 30 seconds, and at most half of --minutes")
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        # containers run as other users, and must be able to read the folder
        Path(folder).chmod(0o755)
        Path(folder, "model").mkdir()
        try:
            with LiveStack(Path(folder), stack_data(args.name, args.port)) as stack:
                return soak(stack, args)
        finally:
            # not `--volumes`: the compile cache belongs to all stacks
            volumes = [f"{args.name}-{one}" for one in ("prometheus", "grafana")]
            subprocess.run(["docker", "volume", "rm", "--force", *volumes], capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
