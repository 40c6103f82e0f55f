"""Real failures, from `stackgen up` to `stackgen diagnose`: the cause, its numbers, and the fix that makes it start."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.live.stacks import LiveStack
from tests.live.test_faults import stack_of

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


def cause(stack: LiveStack, *words: str) -> dict[str, Any]:
    """The first finding of `stackgen diagnose`, which must say that something is wrong."""
    found: dict[str, Any] = json.loads(stack.stackgen("diagnose", str(stack.folder), "--json", *words, code=1))
    first: dict[str, Any] = found["findings"][0]
    return first


def test_a_context_beyond_the_models_is_told_and_mended(vllm_image: str, tiny_model: Path, tmp_path: Path) -> None:
    with stack_of(tmp_path, "diaglen", vllm_image, tiny_model, restart="no", max_model_len=1000000) as stack:
        wrong = (tmp_path / "stack.yaml").read_text()
        done = stack.stackgen_raw("up", str(tmp_path), "--fix", "--yes")
        assert done.returncode == 1
        assert done.stderr.index("error[SG-V001]") < done.stderr.index("stackgen: vllm-tiny ended with code 1")
        assert "+" in done.stderr and "max_model_len: 2048" in (tmp_path / "stack.yaml").read_text()
        (tmp_path / "stack.yaml").write_text(wrong)
        found = cause(stack, "--fix", "--yes", "--bundle", str(tmp_path / "report.tar.gz"))
        assert found["id"] == "SG-V001" and found["service"] == "vllm-tiny"
        assert found["change"] == {"path": ["models", 0, "max_model_len"], "value": "2048", "was": "1000000",
                                   "safe": True, "remove": False}  # fmt: skip
        assert "max_model_len: 2048" in (tmp_path / "stack.yaml").read_text()
        with tarfile.open(tmp_path / "report.tar.gz") as tar:
            packed = b"".join(tar.extractfile(one).read() for one in tar.getmembers())  # type: ignore[union-attr]
        assert b"max_model_len" in packed and stack.key.encode() not in packed


def test_a_container_and_its_log_alone_tell_the_same(vllm_image: str, tiny_model: Path, tmp_path: Path) -> None:
    with stack_of(tmp_path, "diagshm", vllm_image, tiny_model, restart="no", shm_size="64m") as stack:
        assert stack.stackgen_raw("up", str(tmp_path)).returncode == 1
        assert cause(stack)["id"] == "SG-M009"
        said = stack.stackgen("diagnose", "--container", "sgtest-diagshm-vllm-tiny-1", code=1)
        assert said.startswith("error[SG-M009]") and "160 MiB required, 64 MiB free" in said
        (tmp_path / "saved.log").write_text(stack.logs())
        assert "error[SG-M009]" in stack.stackgen("diagnose", "--logs", str(tmp_path / "saved.log"), code=1)


def test_killed_for_want_of_memory(fastchat_image: str, tiny_model: Path, tmp_path: Path) -> None:
    """No log line tells it: only Docker knows."""
    model = {"model": str(tiny_model), "engine": "fastchat", "served_names": ["tiny"]}
    with LiveStack(tmp_path, {"name": "sgtest-diagoom", "port": 18128, "restart": "no", "models": [model]}) as stack:
        (tmp_path / "limit.yaml").write_text("services: {fastchat-tiny: {mem_limit: 150m, memswap_limit: 150m}}\n")
        stack.compose("-f", str(tmp_path / "limit.yaml"), "up", "--detach")
        found = cause(stack)
        assert (found["id"], found["service"]) == ("SG-M012", "fastchat-tiny")


def test_a_worker_registered_under_localhost(fastchat_image: str, tiny_model: Path, tmp_path: Path) -> None:
    model = {"model": str(tiny_model), "engine": "fastchat", "served_names": ["tiny"],
             "extra_args": ["--worker-address", "http://localhost:21002"]}  # fmt: skip
    with LiveStack(tmp_path, {"name": "sgtest-diaglocal", "port": 18129, "restart": "no", "models": [model]}) as stack:
        assert stack.stackgen_raw("up", str(tmp_path), "--timeout", "20").returncode == 1
        found = cause(stack)
        assert found["id"] == "SG-F003" and "--worker-address" in found["fix"]


def test_a_stack_that_was_never_started(vllm_image: str, tiny_model: Path, tmp_path: Path) -> None:
    with stack_of(tmp_path, "diagnone", vllm_image, tiny_model) as stack:
        assert cause(stack)["id"] == "SG-C007"
