"""What the tests of rolling updates share: a stack of two replicas, edits of its file, and commands on it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.live.load import Load
from tests.live.stacks import LiveStack

__all__ = [
    "FIRST", "PORT", "SECOND", "assert_no_failures", "container_id", "edit_model", "edit_stack", "load", "rolling_data",
    "running_services", "update",
]  # fmt: skip

PORT = 18810
FIRST, SECOND = "vllm-tiny", "vllm-tiny-2"


def rolling_data(image: str, haproxy_image: str, model: Path) -> dict[str, Any]:
    """The stack file: two replicas of a tiny model behind the gateway."""
    entry = {
        "model": str(model), "engine": "vllm", "served_names": ["tiny"], "image": image, "replicas": 2,
        "max_model_len": 1024, "cpu_kv_cache_gib": 1, "dtype": "float32", "enforce_eager": True,
        # two replicas would both bind to the first core
        "extra_env": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"},
    }  # fmt: skip
    return {"name": "roll-test", "port": PORT, "gateway": {"image": haproxy_image}, "models": [entry]}


def load(stack: LiveStack) -> Load:
    return Load(PORT, [stack.key])


def edit_model(stack: LiveStack, entry: int = 0, **fields: Any) -> None:
    """Changes fields of a model in stack.yaml, by the model's position there."""
    path = stack.folder / "stack.yaml"
    data = yaml.safe_load(path.read_text())
    data["models"][entry] |= fields
    path.write_text("# a comment\n" + yaml.safe_dump(data, sort_keys=False))


def edit_stack(stack: LiveStack, **fields: Any) -> None:
    path = stack.folder / "stack.yaml"
    path.write_text("# a comment\n" + yaml.safe_dump(yaml.safe_load(path.read_text()) | fields, sort_keys=False))


def update(stack: LiveStack, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    # shorter than the time limit of a test, so that a failure shows the output
    done = stack.run_stackgen(
        "update", str(stack.folder), "--progress", "plain", "--timeout", "900", *args, timeout=500
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def assert_no_failures(capsys: pytest.CaptureFixture[str], traffic: Load, what: str) -> None:
    with capsys.disabled():
        print(f"\n  {traffic.summary(what)}")
    assert not traffic.failures, traffic.failures[:5]


def running_services(stack: LiveStack) -> set[str]:
    return set(stack.compose("ps", "--services", "--status", "running").stdout.split())


def container_id(stack: LiveStack, service: str) -> str:
    return str(stack.inspect(service)["Id"])
