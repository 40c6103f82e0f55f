"""A stack under test: rendered by stackgen, run by plain `docker compose`, asked by stackgen; always torn down."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stackgen.stack.envfile import key_of

__all__ = ["QUESTION", "LiveStack"]


# "What is …" is a near tie for this model: which token wins differs between engines by rounding
QUESTION = "Name the capital of France."


@dataclass
class LiveStack:
    """The stack of `data` (what stands in stack.yaml) in `folder`."""

    folder: Path
    data: dict[str, Any]
    stopped: bool = True

    def __enter__(self) -> LiveStack:
        (self.folder / "stack.yaml").write_text(yaml.safe_dump(self.data))
        self.stackgen("render", str(self.folder))
        self.stackgen("down", str(self.folder))  # a run that was killed may have left one behind
        (self.folder / ".env").unlink(missing_ok=True)
        from stackgen.stack.envfile import create_env

        create_env(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self.compose("down", "--remove-orphans", "--timeout", "5")

    @property
    def key(self) -> str:
        return key_of(self.folder)

    def stackgen(self, *words: str, code: int = 0) -> str:
        """Standard output of a stackgen command that must end with `code`."""
        done = self.stackgen_raw(*words)
        assert done.returncode == code, f"stackgen {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def stackgen_raw(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "stackgen", *words], capture_output=True, text=True, timeout=900)

    def compose(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Plain Compose, as a user without stackgen calls it."""
        command = [
            "docker",
            "compose",
            "-f",
            str(self.folder / "compose.yaml"),
            "--env-file",
            str(self.folder / ".env"),
        ]
        return subprocess.run([*command, *words], capture_output=True, text=True, timeout=900)

    def up(self, *words: str) -> None:
        done = self.compose("up", "--detach", "--wait", *words)
        assert done.returncode == 0, done.stderr[-3000:] + self.logs()[-6000:]
        self.stopped = False

    def logs(self) -> str:
        return self.compose("logs", "--no-color").stdout

    def ask(self, question: str = QUESTION, *words: str) -> str:
        return self.stackgen("ask", question, "--stack", str(self.folder), "--max-tokens", "24", *words)

    def check(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.stackgen("check", str(self.folder), "--json"))
        return report

    def inspect(self, service: str) -> dict[str, Any]:
        container = self.compose("ps", "--all", "--quiet", service).stdout.split()[0]
        found: list[dict[str, Any]] = json.loads(
            subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True).stdout
        )
        return found[0]

    def execute(self, service: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.compose("exec", "-T", service, *words)
