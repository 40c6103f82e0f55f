#!/usr/bin/env python3
"""How long `bundle create` and `bundle load` take, next to `tar` and `docker save` or `docker load` of the same bytes.

bundle.py --stack FOLDER [--runs 2] [--create-only] [--keep-going]

FOLDER has a stack with its images and weights on this machine, for example vLLM's CPU image with SmolLM2. Each bundle
is loaded into an empty Docker engine in a network namespace without any route; the first one is also started there and
asked a question. The measurements take turns. Needs root. The ratio of the medians must be at most 1.2 (exit code 1
otherwise). Wheels are left out, because pip's network is not what is measured.
`--create-only` measures `create` alone, which needs no second engine and no root.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.live.gpu_engine import GpuEngine  # noqa: E402

STACKGEN = [sys.executable, "-m", "stackgen"]
LIMIT = 1.2


@contextmanager
def timed(times, name):
    # what an earlier step has left to write must not slow down this one
    os.sync()
    start = time.perf_counter()
    yield
    # until it is on disk: page cache would hide a copy that writes everything twice
    os.sync()
    times.setdefault(name, []).append(time.perf_counter() - start)
    print(f"  {name:14} {times[name][-1]:7.1f} s", flush=True)


def sh(*command, **options):
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, **options)


def weights_of(bundle, scratch):
    """The weights of a bundle as plain folders, to be packed by tar."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for model in manifest["models"]:
        for file in model["files"]:
            path = scratch / file["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if file["link"] is not None:
                path.symlink_to(file["link"])
            else:
                shutil.copyfile(bundle / "blobs" / "sha256" / file["digest"][7:], path)
    return [image["name"] for image in manifest["images"]]


def prove(engine, target):
    """Starts the loaded stack in the engine's network, which has no route, and asks a question."""
    routes = engine.inside("ip", "route", "show", "default").stdout.strip()
    up = engine.inside(*STACKGEN, "up", str(target), "--json", timeout=600)
    answer = engine.inside(*STACKGEN, "ask", "Name the capital of France.", str(target), timeout=120)
    engine.inside(*STACKGEN, "down", str(target), timeout=120)
    healthy = up.returncode == 0 and answer.returncode == 0
    print(
        f"  default route: {routes or 'none'}; up exits with {up.returncode}; answer: {answer.stdout.strip()[:200]!r}"
    )
    if not healthy:
        sys.exit(f"the loaded stack does not work: {up.stderr[-1500:]} {answer.stderr[-500:]}")


def measure(stack, work, number, times, create_only):
    bundle, archive, weights, scratch = (work / name for name in ("bundle", "images.tar", "weights.tar", "scratch"))
    with timed(times, "create"):
        sh(*STACKGEN, "bundle", "create", stack, "-o", bundle, "--no-wheels")
    images = weights_of(bundle, scratch)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    with timed(times, "save and tar"):
        sh("docker", "save", "-o", archive, *images)
        sh("tar", "-cf", weights, "-C", scratch, ".")
    shutil.rmtree(scratch)
    if create_only:
        shutil.rmtree(bundle)
        archive.unlink()
        weights.unlink()
        return size

    def load():
        with GpuEngine(0) as engine:
            with timed(times, "load"):
                sh(*STACKGEN, "bundle", "load", bundle, "-o", work / "stack", env=engine.environment())
            if number == 0:
                prove(engine, work / "stack")
            shutil.rmtree(work / "stack")

    def load_and_untar():
        with GpuEngine(0) as engine, timed(times, "load and untar"):
            sh("docker", "load", "-i", archive, env=engine.environment())
            scratch.mkdir()
            sh("tar", "-xf", weights, "-C", scratch)

    # the second one finds more free memory, which takes a virtual machine less time
    for step in (load, load_and_untar) if number % 2 == 0 else (load_and_untar, load):
        step()
    shutil.rmtree(bundle)
    for path in (archive, weights):
        path.unlink()
    shutil.rmtree(scratch)
    return size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", required=True)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--create-only", action="store_true")
    parser.add_argument("--keep-going", action="store_true", help="exit with 0 whatever the ratios are")
    args = parser.parse_args()
    times = {}
    with tempfile.TemporaryDirectory(prefix="sg-bench-") as name:
        for number in range(args.runs):
            print(f"run {number + 1}", flush=True)
            size = measure(Path(args.stack).resolve(), Path(name), number, times, args.create_only)
    print(f"{size / 1e9:.2f} GB in the bundle")
    worst = 0.0
    for ours, theirs in (("create", "save and tar"), ("load", "load and untar"))[: 1 if args.create_only else 2]:
        one, other = statistics.median(times[ours]), statistics.median(times[theirs])
        worst = max(worst, one / other)
        print(f"{ours:8} {one:7.1f} s   {theirs:14} {other:7.1f} s   ratio {one / other:.2f} (at most {LIMIT})")
    return 0 if worst <= LIMIT or args.keep_going else 1


if __name__ == "__main__":
    sys.exit(main())
