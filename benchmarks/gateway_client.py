"""The two clients of gateway.py: load.c, compiled with `cc`, and the same in Python.

The compiled client takes little of the processor that it shares with the gateway, so it shows differences that Python's
client hides. Both have the same methods. Addresses are IPv4 addresses; the port is 8000.
"""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

KEY = "sk-bench"
# seconds without a byte after which a run is aborted
READ_TIMEOUT = 60


def request(body, key=KEY):
    raw = json.dumps(body).encode()
    return (f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n").encode() + raw  # fmt: skip


class CompiledClient:
    """Runs load.c."""

    # tokens of a stream without pause: enough for a second
    tokens = 12000

    def __init__(self, folder):
        self.program = Path(folder) / "load"
        source = Path(__file__).with_name("load.c")
        subprocess.run(["cc", "-O2", "-o", self.program, source], check=True)

    def run(self, mode, count, addresses, body, key=KEY):
        sent = request(body, key)
        targets = [f"{address}:8000" for address in addresses]
        done = subprocess.run([self.program, mode, str(count), *targets], input=b"%d\n" % len(sent) + sent,
                              capture_output=True)  # fmt: skip
        if done.returncode:
            sys.exit(done.stderr.decode())
        return done.stdout.decode().splitlines()

    def latencies(self, address, count, body):
        """Seconds of requests one after another on one connection."""
        times = [float(line) for line in self.run("requests", count, [address], body)]
        # the first tenth warms up
        return times[count // 10 :]

    def streams(self, addresses, number, body, key=KEY):
        """Concurrent streams, round robin over the addresses. Returns the results and the total seconds.

        A result is (seconds to the first token, total seconds, tokens, reads that contained tokens).
        """
        *lines, took = self.run("streams", number, addresses, body | {"stream": True}, key)
        words = (line.split() for line in lines)
        return [(float(a), float(b), int(c), int(d)) for a, b, c, d in words], float(took)


class PythonClient:
    """The same with asyncio."""

    tokens = 1500

    def latencies(self, address, count, body):
        return asyncio.run(_latencies(address, count, body))[count // 10 :]

    def streams(self, addresses, number, body, key=KEY):
        return asyncio.run(_streams(addresses, number, body, key))


async def _latencies(address, count, body):
    reader, writer = await asyncio.open_connection(address, 8000)
    sent, times = request(body), []
    for _ in range(count):
        started = time.perf_counter()
        writer.write(sent)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in head.split(b"\r\n")[0]:
            sys.exit(head.decode() + (await reader.read(2000)).decode())
        at = head.index(b"content-length:")
        await reader.readexactly(int(head[at + 15 : head.index(b"\r", at)]))
        times.append(time.perf_counter() - started)
    writer.close()
    return times


async def _stream(address, body, key):
    reader, writer = await asyncio.open_connection(address, 8000)
    started = time.perf_counter()
    writer.write(request(body | {"stream": True}, key))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), READ_TIMEOUT)
    if b"text/event-stream" not in head.lower():
        sys.exit(f"no stream: {head.decode()}{(await reader.read(2000)).decode()}")
    first, tokens, reads, tail = 0.0, 0, 0, b""
    while b"[DONE]" not in tail:
        data = await asyncio.wait_for(reader.read(65536), READ_TIMEOUT)
        if not data:
            sys.exit(f"a stream ended early: {tail!r}")
        found = data.count(b'"content"')
        tokens, reads = tokens + found, reads + bool(found)
        if found and not first:
            first = time.perf_counter() - started
        tail = (tail + data)[-400:]
    writer.close()
    return first, time.perf_counter() - started, tokens, reads


async def _streams(addresses, number, body, key):
    started = time.perf_counter()
    targets = itertools.islice(itertools.cycle(addresses), number)
    done = await asyncio.gather(*(_stream(address, body, key) for address in targets))
    return done, time.perf_counter() - started
