"""Starts that must fail: they end after a bounded number of tries, and Docker and `up` both show the reason.

The engine is the stand-in, because what is tested is the supervisor, the restart policy and `up`.
`tests/live/test_diagnose.py` starts real engines that fail.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.live.small_stacks import first_finding, standin_stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

PORT = 18120


def test_an_unknown_flag_fails_the_start_and_is_named(standin_image: str, tmp_path: Path) -> None:
    with standin_stack(tmp_path, "flag", standin_image, port=PORT, extra_args=["--no-such-flag"]) as stack:
        done = stack.run_stackgen("up", str(tmp_path))
        assert done.returncode == 1
        assert "unrecognized arguments: --no-such-flag" in done.stderr and "after 2 attempts" in done.stderr
        assert "Traceback" not in done.stderr
        state = stack.inspect("vllm-tiny")
        assert (state["State"]["Status"], state["State"]["ExitCode"], state["RestartCount"]) == ("exited", 2, 1)
        listed = json.loads(stack.compose("ps", "--all", "--format", "json").stdout.splitlines()[0])
        assert "Exited (2)" in (listed if isinstance(listed, dict) else listed[0])["Status"]
        assert "never healthy: see the reason above" in stack.logs()


def test_a_start_that_takes_too_long_is_named(standin_image: str, tmp_path: Path) -> None:
    slow = {"STANDIN_START_SECONDS": "60"}
    with standin_stack(tmp_path, "slow", standin_image, port=PORT, extra_env=slow) as stack:
        done = stack.run_stackgen("up", str(tmp_path), "--timeout", "6")
        assert done.returncode == 1, done.stdout
        assert "start timed out: vllm-tiny is running, but its health check reports starting" in done.stderr


def test_a_port_in_use_is_named(standin_image: str, tmp_path: Path) -> None:
    """Without doctor's checks, only Compose reports it, while it starts the stack. No container keeps the reason."""
    with socket.create_server(("127.0.0.1", PORT)), standin_stack(tmp_path, "port", standin_image, port=PORT) as stack:
        done = stack.run_stackgen("up", str(tmp_path))
        assert done.returncode == 1 and f"SG-P020 port: port {PORT} is taken" in done.stderr
        assert "Nothing was downloaded or started" in done.stderr
        assert stack.compose("ps", "--all", "--quiet").stdout == ""
        done = stack.run_stackgen("up", str(tmp_path), "--skip-doctor")
        assert done.returncode == 1
        assert "a port is already in use" in done.stderr and "error[SG-D001]" in done.stderr
        assert str(PORT) in done.stderr


def test_compose_without_a_key_names_the_command_that_creates_one(standin_image: str, tmp_path: Path) -> None:
    with standin_stack(tmp_path, "nokey", standin_image, port=PORT) as stack:
        (tmp_path / ".env").write_text("")
        done = stack.compose("up", "--detach")
        assert done.returncode != 0 and "stackgen init" in done.stderr
        (tmp_path / ".env").write_text("STACKGEN_API_KEY=x\n")


def test_a_stack_that_was_never_started_is_diagnosed(standin_image: str, tmp_path: Path) -> None:
    with standin_stack(tmp_path, "diagnone", standin_image, port=PORT) as stack:
        assert first_finding(stack)["id"] == "SG-C007"
