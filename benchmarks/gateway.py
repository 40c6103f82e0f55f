#!/usr/bin/env python3
"""Compares the gateway with no gateway, nginx and vllm-router: same upstreams, one run, interleaved rounds.

gateway.py            in front of two fake upstreams that answer in microseconds (needs a Docker engine)
gateway.py --real     in front of one and two real vLLM replicas on the CPU: tokens per second, requests per replica
gateway.py --client python    with a client in Python, which hides differences, instead of load.c (needs `cc`)
gateway.py --json     results as JSON

All traffic stays on this machine. Trust the ratios, not the absolute values: client, gateway and upstreams share the
cores.
"""

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gateway_client import KEY, CompiledClient, PythonClient, request

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from stackgen.render.templating import render  # noqa: E402
from stackgen.resolve.pipeline import resolve  # noqa: E402
from stackgen.stack.load import build_spec  # noqa: E402 - the checkout's own package
from stackgen.targets.compose import ComposeSite  # noqa: E402

NETWORK = "sgbench"
ENGINE_KEY = "sk-engine"
NGINX = """daemon off; worker_processes auto; pid /tmp/nginx.pid; error_log stderr; events { worker_connections 4096; }
http { access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;
uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s; client_max_body_size 4m; tcp_nodelay on;
upstream engines { least_conn; server vllm-bench:8000; server vllm-bench-2:8000; keepalive 64; }
server { listen 8000; location / { proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
proxy_buffering off; } } }
"""


def docker(*arguments):
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"docker {' '.join(arguments)}: {done.stderr}")
    return done.stdout.strip()


def image(name):
    return subprocess.run(
        [ROOT / "scripts" / "build-image", name], capture_output=True, text=True, check=True
    ).stdout.split()[-1]


class Bench:
    """The containers of one run, removed at its end."""

    def __init__(self):
        self.names = []

    def __enter__(self):
        subprocess.run(["docker", "network", "create", NETWORK], capture_output=True)
        self.folder = Path(tempfile.mkdtemp())
        return self

    def __exit__(self, *_):
        if self.names:
            subprocess.run(["docker", "rm", "--force", *self.names], capture_output=True)
        subprocess.run(["docker", "network", "rm", NETWORK], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, name, *arguments):
        """Starts a container and returns its address on the network."""
        docker(
            "run", "--detach", "--name", f"sgbench-{name}", "--network", NETWORK, "--network-alias", name, *arguments
        )
        self.names.append(f"sgbench-{name}")
        return docker(
            "inspect", "--format", f"{{{{.NetworkSettings.Networks.{NETWORK}.IPAddress}}}}", f"sgbench-{name}"
        )

    def gateway(self, replicas, name="gateway", **fields):
        """Starts the gateway as stackgen renders it; `fields` are fields of `gateway` in stack.yaml."""
        model = {"model": "./m", "engine": "vllm", "served_names": ["bench"], "replicas": replicas}
        spec = build_spec({"name": "bench", "gateway": fields or True, "models": [model]}, "benchmark")
        folder = self.folder / name
        for file in render(resolve(spec, ComposeSite(), "benchmark")):
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.text)
        self.folder.chmod(0o755)
        return self.run(name, "--volume", f"{folder}/gateway:/gateway:ro", "--volume", f"{folder}/scripts:/stackgen:ro",
                        "--env", f"STACKGEN_API_KEY={KEY}", "--env", f"STACKGEN_ENGINE_KEY={ENGINE_KEY}",
                        "--entrypoint", "/bin/bash", image("haproxy"), "/stackgen/gateway_start.sh")  # fmt: skip


HELLO = {"model": "bench", "messages": [{"role": "user", "content": "hi"}]}
# a long prompt that doesn't fit the gateway's small buffers
LONG = {"messages": [{"role": "user", "content": "x" * 200_000}], "model": "bench"}


def wait_until_ready(address, sent=b""):
    """Waits until `address` answers a completion."""
    for _ in range(240):
        if dead := docker("ps", "--all", "--quiet", "--filter", f"network={NETWORK}", "--filter", "status=exited"):
            sys.exit(f"a container has ended:\n{docker('logs', '--tail', '20', dead.split()[0])}")
        try:
            with socket.create_connection((address, 8000), timeout=60) as connection:
                connection.sendall(sent or request(HELLO | {"max_tokens": 1}))
                if b" 200 " in connection.recv(4096).split(b"\r\n")[0]:
                    return
        except OSError:
            pass
        time.sleep(0.5)
    sys.exit(f"{address} never answered")


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def fast(bench, client, rounds):
    python = image("fastchat")
    script = f"{ROOT}/benchmarks/fast_upstream.py:/upstream.py:ro"
    upstream = [bench.run(name, "--volume", script, "--env", f"NAME={name}", "--entrypoint", "python3", python,
                          "/upstream.py") for name in ("vllm-bench", "vllm-bench-2")]  # fmt: skip
    (bench.folder / "nginx.conf").write_text(NGINX)
    # containers run as other users, and must be able to read the folder
    bench.folder.chmod(0o755)
    # direct: the client itself balances over both upstreams, as the gateways do
    setups = {"direct": upstream, "gateway": [bench.gateway(2)]}
    setups |= {"direct, one engine": upstream[:1], "gateway, one replica": [bench.gateway(1, "one")]}
    setups["nginx"] = [bench.run("nginx", "--volume", f"{bench.folder}/nginx.conf:/nginx.conf:ro", image("nginx"),
                               "nginx", "-c", "/nginx.conf")]  # fmt: skip
    if (ROOT / "templates/images/vllm-router").is_dir():
        setups["vllm-router"] = [bench.run(
            "router", image("vllm-router"), "--worker-urls", "http://vllm-bench:8000", "http://vllm-bench-2:8000",
            "--host", "0.0.0.0", "--port", "8000", "--policy", "round_robin")]  # fmt: skip
    for address in {address for addresses in setups.values() for address in addresses}:
        wait_until_ready(address)
    seconds = {name: [] for name in setups}
    ttft = {name: [] for name in setups}
    rates = {name: [] for name in setups}
    reads = {name: [] for name in setups}
    large = {name: [] for name in setups}
    for _ in range(rounds):
        for name, addresses in setups.items():
            for address in addresses:
                seconds[name] += client.latencies(address, 1000 // len(addresses), HELLO)
                large[name] += client.latencies(address, 100 // len(addresses), LONG)
        for name, addresses in setups.items():
            done, _ = client.streams(addresses, 32, HELLO | {"max_tokens": 40, "temperature": 0.02})
            ttft[name] += [one[0] for one in done]
            reads[name] += [one[3] / one[2] for one in done]
        for name, addresses in setups.items():
            done, took = client.streams(addresses, 8, HELLO | {"max_tokens": client.tokens, "temperature": 0})
            rates[name].append(sum(one[2] for one in done) / took)
    found = {}
    for name in setups:
        # a single replica is compared with a single engine
        base = "direct, one engine" if "one" in name else "direct"
        added = {column: statistics.median(of[name]) - statistics.median(of[base])
                 for column, of in (("p50", seconds), ("ttft", ttft), ("large", large))}  # fmt: skip
        found[name] = {
            "p50_ms": statistics.median(seconds[name]) * 1e3,
            "added_p50_ms": added["p50"] * 1e3,
            "added_p50_200_KB_ms": added["large"] * 1e3,
            "ttft_p50_ms": statistics.median(ttft[name]) * 1e3,
            "added_ttft_p50_ms": added["ttft"] * 1e3,
            "ttft_p99_ms": percentile(ttft[name], 0.99) * 1e3,
            "reads_a_token": statistics.mean(reads[name]),
            "tokens_a_second_vs_direct": statistics.median(rates[name]) / statistics.median(rates[base]),
        }
    return found


def real(bench, client, rounds):
    subprocess.run([ROOT / "scripts" / "small-model", "tiny"], check=True, capture_output=True)
    vllm, model = image("vllm-cpu"), ROOT / ".cache" / "models" / "tiny"
    settings = (f"VLLM_API_KEY={ENGINE_KEY}", "VLLM_CPU_KVCACHE_SPACE=1", "TORCHDYNAMO_DISABLE=1", "HF_HUB_OFFLINE=1")
    environment = [argument for setting in settings for argument in ("--env", setting)]
    # the image's entrypoint is `vllm serve`
    serve = ("/m", "--served-model-name", "bench", "--enforce-eager", "--dtype", "bfloat16",
             "--max-model-len", "1024", "--port", "8000")  # fmt: skip
    addresses = [
        bench.run(
            name, "--volume", f"{model}:/m:ro", "--shm-size", "1g", "--cpuset-cpus", core, *environment, vllm, *serve
        )
        for name, core in (("vllm-bench", "0"), ("vllm-bench-2", "1"))
    ]
    body = {"messages": [{"role": "user", "content": "Tell me of Rome."}], "max_tokens": 128, "ignore_eos": True}
    ask = request(body | {"model": "bench", "max_tokens": 1}, ENGINE_KEY)
    for address in addresses:
        wait_until_ready(address, ask)
    setups = {"direct, one replica": (addresses[0], ENGINE_KEY), "gateway, one replica": (bench.gateway(1, "one"), KEY),
            "gateway, two replicas": (bench.gateway(2, "two"), KEY)}  # fmt: skip
    for address, key in setups.values():
        wait_until_ready(address, request(body | {"model": "bench", "max_tokens": 1}, key))
        client.streams([address], 8, HELLO | body, key)
    rates = {name: [] for name in setups}
    for _ in range(rounds):
        for name, (address, key) in setups.items():
            done, took = client.streams([address], 16, HELLO | body, key)
            rates[name].append(sum(one[2] for one in done) / took)
    log = docker("logs", "sgbench-two")
    served = [json.loads(line)["server"] for line in log.splitlines() if line.startswith("{")]
    base = statistics.median(rates["direct, one replica"])
    found = {name: {"tokens_a_second": statistics.median(some), "vs_direct": statistics.median(some) / base}
             for name, some in rates.items()}  # fmt: skip
    shares = {name: served.count(name) for name in ("vllm-bench", "vllm-bench-2")}
    found["gateway, two replicas"]["requests"] = shares
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="real vLLM replicas on the CPU")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (default: 5)")
    parser.add_argument("--client", choices=["compiled", "python"], default="compiled", help="default: compiled")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    args = parser.parse_args()
    with Bench() as bench:
        client = PythonClient() if args.client == "python" else CompiledClient(bench.folder)
        found = (real if args.real else fast)(bench, client, args.rounds)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    columns = list(dict.fromkeys(column for row in found.values() for column in row))
    print(f"{'':24}" + "".join(f"{column:>28}" for column in columns))
    for name, row in found.items():
        cells = (row.get(column, "") for column in columns)
        print(f"{name:24}" + "".join(f"{one:>28.3f}" if isinstance(one, float) else f"{one!s:>28}" for one in cells))


if __name__ == "__main__":
    main()
