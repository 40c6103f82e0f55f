#!/usr/bin/env python3
"""Looks for false alarms of the watch for hangs, and measures how fast it heals real ones. Needs a Docker engine.

hangs.py saturation [--minutes 60]   long prompts for all engines, more than the cores can compute
hangs.py swap [--minutes 10]         vLLM with less memory than it needs (the machine needs 4 GiB of swap)
hangs.py compile                     vLLM compiles with half a core, and gets requests as soon as it is healthy
hangs.py ranks [--rounds 3]          vLLM on two ranks: one rank is stopped by a signal, or killed

Real engines serve small models on the CPU behind the gateway, with the default `hang_timeout`. Exit code 1 if the watch
restarts an engine that only is slow, if a request fails, or if a hang is found too late. `--json` prints the
figures as JSON.
"""

import argparse
import contextlib
import http.client
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.live.stacks import LiveStack  # noqa: E402 - the checkout's own packages

# the scenarios may run at the same time, so each has a port and a name of its own
PORTS = {"saturation": 18760, "swap": 18761, "compile": 18762, "ranks": 18763}
WORDS = ("river", "stone", "window", "garden", "letter", "winter", "market", "bridge", "silver", "morning", "paper")
# words of a prompt, each about one token, and tokens of an answer; the models have 2,048 tokens of context
PROMPT, ANSWER = 1500, 64
# a request that waits for its turn on a saturated machine is not lost
CLIENT_TIMEOUT = 1800
# seconds between two requests for one token, and the time that they have: what a watch without counters would do
PROBE_INTERVAL, PROBE_TIMEOUT = 15, 8
# goal: seconds until a hang is found
FOUND_WITHIN = 30
# without pauses, the ranks of the replica that still answers take both cores, and the other replica can't start
RANKS_PAUSE = 2.0
STOP_RANK = "for p in /proc/[0-9]*; do grep -q '^VLLM::Worker_TP1' $p/cmdline && kill -{} ${{p#/proc/}}; done; true"


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout.strip()


def image(name):
    return run(ROOT / "scripts" / "build-image", name).split()[-1]


def small_model(name):
    return Path(run(ROOT / "scripts" / "small-model", name).split()[-1])


@contextlib.contextmanager
def started(scenario, models):
    """The running stack of a scenario."""
    data = {"name": f"sghangs-{scenario}", "port": PORTS[scenario], "gateway": {"image": image("haproxy")},
            "models": models}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with LiveStack(Path(folder), data) as stack:
            stack.stackgen("up", folder, "--yes", "--progress", "none")
            yield stack


@dataclass
class Load:
    """Clients that send long prompts to one model through the gateway, one after another, until `stop`."""

    stack: LiveStack
    model: str
    clients: int
    prompt: int = PROMPT
    # seconds between two requests of a client
    pause: float = 0.0
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    probes: int = 0
    late_probes: int = 0

    def __enter__(self):
        self.stopped = threading.Event()
        self.key = self.stack.key
        self.threads = [threading.Thread(target=self.work, args=(number,)) for number in range(self.clients)]
        self.threads.append(threading.Thread(target=self.probe))
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def send(self, content, tokens, timeout):
        connection = http.client.HTTPConnection("127.0.0.1", self.stack.data["port"], timeout=timeout)
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "max_tokens": tokens}
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def work(self, number):
        for turn in range(1_000_000):
            if self.stopped.is_set():
                return
            # no two prompts share a prefix, so no cache shortens the computation
            words = " ".join(WORDS[(number * 7 + turn * 11 + at * at) % len(WORDS)] for at in range(self.prompt))
            started = time.monotonic()
            try:
                status, text = self.send(f"{number} {turn} {words}", ANSWER, CLIENT_TIMEOUT)
            except (OSError, http.client.HTTPException) as error:
                status, text = 0, repr(error).encode()
            if status == 200 and json.loads(text)["choices"]:
                self.seconds.append(time.monotonic() - started)
            else:
                self.failures.append(f"{status} {text[:200].decode(errors='replace')}")
                self.stopped.wait(1)
            self.stopped.wait(self.pause)

    def probe(self):
        while not self.stopped.wait(PROBE_INTERVAL):
            self.probes += 1
            try:
                answered = self.send("hi", 1, PROBE_TIMEOUT)[0] == 200
            except (OSError, http.client.HTTPException):
                answered = False
            self.late_probes += not answered

    def row(self):
        times = sorted(self.seconds) or [float("nan")]
        return {"model": self.model, "clients": self.clients, "completed": len(self.seconds),
                "failed": len(self.failures), "median_s": round(statistics.median(times), 1),
                "slowest_s": round(times[-1], 1), "probes": self.probes, "probes_without_answer": self.late_probes,
                "failures": self.failures[:5]}  # fmt: skip


def vllm(model, name, **fields):
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"} | fields.pop("extra_env", {})
    return {"model": str(model), "engine": "vllm", "image": fields.pop("image", None) or image("vllm-cpu"),
            "served_names": [name], "gpus": "none", "max_model_len": 2048, "cpu_kv_cache_gib": 1, "dtype": "float32",
            "extra_env": environment, **fields}  # fmt: skip


def alarms(stack):
    """What the watch and the supervisor wrote about hangs and restarts, and Docker's own restarts."""
    lines = [line for line in stack.logs().splitlines() if "stackgen: hang" in line or "because it hung" in line
             or "was healthy and ended" in line]  # fmt: skip
    names = run("docker", "ps", "--all", "--format", "{{.Names}}", "--filter", f"name={stack.data['name']}-").split()
    restarts = sum(int(one) for one in run("docker", "inspect", "--format", "{{.RestartCount}}", *names).split())
    return lines[:20] + ([f"{restarts} restarts by Docker"] if restarts else [])


def slow(scenario, models, loads, minutes, prepare=lambda stack: None):
    """Runs `loads` (model and number of clients) on a stack for `minutes`. No alarm and no failure may occur."""
    with started(scenario, models) as stack:
        prepare(stack)
        with contextlib.ExitStack() as running:
            clients = [running.enter_context(Load(stack, model, count)) for model, count in loads]
            end = time.monotonic() + minutes * 60
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(60, left))
                done = ", ".join(f"{one.model} {len(one.seconds)}/{len(one.failures)}" for one in clients)
                print(f"{left / 60:.0f} min left, completed/failed: {done}", file=sys.stderr)
            # more than the loads' last requests, so that alarms after the end count as well
        return {"minutes": minutes, "loads": [one.row() for one in clients], "alarms": alarms(stack)}


def saturation(args):
    smollm2 = small_model("smollm2")
    gguf = next(smollm2.with_name("smollm2-GGUF").glob("*.gguf"))
    models = [
        vllm(smollm2, "vllm", replicas=2, enforce_eager=True),
        {"model": str(smollm2), "engine": "fastchat", "served_names": ["fastchat"], "gpus": "none"},
        {"model": str(gguf), "engine": "llamacpp", "served_names": ["llama"], "gpus": "none",
         "max_model_len": "2K", "max_num_seqs": 4,
         "extra_args": ["--threads", "1"]},
    ]  # fmt: skip
    return slow("saturation", models, [("vllm", 8), ("fastchat", 4), ("llama", 4)], args.minutes)


def swap(args):
    if not run("swapon", "--noheadings", "--show=NAME"):
        sys.exit("this machine has no swap; create some with mkswap and swapon")
    before = {}

    def shrink(stack):
        container = stack.inspect("vllm-vllm")["Id"]
        used = int(run("docker", "exec", container, "sh", "-c",
                       "cat /proc/[0-9]*/status | awk '/^VmRSS/ {sum += $2} END {print int(sum / 1024)}'"))  # fmt: skip
        limit = int(used * args.memory)
        update = ["docker", "update", "--memory", f"{limit}m", "--memory-swap", f"{limit + 8192}m", container]
        # the kernel refuses a limit below the usage if it can't move enough pages to swap at once
        for _ in range(30):
            if not subprocess.run(update, capture_output=True).returncode:
                break
            time.sleep(1)
        else:
            run(*update)
        before.update(used=used, limit=limit, pages=swapped())

    found = slow(
        "swap", [vllm(small_model("smollm2"), "vllm", enforce_eager=True)], [("vllm", 4)], args.minutes, shrink
    )
    return found | {"memory_mib": before["used"], "limit_mib": before["limit"],
                    "swapped_in_mib": (swapped() - before["pages"]) * 4 // 1024}  # fmt: skip


def swapped():
    """Pages of 4 KiB that the kernel has read from swap since the machine's start."""
    return int(re.search(r"^pswpin (\d+)", Path("/proc/vmstat").read_text(), re.M)[1])


def compiler_image():
    """The CPU image with a C++ compiler and Python's headers, which torch.compile needs."""
    tag, base = "sghangs-compiler:2", image("vllm-cpu")
    install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ python3-dev"
    text = f"FROM {base}\nUSER 0:0\nRUN {install}\nENV TORCHDYNAMO_DISABLE=0\nUSER 2000:0\n"
    done = subprocess.run(["docker", "build", "--quiet", "--tag", tag, "-"], input=text, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return tag


def compile_(args):
    environment = {"TORCHDYNAMO_DISABLE": "0", "VLLM_DISABLE_COMPILE_CACHE": "1",
                   "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}  # fmt: skip
    model = vllm(small_model("smollm2"), "vllm", image=compiler_image(), extra_env=environment, start_timeout=3600)
    limited = threading.Event()

    def limit():
        while not limited.wait(0.5):
            if found := run("docker", "ps", "--quiet", "--filter", "name=sghangs-compile-vllm"):
                run("docker", "update", "--cpus", "0.5", *found.split())
                return

    limiter = threading.Thread(target=limit)
    limiter.start()
    began = time.monotonic()
    try:
        found = slow("compile", [model], [("vllm", 4)], args.minutes,
                     lambda stack: timing.update(start_s=round(time.monotonic() - began),
                                                 compiled_kernels=compiled_kernels(stack)))  # fmt: skip
    finally:
        limited.set()
        limiter.join()
    return found | timing


timing = {}


def compiled_kernels(stack):
    """Libraries that the C++ compiler has built. On the CPU, vLLM 0.32 logs no time of a compilation."""
    script = "find / -path /proc -prune -o -path '*/inductor/*' -name '*.so' -print 2>/dev/null; true"
    found = stack.execute("vllm-vllm", "sh", "-c", script)
    return len(found.stdout.split())


def ranks(args):
    """Stops or kills one of two ranks of one replica, while both replicas get requests."""
    model = vllm(small_model("tiny"), "vllm", replicas=2, tensor_parallel_size=2, max_model_len=512, enforce_eager=True)
    rows = []
    with started("ranks", [model]) as stack:
        for signal in ("STOP", "KILL") * args.rounds:
            logs = len(stack.logs())
            with Load(stack, "vllm", 4, prompt=100, pause=RANKS_PAUSE) as load:
                time.sleep(10)
                began = time.monotonic()
                stack.execute("vllm-vllm", "sh", "-c", STOP_RANK.format(signal))
                found = wait_for(lambda logs=logs: re.search("because it hung|was healthy and ended",
                                                             stack.logs()[logs:]), 120)  # fmt: skip
                found_after = time.monotonic() - began
                said = re.findall(r"the service hangs: no progress for (\d+)s", stack.logs()[logs:])
                wait_for(lambda: answers(stack), 300)
                healed_after = time.monotonic() - began
                time.sleep(5)
            text = stack.logs()[logs:]
            starts = [float(one) for one in re.findall(r"ready after (\d+)s", text)]
            rows.append({"signal": signal, "found": bool(found), "found_s": round(found_after, 1),
                         "no_progress_s": int(said[-1]) if said else None, "healed_s": round(healed_after, 1),
                         "start_s": starts[-1] if starts else None, **load.row()})  # fmt: skip
            print(json.dumps(rows[-1]), file=sys.stderr)
    return {"ranks": rows}


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.5)
    return value


def answers(stack):
    """Whether the replica whose rank was stopped generates a token itself, without the gateway."""
    script = (
        "import json,os,urllib.request as u; body=json.dumps({'model':'vllm','prompt':'hi','max_tokens':1}).encode();"
        "key={'Content-Type':'application/json','Authorization':'Bearer '+os.environ['VLLM_API_KEY']};"
        "u.urlopen(u.Request('http://127.0.0.1:8000/v1/completions',body,key),timeout=5)"
    )
    return stack.execute("vllm-vllm", "python3", "-c", script).returncode == 0


def problems(found):
    for one in found.get("alarms", ()):
        yield f"the watch or Docker acted: {one}"
    for row in found.get("loads", ()):
        if row["failed"]:
            yield f"{row['model']}: {row['failed']} requests failed, for example {row['failures'][0]}"
        if not row["completed"]:
            yield f"{row['model']}: no request completed"
    if found.get("compiled_kernels") == 0:
        yield "vLLM compiled nothing"
    for row in found.get("ranks", ()):
        if not row["found"] or (row["no_progress_s"] or 0) > FOUND_WITHIN:
            yield f"{row['signal']}: found too late: {row}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=["saturation", "swap", "compile", "ranks"])
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of `ranks`")
    parser.add_argument("--memory", type=float, default=0.5, help="for `swap`: share of the memory that vLLM may keep")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.minutes = args.minutes or {"saturation": 60, "swap": 10, "compile": 3}.get(args.scenario, 0)
    found = {"saturation": saturation, "swap": swap, "compile": compile_, "ranks": ranks}[args.scenario](args)
    print(json.dumps(found, indent=None if args.json else 2))
    failed = list(problems(found))
    print("\n".join(f"FAILED: {one}" for one in failed) or "No problems.", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
