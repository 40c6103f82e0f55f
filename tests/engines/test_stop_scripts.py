"""The scripts that stop an engine: requests in flight are finished, and a start that ignores SIGTERM is ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

TEMPLATES = Path(__file__).parents[2] / "templates"
DRAIN = TEMPLATES / "engines" / "llamacpp_drain.sh"
SUPERVISE = TEMPLATES / "images" / "common" / "supervise.sh"


@contextmanager
def slots(*answers: str | int) -> Iterator[tuple[str, list[str]]]:
    """A server whose GET /slots has these answers (the last one again and again), and the keys it received."""
    left, keys = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["authorization"])
            answer = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            self.wfile.write(b"" if isinstance(answer, int) else answer.encode())

        def log_message(self, *_: object) -> None:
            """Suppresses the access log."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", keys
        server.shutdown()
        thread.join()


def answer(*busy: bool) -> str:
    """What build 11434 sends, without whitespace."""
    return json.dumps([{"id": index, "is_processing": one} for index, one in enumerate(busy)], separators=(",", ":"))


def drain(url: str, seconds: int) -> float:
    started = time.monotonic()
    env = {**os.environ, "LLAMA_API_KEY": "k"}
    subprocess.run(["sh", str(DRAIN), url, str(seconds)], env=env, check=True, timeout=20, capture_output=True)
    return time.monotonic() - started


def test_llamacpp_is_drained_when_two_answers_in_a_row_show_no_busy_slot() -> None:
    # a slot is free for a moment before it takes a waiting request
    with slots(answer(True, False), answer(False, False), answer(False, True), answer(False, False)) as (url, keys):
        drain(url, 30)
    assert keys == ["Bearer k"] * 5


def test_llamacpp_without_slots_is_not_waited_for() -> None:
    with slots(501) as (url, keys):
        assert drain(url, 30) < 5
    assert len(keys) == 1


def test_draining_llamacpp_ends_after_its_limit() -> None:
    with slots(answer(True)) as (url, keys):
        assert drain(url, 1) < 10
    assert keys


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_stop_drains_a_healthy_service_and_ends_one_that_never_started(tmp_path: Path, is_ready: bool) -> None:
    ready, log = tmp_path / "ready", tmp_path / "log"
    text = SUPERVISE.read_text()
    assert text.count("sleep 5;") == 1
    script = tmp_path / "supervise.sh"
    script.write_text(text.replace("sleep 5;", "sleep 0.1;"))
    (tmp_path / "drain.sh").write_text(f"echo drained >>{log}\n")
    # vLLM ignores SIGTERM while it starts
    service = (
        f"trap 'echo stopped >>{log}; exit 0' TERM; echo up >>{log}; while :; do sleep 0.05; done"
        if is_ready
        else f"trap '' TERM; echo up >>{log}; while :; do sleep 0.05; done"
    )
    env = {**os.environ, "STACKGEN_READY_FILE": str(ready), "STACKGEN_DRAIN": f"sh {tmp_path}/drain.sh"}
    with subprocess.Popen(["sh", str(script), "sh", "-c", service], env=env, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 10
        while not log.exists() and time.monotonic() < end:
            time.sleep(0.01)
        if is_ready:
            ready.touch()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 143
    assert log.read_text().split() == (["up", "drained", "stopped"] if is_ready else ["up"])
