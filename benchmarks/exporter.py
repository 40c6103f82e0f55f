#!/usr/bin/env python3
"""The latency of the exporter while many clients connect at once, and while slow clients keep connections open.

exporter.py [--at-once 100 300 500] [--slow 0 1500] [--path /metrics] [--rounds 3]

All clients connect at the same moment, each with its own connection, only to 127.0.0.1. A slow client sends half a
request and stays connected. The latency is the time from the start of the connection to the end of the response; a
request without a response after 10 s counts as lost. Threads and memory are those of the exporter's process.
"""

import argparse
import asyncio
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

from upstream import KEY

HERE = Path(__file__).parent
LIMIT_SECONDS = 10.0
MAX_CONNECTIONS = 2000


async def request(port, path):
    started = time.perf_counter()
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            whole = await reader.read(-1)
            writer.close()
    except (OSError, TimeoutError):
        return None
    return time.perf_counter() - started if whole.startswith(b"HTTP/1.1 200") else None


async def slow_client(port):
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: local")
    return writer


async def burst(port, path, count, slow, pid):
    kept = []
    for start in range(0, slow, 100):
        kept += await asyncio.gather(*(slow_client(port) for _ in range(start, min(start + 100, slow))))
    answers = asyncio.gather(*(request(port, path) for _ in range(count)))
    await asyncio.sleep(0.05)
    threads, memory = usage(pid)
    times = await answers
    for writer in kept:
        writer.close()
    return sorted(one for one in times if one is not None), threads, memory


def usage(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"Threads:\s+(\d+)", text)[1]), int(re.search(r"VmRSS:\s+(\d+)", text)[1]) // 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, nargs="+", default=(100, 300, 500))
    parser.add_argument("--slow", type=int, nargs="+", default=(0, 1400))
    parser.add_argument("--path", default="/metrics")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if max(args.at_once) + max(args.slow) > MAX_CONNECTIONS:
        parser.error(f"at most {MAX_CONNECTIONS} connections at once")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))

    upstream = subprocess.Popen(
        [sys.executable, HERE / "upstream.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    base_url = f"http://127.0.0.1:{upstream.stdout.readline().strip()}/v1"
    command = [sys.executable, "-m", "stackgen", "exporter", "--base-url", base_url, "--api-key", KEY,
               "--listen", "127.0.0.1:0", "--json", "--interval", "3600"]  # fmt: skip
    exporter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r":(\d+)/", json.loads(exporter.stdout.readline())["url"])[1])
        time.sleep(1.0)
        print("slow  at once     p50     p99     max   lost  threads  MiB")
        for slow in args.slow:
            for count in args.at_once:
                for _ in range(args.rounds):
                    times, threads, memory = asyncio.run(burst(port, args.path, count, slow, exporter.pid))
                    at = [times[min(len(times) - 1, int(len(times) * one))] if times else 0 for one in (0.5, 0.99, 1)]
                    figures = "".join(f"{one:7.3f} " for one in at)
                    print(f"{slow:4}  {count:7} {figures} {count - len(times):5}  {threads:7}  {memory:3}", flush=True)
                    time.sleep(0.5)
    finally:
        exporter.terminate()
        upstream.terminate()


if __name__ == "__main__":
    main()
