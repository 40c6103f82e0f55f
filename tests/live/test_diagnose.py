"""Real failures, from `stackgen up` to `stackgen diagnose`: the cause, its numbers, and the fix that makes it start."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable
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


def tokenizer_gone(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()


def comma_too_much(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().rstrip().removesuffix("}") + ",}")


def cut_off(folder: Path) -> None:
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])


def nothing(folder: Path) -> None:
    """The fault is not the model's."""


def fails(stack: LiveStack, service: str, override: dict[str, Any] | None = None) -> dict[str, Any]:
    """THE cause, after `service` alone ran until it ended; `override` is what a person would have edited in."""
    words: list[str] = []
    if override:
        (stack.folder / "edited.yaml").write_text(json.dumps({"services": {service: override}}))
        words = ["-f", str(stack.folder / "edited.yaml")]
    done = stack.compose(*words, "up", "--detach", "--no-deps", service)
    assert done.returncode == 0, done.stderr
    container = stack.compose("ps", "--all", "--quiet", service).stdout.strip()
    ended = subprocess.run(["docker", "wait", container], capture_output=True, text=True, timeout=180, check=True)
    assert ended.stdout.strip() not in ("", "0"), stack.logs()
    found = cause(stack)
    assert found["service"] == service
    return found


# each is one start that ends while it reads its words or its files: about 9 s of vLLM's own and 5 s of ours
VLLM: list[tuple[str, dict[str, Any], Callable[[Path], None], str]] = [
    ("SG-V004", {"extra_args": ["--no-such-flag"]}, nothing, "does not know --no-such-flag"),
    ("SG-V005", {"extra_args": ["--dtype", "int4"]}, nothing, "--dtype: invalid choice: 'int4'"),
    ("SG-V002", {"tensor_parallel_size": 3}, nothing, "4 attention heads can't be shared out over 3 GPUs"),
    ("SG-V009", {"quantization": "awq"}, nothing, "quantization: awq is set"),
    ("SG-L004", {}, comma_too_much, "config.json can't be read as JSON"),
    ("SG-L006", {}, tokenizer_gone, "tokenizer.json or tokenizer.model is missing"),
]


@pytest.mark.parametrize(("rule", "fields", "plant", "told"), VLLM, ids=[row[0] for row in VLLM])
def test_vllm_ends_and_its_cause_is_told(
    rule: str, fields: dict[str, Any], plant: Callable[[Path], None], told: str, vllm_image: str, tiny_model: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    shutil.copytree(tiny_model, tmp_path / "tiny")
    plant(tmp_path / "tiny")
    with stack_of(tmp_path, "diagends", vllm_image, tmp_path / "tiny", restart="no", **fields) as stack:
        found = fails(stack, "vllm-tiny")
        assert found["id"] == rule and told in found["cause"], found


def test_a_path_that_is_not_in_the_container(vllm_image: str, tiny_model: Path, tmp_path: Path) -> None:
    with stack_of(tmp_path, "diagpath", vllm_image, tiny_model, restart="no") as stack:
        found = fails(stack, "vllm-tiny", {"command": ["vllm", "serve", "/models/not-there", "--port", "8000"]})
        assert found["id"] == "SG-L007" and found["cause"].startswith("/models/not-there is not there")


def test_offline_and_not_in_the_store(vllm_image: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    model = {"model": "acme/not-there", "engine": "vllm", "image": vllm_image, "served_names": ["tiny"],
             "max_model_len": 512, "cpu_kv_cache_gib": 1, "enforce_eager": True}  # fmt: skip
    data = {"name": "sgtest-diagoffline", "port": 18120, "restart": "no", "models": [model],
            "storage": {"path": "./store", "offline": True}}  # fmt: skip
    with LiveStack(tmp_path, data) as stack:
        found = fails(stack, "vllm-tiny")
        assert found["id"] == "SG-H006" and "storage.offline: false" in found["fix"]


def test_a_taken_port_is_told_by_up_itself(vllm_image: str, tiny_model: Path, tmp_path: Path) -> None:
    """Only Compose says it, and only then: no container keeps it."""
    with socket.create_server(("127.0.0.1", 18120)), stack_of(tmp_path, "diagport", vllm_image, tiny_model) as stack:
        done = stack.stackgen_raw("up", str(tmp_path))
        assert done.returncode == 1 and "error[SG-D001]" in done.stderr and "18120" in done.stderr


# about 6 s of FastChat's own and 4 s of ours
FASTCHAT: list[tuple[str, str, dict[str, Any] | None, Callable[[Path], None], str]] = [
    ("SG-F004", "fastchat-tiny", None, nothing, "no controller at fastchat-controller:21001"),
    ("SG-F001", "fastchat-api", {"environment": {"API_KEYS": "some-key"}}, nothing, "API_KEYS"),
    ("SG-L001", "fastchat-tiny", None, cut_off, "ends before it should"),
    ("SG-L007", "fastchat-tiny", {"command": [
        "python3", "/opt/stackgen/launch.py", "worker", "--model-path", "/models/not-there", "--model-names", "tiny",
        "--device", "cpu",
    ]}, nothing, "/models/not-there is not there"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "service", "edit", "plant", "told"), FASTCHAT, ids=[row[0] for row in FASTCHAT])
def test_fastchat_ends_and_its_cause_is_told(
    rule: str, service: str, edit: dict[str, Any] | None, plant: Callable[[Path], None], told: str,
    fastchat_image: str, tiny_model: Path, tmp_path: Path,
) -> None:  # fmt: skip
    shutil.copytree(tiny_model, tmp_path / "tiny")
    plant(tmp_path / "tiny")
    model = {"model": "./tiny", "engine": "fastchat", "served_names": ["tiny"]}
    data = {"name": "sgtest-diagfast", "port": 18128, "restart": "no", "gateway": False, "models": [model]}
    with LiveStack(tmp_path, data) as stack:
        found = fails(stack, service, edit)
        assert found["id"] == rule and told in found["cause"], found
        assert "some-key" not in json.dumps(found)
