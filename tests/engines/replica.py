"""A stand-in for an engine under supervise.sh and the watch for hangs, as in its container."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["ROOT", "SECONDS", "WHOLE_SECONDS", "Replica", "is_running", "running", "wait_until", "watch_command"]

ROOT = Path(__file__).parents[2]
SERVERS = {"vllm": "split_server.py", "fastchat": "worker_server.py", "llamacpp": "worker_server.py"}
# a tenth of the default
SECONDS = 2.5
# for the watch of llama.cpp, a shell script, which needs an integer
WHOLE_SECONDS = 5


def watch_command(folder: Path, engine: str, port: int) -> str:
    """Copies the engine's scripts into `folder`, and returns the command of its watch."""
    scripts = folder / "scripts"
    scripts.mkdir()
    for path in (*(ROOT / "templates/images/common").glob("watch*.py"), *(ROOT / "templates/engines").iterdir()):
        shutil.copy(path, scripts)
    if engine == "llamacpp":
        return f"bash {scripts}/llamacpp_watch.sh http://127.0.0.1:{port} {WHOLE_SECONDS}"
    return f"{sys.executable} {scripts}/watch.py {engine} http://127.0.0.1:{port} {SECONDS}"


class Replica:
    """A service under supervise.sh and the watch."""

    def __init__(self, folder: Path, engine: str, environment: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.ready, self.hang, self.log_file = folder / "ready", folder / "hang", folder / "log"
        watch = watch_command(folder, engine, self.port)
        files = {"STACKGEN_READY_FILE": str(self.ready), "STACKGEN_HANG_FILE": str(self.hang), "LLAMA_API_KEY": "k"}
        server = ROOT / "tests/standin" / SERVERS[engine]
        command = ["sh", str(ROOT / "templates/images/common/supervise.sh"), sys.executable, str(server)]
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [*command, str(self.port), str(self.ready)],
                env={**os.environ, **files, "STACKGEN_WATCH": watch, **environment},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_until(self.ready.exists)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def restarts(self) -> int:
        return self.log.count("because it hung: starting it again")

    def quiet_seconds(self) -> int:
        """How long the service had made no progress when its newest hang was found. The default: 25 to 28 s for 25 s.

        On a machine that is busy with other tests, everything takes longer.
        """
        return int(re.findall(r"the service hangs: no progress for (\d+)s", self.log)[-1])

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("GET", path)
        return connection.getresponse().read().decode()

    def engine_pid(self) -> int:
        return int(self.get("/pid"))

    def server_pid(self) -> int:
        return int(Path(f"/proc/{self.engine_pid()}/stat").read_text().rpartition(")")[2].split()[1])

    def ask(self, prompt: str, path: str = "/v1/completions") -> None:
        """Sends a request and waits for its answer, or for the end of the server."""
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            connection.request("POST", path, json.dumps({"prompt": prompt}))
            connection.getresponse().read()

    def start_request(self, prompt: str) -> threading.Thread:
        thread = threading.Thread(target=self.ask, args=(prompt,))
        thread.start()
        return thread


def is_running(pid: int) -> bool:
    """Whether the process runs: not one that has ended, and whose parent has not asked for its exit code."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


@contextmanager
def running(folder: Path, engine: str = "vllm", **environment: str) -> Iterator[Replica]:
    replica = Replica(folder, engine, environment)
    try:
        yield replica
    finally:
        with suppress(ProcessLookupError):
            os.killpg(replica.process.pid, signal.SIGKILL)
        replica.process.wait()
