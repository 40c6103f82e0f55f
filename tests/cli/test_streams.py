"""Closed and full standard streams: no bug is reported, and no output goes into a file of the stack."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stackgen.stack.envfile import create_env
from tests.conftest import ROOT

STACK = "name: demo\nport: 1\nmodels: [{model: org/name, engine: vllm, revision: abc}]\ngateway: true\n"


def run(folder: Path, command: str, redirection: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a shell, with its standard streams redirected or closed; the test reads what is left open."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "DOCKER_HOST": f"unix://{folder}/nobody"}
    line = f"exec {sys.executable} -m stackgen {command} {redirection}"
    return subprocess.run(
        ["sh", "-c", line], cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.PIPE
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stack.yaml").write_text(STACK)
    create_env(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("command", "code"), [("render --stdout", 0), ("check", 1), ("diagnose --logs -", 1)])
def test_closed_streams_are_no_bug(folder: Path, command: str, code: int) -> None:
    env = (folder / ".env").read_text()
    for redirection in ("<&- >&-", "<&- >&- 2>&-"):
        done = run(folder, command, redirection)
        assert done.returncode == code, (redirection, done.stderr)
        assert "bug" not in done.stderr and "Traceback" not in done.stderr
    assert (folder / ".env").read_text() == env


@pytest.mark.parametrize("action", ["new team", "rotate default"])
def test_no_key_is_created_that_nobody_can_read(folder: Path, action: str) -> None:
    env = (folder / ".env").read_text()
    done = run(folder, f"keys {action}", ">&-")
    assert done.returncode == 2 and "standard output is closed, so the new key would be lost" in done.stderr
    assert (folder / ".env").read_text() == env and not (folder / "gateway" / "keys.map").exists()


@pytest.mark.parametrize("command", ["schema", "check --list"])
def test_output_that_can_not_be_written_is_an_error(folder: Path, command: str) -> None:
    done = run(folder, command, ">/dev/full")
    assert done.returncode == 3
    assert done.stderr.startswith("stackgen: No space left on device: standard output\n"), done.stderr
