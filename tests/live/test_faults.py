"""Starts that must fail: they end after a bounded number of tries, and Docker and `up` both show the reason."""

from __future__ import annotations

import json
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


def tiny_vllm_stack(
    folder: Path, name: str, image: str, model: Path, restart: str = "on-failure:1", **fields: Any
) -> LiveStack:
    entry = {
        "model": str(model), "engine": "vllm", "image": image, "served_names": ["tiny"], "max_model_len": 512,
        "cpu_kv_cache_gib": 1, "enforce_eager": True,
    }  # fmt: skip
    return LiveStack(folder, {"name": f"sgtest-{name}", "port": 18120, "restart": restart, "models": [entry | fields]})


def test_an_unknown_flag_fails_the_start_and_is_named(vllm_image: str, tiny_model: Path, tmp_path: Path) -> None:
    with tiny_vllm_stack(tmp_path, "flag", vllm_image, tiny_model, extra_args=["--no-such-flag"]) as stack:
        done = stack.run_stackgen("up", str(tmp_path))
        assert done.returncode == 1
        assert "unrecognized arguments: --no-such-flag" in done.stderr and "after 2 attempts" in done.stderr
        assert "Traceback" not in done.stderr
        state = stack.inspect("vllm-tiny")
        assert (state["State"]["Status"], state["State"]["ExitCode"], state["RestartCount"]) == ("exited", 2, 1)
        listed = json.loads(stack.compose("ps", "--all", "--format", "json").stdout.splitlines()[0])
        assert "Exited (2)" in (listed if isinstance(listed, dict) else listed[0])["Status"]
        assert "never healthy: see the reason above" in stack.logs()


def test_a_model_that_crashes_at_the_first_request_never_becomes_healthy(
    vllm_image: str, broken_model: Path, tmp_path: Path
) -> None:
    """With head_dim 16 it loads, reports that it is ready, and crashes when it generates: `/health` alone passes."""
    with tiny_vllm_stack(tmp_path, "broken", vllm_image, broken_model, restart="no") as stack:
        done = stack.run_stackgen("up", str(tmp_path))
        assert done.returncode == 1, done.stdout
        assert "vllm-tiny exited with code" in done.stderr
        assert "Application startup complete" in stack.logs()


def test_a_port_in_use_is_named(vllm_image: str, tiny_model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 18120)), tiny_vllm_stack(tmp_path, "port", vllm_image, tiny_model) as stack:
        done = stack.run_stackgen("up", str(tmp_path))
        assert done.returncode == 1
        assert "a port is already in use" in done.stderr and "18120" in done.stderr


def test_compose_without_a_key_names_the_command_that_creates_one(
    vllm_image: str, tiny_model: Path, tmp_path: Path
) -> None:
    with tiny_vllm_stack(tmp_path, "nokey", vllm_image, tiny_model) as stack:
        (tmp_path / ".env").write_text("")
        done = stack.compose("up", "--detach")
        assert done.returncode != 0 and "stackgen init" in done.stderr
        (tmp_path / ".env").write_text("STACKGEN_API_KEY=x\n")


def test_a_worker_that_cannot_start_is_named_with_its_reason(
    fastchat_image: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The API server waits for the worker, so Compose itself only reports that a dependency failed."""
    model = {
        "model": str(tiny_model),
        "engine": "fastchat",
        "served_names": ["tiny"],
        "conv_template": "no-such-template",
    }
    data = {"name": "sgtest-worker", "port": 18125, "restart": "no", "models": [model]}
    with LiveStack(tmp_path, data) as stack:
        for _ in range(2):  # a second start must not report the first one's dead containers as its own
            started = time.time()
            done = stack.run_stackgen("up", str(tmp_path))
            assert done.returncode == 1, done.stdout
            assert "fastchat-tiny exited with code" in done.stderr and "no-such-template" in done.stderr
            finished = stack.inspect("fastchat-tiny")["State"]["FinishedAt"][:19]
            assert datetime.fromisoformat(finished + "+00:00").timestamp() >= started - 1
