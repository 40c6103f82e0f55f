"""A stack under test: rendered by stackgen, run by plain `docker compose`, queried by stackgen, always torn down."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stackgen.stack.envfile import create_env, read_api_key

__all__ = ["QUESTION", "LiveStack"]


# "What is …" is a near tie for SmolLM2: rounding decides which token wins, and differs between engines
QUESTION = "Name the capital of France."


@dataclass
class LiveStack:
    """A stack in `folder`. `data` is the content of its stack.yaml; `stopped` means that `up` must start it again."""

    folder: Path
    data: dict[str, Any]
    stopped: bool = True
    starting: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __enter__(self) -> LiveStack:
        (self.folder / "stack.yaml").write_text(yaml.safe_dump(self.data))
        self.stackgen("render", str(self.folder))
        # a killed test run may have left it running, in another folder, so `stackgen down` would refuse
        self.compose("down", "--remove-orphans")
        (self.folder / ".env").unlink(missing_ok=True)
        create_env(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self.compose("down", "--remove-orphans", "--timeout", "5")

    @property
    def key(self) -> str:
        return read_api_key(self.folder)

    def stackgen(self, *args: str, code: int = 0) -> str:
        """Runs a stackgen command, which must exit with `code`, and returns its standard output."""
        done = self.run_stackgen(*args)
        assert done.returncode == code, f"stackgen {' '.join(args)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run_stackgen(self, *args: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Runs a stackgen command and returns its result, whatever the exit code. Fails after `timeout` seconds."""
        command = [sys.executable, "-m", "stackgen", *args]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            shown = b"".join((error.stdout or b"", error.stderr or b"")).decode(errors="replace")
            raise AssertionError(
                f"stackgen {' '.join(args)} did not end in {timeout} s; its output:\n{shown}"
            ) from None

    def compose(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Runs plain Compose, as a user without stackgen does."""
        command = [
            "docker",
            "compose",
            "-f",
            str(self.folder / "compose.yaml"),
            "--env-file",
            str(self.folder / ".env"),
        ]
        return subprocess.run([*command, *args], capture_output=True, text=True, timeout=900)

    def up(self, *args: str) -> None:
        """Starts the stack with plain Compose and waits until it is healthy."""
        with self.starting:
            self._up(*args)

    def ensure_running(self) -> LiveStack:
        """Starts the stack unless it runs. Waits if another thread is starting it."""
        with self.starting:
            if self.stopped:
                self._up()
        return self

    def _up(self, *args: str) -> None:
        done = self.compose("up", "--detach", "--wait", *args)
        # Compose only names the unhealthy container: the reason is in its log
        assert done.returncode == 0, done.stderr[-3000:] + self.logs()[-6000:]
        self.stopped = False

    def logs(self) -> str:
        return self.compose("logs", "--no-color").stdout

    def ask(self, question: str = QUESTION, *args: str) -> str:
        """Returns the answer of `stackgen ask`, at most 24 tokens."""
        return self.stackgen("ask", question, "--stack", str(self.folder), "--max-tokens", "24", *args)

    def check(self) -> dict[str, Any]:
        """Returns the report of `stackgen check --json`, which must pass."""
        report: dict[str, Any] = json.loads(self.stackgen("check", str(self.folder), "--json"))
        return report

    def inspect(self, service: str) -> dict[str, Any]:
        """Returns `docker inspect` of the service's container."""
        container = self.compose("ps", "--all", "--quiet", service).stdout.split()[0]
        found: list[dict[str, Any]] = json.loads(
            subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True).stdout
        )
        return found[0]

    def execute(self, service: str, *args: str) -> subprocess.CompletedProcess[str]:
        return self.compose("exec", "-T", service, *args)
