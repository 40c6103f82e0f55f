"""How often a start that fails is tried by default. The engine is the stand-in, which refuses flags as vLLM does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


def test_a_failing_start_is_tried_four_times_by_default(standin_image: str, tiny_model: Path, tmp_path: Path) -> None:
    model = {"model": str(tiny_model), "engine": "vllm", "image": standin_image, "served_names": ["tiny"],
             "extra_args": ["--no-such-flag"]}  # fmt: skip
    with LiveStack(tmp_path, {"name": "sgtest-attempts", "port": 18192, "models": [model]}) as stack:
        done = stack.run_stackgen("up", str(tmp_path))
        assert done.returncode == 1
        assert "stackgen: vllm-tiny exited with code 2 after 4 attempts" in done.stderr
        state = stack.inspect("vllm-tiny")
        assert (state["State"]["Status"], state["State"]["ExitCode"], state["RestartCount"]) == ("exited", 2, 3)
        assert stack.logs().count("never healthy: see the reason above") == 4
