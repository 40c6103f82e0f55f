#!/usr/bin/env python3
"""Compares ways of choosing a replica: prefix cache hit rate, time to first token and tokens per second.

prefix_routing.py [--rounds 5] [--conversations 8] [--turns 4] [--json]

Two real vLLM replicas on the CPU, each on one core, serve SmolLM2-135M (needs a Docker engine). In each round, every
setup gets the same two loads, in an order that changes from round to round:

- conversations: each turn sends the whole conversation so far, and conversations run at the same time
- single requests: each prompt occurs once, so that no cache can help

The setups: the gateway with one replica, which sees everything; the gateway's default routing; `routing: prefix`; and
vllm-router with its policy `cache_aware`, without a gateway. Every prompt begins with a text that occurs in one round
and setup only, so no setup profits from the cache of another one. A hit rate is the ratio of the growth of
`vllm:prefix_cache_hits_total` and `vllm:prefix_cache_queries_total`, over both replicas. Trust the ratios: client,
gateway and engines share the cores.
"""

import argparse
import http.client
import json
import random
import statistics
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from gateway import ENGINE_KEY, KEY, ROOT, Bench, image, wait_until_ready
from gateway_client import request

WORDS = ("river", "stone", "window", "garden", "letter", "winter", "market", "bridge", "silver", "morning")
REPLICAS = ("vllm-bench", "vllm-bench-2")
# tokens of an answer; the words of a system prompt, and of a message from the user
ANSWER, SYSTEM, MESSAGE = 16, 200, 120
# seconds from an answer to the next turn. Without a pause, the replica that has just answered is the least busy one,
# and gets the next turn whatever the routing is
MAX_PAUSE = 4.0
COUNTERS = ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total")


def words(source, count):
    return " ".join(source.choice(WORDS) for _ in range(count))


def ask(address, key, messages):
    """Sends one chat as a stream. Returns the seconds to the first token, and the text of the answer."""
    host, _, port = address.partition(":")
    body = {"model": "bench", "messages": messages, "max_tokens": ANSWER, "temperature": 0, "ignore_eos": True}
    connection = http.client.HTTPConnection(host, int(port or 8000), timeout=600)
    started, first, parts = time.perf_counter(), 0.0, []
    connection.request("POST", "/v1/chat/completions", json.dumps(body | {"stream": True}),
                       {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})  # fmt: skip
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{address}: {response.status} {response.read()[:300]!r}")
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        for choice in json.loads(line[6:]).get("choices", ()):
            if text := choice["delta"].get("content"):
                first = first or time.perf_counter() - started
                parts.append(text)
    connection.close()
    if not first:
        raise SystemExit(f"{address}: the stream has no token")
    return first, "".join(parts)


def converse(address, key, salt, turns):
    """One conversation. Returns the seconds to the first token of each turn."""
    source, times = random.Random(salt), []
    messages = [{"role": "system", "content": f"{salt} {words(source, SYSTEM)}"}]
    for _ in range(turns):
        messages.append({"role": "user", "content": words(source, MESSAGE)})
        first, text = ask(address, key, messages)
        times.append(first)
        messages.append({"role": "assistant", "content": text})
        if len(times) < turns:
            time.sleep(source.uniform(0, MAX_PAUSE))
    return times


def counters(engines):
    """The sums of `COUNTERS` over all engines."""
    sums = [0.0] * len(COUNTERS)
    for address in engines:
        with urllib.request.urlopen(f"http://{address}:8000/metrics", timeout=60) as response:
            text = response.read().decode()
        for line in text.splitlines():
            for index, name in enumerate(COUNTERS):
                if line.startswith(name + "{"):
                    sums[index] += float(line.rpartition(" ")[2])
    return sums


def run(engines, setup, salt, at_once, count, turns):
    """One load on one setup: `count` conversations, `at_once` at the same time."""
    address, key = setup
    before = counters(engines)
    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(converse, address, key, f"{salt}-{number}", turns) for number in range(count)]
        times = [each for future in futures for each in future.result()]
    took = time.perf_counter() - started
    hits, queries = (after - old for after, old in zip(counters(engines), before, strict=True))
    return {"hit_rate": hits / queries, "ttft_ms": statistics.median(times) * 1e3,
            "tokens_a_second": len(times) * ANSWER / took}  # fmt: skip


def start(bench):
    """Starts engines, gateways and the router. Returns the engines' addresses, and each setup's address and key."""
    done = subprocess.run([ROOT / "scripts" / "small-model", "smollm2"], capture_output=True, text=True, check=True)
    model, vllm = done.stdout.split()[-1], image("vllm-cpu")
    settings = (f"VLLM_API_KEY={ENGINE_KEY}", "VLLM_CPU_KVCACHE_SPACE=2", "HF_HUB_OFFLINE=1")
    environment = [argument for setting in settings for argument in ("--env", setting)]
    # --enable-scale-out is for vllm-router, as with `cache_aware: true`; float32 suits processors without AMX
    serve = ("/m", "--served-model-name", "bench", "--enforce-eager", "--dtype", "float32", "--max-model-len", "2048",
             "--port", "8000", "--enable-scale-out")  # fmt: skip
    engines = [bench.run(name, "--volume", f"{model}:/m:ro", "--shm-size", "1g", "--cpuset-cpus", core, *environment,
                         vllm, *serve) for name, core in zip(REPLICAS, ("0", "1"), strict=True)]  # fmt: skip
    hello = {"model": "bench", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    for address in engines:
        wait_until_ready(address, request(hello, ENGINE_KEY))
    urls = [f"http://{name}:8000" for name in REPLICAS]
    router = bench.run("router", image("vllm-router"), "--worker-urls", *urls, "--host", "0.0.0.0", "--port", "8000",
                       "--policy", "cache_aware", "--log-level", "warning")  # fmt: skip
    setups = {
        "one replica": (bench.gateway(1, "one"), KEY),
        "default": (bench.gateway(2, "two"), KEY),
        "routing: prefix": (bench.gateway(2, "prefix", routing="prefix"), KEY),
        "vllm-router": (router, ENGINE_KEY),
    }
    for address, key in setups.values():
        wait_until_ready(address, request(hello, key))
    return engines, setups


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--conversations", type=int, default=8, help="conversations at the same time")
    parser.add_argument("--turns", type=int, default=4, help="turns of a conversation")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    args = parser.parse_args()
    found = {}
    with Bench() as bench:
        engines, setups = start(bench)
        names = list(setups)
        for number in range(args.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                for load, count, turns in (("conversations", args.conversations, args.turns),
                                           ("single requests", args.conversations * args.turns, 1)):  # fmt: skip
                    salt = f"{load}-{number}-{name}"
                    row = run(engines, setups[name], salt, args.conversations, count, turns)
                    found.setdefault(load, {}).setdefault(name, []).append(row)
    medians = {load: {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
                      for name, rows in setups.items()} for load, setups in found.items()}  # fmt: skip
    if args.json:
        print(json.dumps({"medians": medians, "rounds": found}, indent=2))
        return
    for load, rows in medians.items():
        print(f"\n{load:22}{'hit rate':>12}{'TTFT p50':>12}{'tokens/s':>12}{'against default':>18}")
        for name, row in rows.items():
            ratio = row["tokens_a_second"] / rows["default"]["tokens_a_second"]
            print(f"{name:22}{row['hit_rate']:>12.2f}{row['ttft_ms']:>9.0f} ms"
                  f"{row['tokens_a_second']:>12.1f}{ratio:>16.2f} x")  # fmt: skip


if __name__ == "__main__":
    main()
