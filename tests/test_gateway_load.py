"""The load generator of benchmarks/gateway.py counts what a server really sent."""

from __future__ import annotations

import shutil
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "benchmarks" / "load.c"
REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (compiler := shutil.which("cc")):
        pytest.skip("no C compiler")
    made = tmp_path_factory.mktemp("load") / "load"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", made, SOURCE], check=True)
    return made


@contextmanager
def server(*parts: bytes) -> Iterator[str]:
    """A server that answers each request with `parts`, one packet each."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                for part in parts:
                    self.request.sendall(part)
                    time.sleep(0.02)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever).start()
        yield f"127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    sent = b"%d\n" % len(REQUEST) + REQUEST
    done = subprocess.run([program, *arguments], input=sent, capture_output=True, timeout=60)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_requests_are_timed_one_by_one(program: Path) -> None:
    with server(HEAD + b"Content-Length: 4\r\n\r\n", b"text") as address:
        done = run(program, "requests", "3", address)
    seconds = [float(line) for line in done.stdout.splitlines()]
    assert len(seconds) == 3 and min(seconds) >= 0.02


def test_tokens_and_reads_of_streams_are_counted_across_packets(program: Path) -> None:
    parts = (HEAD + b"\r\n", b'{"content":"a"}\n{"content":"b"}\n', b'{"cont', b'ent":"c"}\n', b"data: [DO", b"NE]\n")
    with server(*parts) as address:
        done = run(program, "streams", "2", address)
    *streams, total = done.stdout.splitlines()
    assert [line.split()[2:] for line in streams] == [["3", "2"]] * 2
    for line in streams:
        first, whole = map(float, line.split()[:2])
        assert 0.02 <= first < whole <= float(total)


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("requests", (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",)),
        ("streams", (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",)),
    ],
)
def test_a_failed_request_ends_the_run(program: Path, mode: str, parts: tuple[bytes, ...]) -> None:
    with server(*parts) as address:
        done = run(program, mode, "1", address)
    assert done.returncode == 1 and "503" in done.stderr
