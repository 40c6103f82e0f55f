"""Real failures, from `stackgen up` to `stackgen diagnose`: the cause, its numbers, and the fix."""

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
from tests.live.test_faults import tiny_vllm_stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


def first_finding(stack: LiveStack, *args: str) -> dict[str, Any]:
    """Returns the first finding of `stackgen diagnose`, which must have one."""
    found: dict[str, Any] = json.loads(stack.stackgen("diagnose", str(stack.folder), "--json", *args, code=1))
    first: dict[str, Any] = found["findings"][0]
    return first


def test_a_context_longer_than_the_models_is_reported_and_fixed(
    vllm_image: str, tiny_model: Path, tmp_path: Path
) -> None:
    with tiny_vllm_stack(tmp_path, "diaglen", vllm_image, tiny_model, restart="no", max_model_len=1000000) as stack:
        wrong = (tmp_path / "stack.yaml").read_text()
        done = stack.run_stackgen("up", str(tmp_path), "--fix", "--yes")
        assert done.returncode == 1
        assert done.stderr.index("error[SG-V001]") < done.stderr.index("stackgen: vllm-tiny exited with code 1")
        assert "+" in done.stderr and "max_model_len: 2048" in (tmp_path / "stack.yaml").read_text()
        (tmp_path / "stack.yaml").write_text(wrong)
        found = first_finding(stack, "--fix", "--yes", "--bundle", str(tmp_path / "report.tar.gz"))
        assert found["id"] == "SG-V001" and found["service"] == "vllm-tiny"
        assert found["change"] == {"path": ["models", 0, "max_model_len"], "value": "2048", "was": "1000000",
                                   "safe": True, "remove": False}  # fmt: skip
        assert "max_model_len: 2048" in (tmp_path / "stack.yaml").read_text()
        with tarfile.open(tmp_path / "report.tar.gz") as tar:
            packed = b"".join(tar.extractfile(one).read() for one in tar.getmembers())  # type: ignore[union-attr]
        assert b"max_model_len" in packed and stack.key.encode() not in packed


def test_a_container_or_its_log_alone_gives_the_same_diagnosis(
    vllm_image: str, tiny_model: Path, tmp_path: Path
) -> None:
    with tiny_vllm_stack(tmp_path, "diagshm", vllm_image, tiny_model, restart="no", shm_size="64m") as stack:
        assert stack.run_stackgen("up", str(tmp_path)).returncode == 1
        assert first_finding(stack)["id"] == "SG-M009"
        output = stack.stackgen("diagnose", "--container", "sgtest-diagshm-vllm-tiny-1", code=1)
        assert output.startswith("error[SG-M009]") and "160 MiB required, 64 MiB free" in output
        (tmp_path / "saved.log").write_text(stack.logs())
        assert "error[SG-M009]" in stack.stackgen("diagnose", "--logs", str(tmp_path / "saved.log"), code=1)


def test_a_container_killed_for_lack_of_memory_is_diagnosed(
    fastchat_image: str, tiny_model: Path, tmp_path: Path
) -> None:
    """No log line shows it, only Docker's state of the container."""
    model = {"model": str(tiny_model), "engine": "fastchat", "served_names": ["tiny"]}
    with LiveStack(tmp_path, {"name": "sgtest-diagoom", "port": 18128, "restart": "no", "models": [model]}) as stack:
        (tmp_path / "limit.yaml").write_text("services: {fastchat-tiny: {mem_limit: 150m, memswap_limit: 150m}}\n")
        stack.compose("-f", str(tmp_path / "limit.yaml"), "up", "--detach")
        found = first_finding(stack)
        assert (found["id"], found["service"]) == ("SG-M012", "fastchat-tiny")


def test_a_worker_registered_under_localhost_is_diagnosed(
    fastchat_image: str, tiny_model: Path, tmp_path: Path
) -> None:
    model = {"model": str(tiny_model), "engine": "fastchat", "served_names": ["tiny"],
             "extra_args": ["--worker-address", "http://localhost:21002"]}  # fmt: skip
    with LiveStack(tmp_path, {"name": "sgtest-diaglocal", "port": 18129, "restart": "no", "models": [model]}) as stack:
        assert stack.run_stackgen("up", str(tmp_path), "--timeout", "20").returncode == 1
        found = first_finding(stack)
        assert found["id"] == "SG-F003" and "--worker-address" in found["fix"]


def test_a_stack_that_was_never_started_is_reported(vllm_image: str, tiny_model: Path, tmp_path: Path) -> None:
    with tiny_vllm_stack(tmp_path, "diagnone", vllm_image, tiny_model) as stack:
        assert first_finding(stack)["id"] == "SG-C007"


def remove_tokenizer(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()


def break_config_json(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().rstrip().removesuffix("}") + ",}")


def truncate_weights(folder: Path) -> None:
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])


def no_change(folder: Path) -> None:
    """For faults that are not in the model's files."""


def start_and_diagnose(stack: LiveStack, service: str, override: dict[str, Any] | None = None) -> dict[str, Any]:
    """Runs `service` alone until it exits and returns the first finding. `override` changes its Compose service."""
    args: list[str] = []
    if override:
        (stack.folder / "edited.yaml").write_text(json.dumps({"services": {service: override}}))
        args = ["-f", str(stack.folder / "edited.yaml")]
    done = stack.compose(*args, "up", "--detach", "--no-deps", service)
    assert done.returncode == 0, done.stderr
    container = stack.compose("ps", "--all", "--quiet", service).stdout.strip()
    exited = subprocess.run(["docker", "wait", container], capture_output=True, text=True, timeout=180, check=True)
    assert exited.stdout.strip() not in ("", "0"), stack.logs()
    found = first_finding(stack)
    assert found["service"] == service
    return found


# each starts once and exits while it reads its arguments or files: about 9 s of vLLM's own and 5 s of ours
VLLM: list[tuple[str, dict[str, Any], Callable[[Path], None], str]] = [
    ("SG-V004", {"extra_args": ["--no-such-flag"]}, no_change, "the engine has no flag --no-such-flag"),
    ("SG-V005", {"extra_args": ["--dtype", "int4"]}, no_change, "--dtype: invalid choice: 'int4'"),
    ("SG-V002", {"tensor_parallel_size": 3}, no_change, "4 attention heads can't be divided evenly across 3 GPUs"),
    ("SG-V009", {"quantization": "awq"}, no_change, "stack.yaml sets quantization: awq"),
    ("SG-L004", {}, break_config_json, "config.json can't be parsed as JSON"),
    ("SG-L006", {}, remove_tokenizer, "tokenizer.json or tokenizer.model is missing"),
]


@pytest.mark.parametrize(("rule", "fields", "damage", "message"), VLLM, ids=[row[0] for row in VLLM])
def test_the_cause_of_a_failed_vllm_start_is_reported(
    rule: str, fields: dict[str, Any], damage: Callable[[Path], None], message: str, vllm_image: str, tiny_model: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    shutil.copytree(tiny_model, tmp_path / "tiny")
    damage(tmp_path / "tiny")
    with tiny_vllm_stack(tmp_path, "diagends", vllm_image, tmp_path / "tiny", restart="no", **fields) as stack:
        found = start_and_diagnose(stack, "vllm-tiny")
        assert found["id"] == rule and message in found["cause"], found


def test_a_model_path_that_is_not_in_the_container_is_diagnosed(
    vllm_image: str, tiny_model: Path, tmp_path: Path
) -> None:
    with tiny_vllm_stack(tmp_path, "diagpath", vllm_image, tiny_model, restart="no") as stack:
        found = start_and_diagnose(
            stack, "vllm-tiny", {"command": ["vllm", "serve", "/models/not-there", "--port", "8000"]}
        )
        assert found["id"] == "SG-L007" and found["cause"].startswith(
            "/models/not-there does not exist in the container"
        )


def test_an_offline_start_without_the_model_in_storage_is_diagnosed(vllm_image: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    model = {"model": "acme/not-there", "engine": "vllm", "image": vllm_image, "served_names": ["tiny"],
             "max_model_len": 512, "cpu_kv_cache_gib": 1, "enforce_eager": True}  # fmt: skip
    data = {"name": "sgtest-diagoffline", "port": 18120, "restart": "no", "models": [model],
            "storage": {"path": "./store", "offline": True}}  # fmt: skip
    with LiveStack(tmp_path, data) as stack:
        found = start_and_diagnose(stack, "vllm-tiny")
        assert found["id"] == "SG-H006" and "storage.offline: false" in found["fix"]


def test_a_port_in_use_is_reported_by_up(vllm_image: str, tiny_model: Path, tmp_path: Path) -> None:
    """Only Compose reports it, while it starts the stack: no container keeps the reason."""
    with (
        socket.create_server(("127.0.0.1", 18120)),
        tiny_vllm_stack(tmp_path, "diagport", vllm_image, tiny_model) as stack,
    ):
        done = stack.run_stackgen("up", str(tmp_path))
        assert done.returncode == 1 and "error[SG-D001]" in done.stderr and "18120" in done.stderr


# each takes about 6 s of FastChat's own and 4 s of ours
FASTCHAT: list[tuple[str, str, dict[str, Any] | None, Callable[[Path], None], str]] = [
    ("SG-F004", "fastchat-tiny", None, no_change, "no controller at fastchat-controller:21001"),
    ("SG-F001", "fastchat-api", {"environment": {"API_KEYS": "some-key"}}, no_change, "API_KEYS"),
    ("SG-L001", "fastchat-tiny", None, truncate_weights, "a safetensors file is incomplete"),
    ("SG-L007", "fastchat-tiny", {"command": [
        "python3", "/opt/stackgen/launch.py", "worker", "--model-path", "/models/not-there", "--model-names", "tiny",
        "--device", "cpu",
    ]}, no_change, "/models/not-there does not exist in the container"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "service", "override", "damage", "message"), FASTCHAT, ids=[row[0] for row in FASTCHAT]
)
def test_the_cause_of_a_failed_fastchat_start_is_reported(
    rule: str, service: str, override: dict[str, Any] | None, damage: Callable[[Path], None], message: str,
    fastchat_image: str, tiny_model: Path, tmp_path: Path,
) -> None:  # fmt: skip
    shutil.copytree(tiny_model, tmp_path / "tiny")
    damage(tmp_path / "tiny")
    model = {"model": "./tiny", "engine": "fastchat", "served_names": ["tiny"]}
    data = {"name": "sgtest-diagfast", "port": 18128, "restart": "no", "gateway": False, "models": [model]}
    with LiveStack(tmp_path, data) as stack:
        found = start_and_diagnose(stack, service, override)
        assert found["id"] == rule and message in found["cause"], found
        assert "some-key" not in json.dumps(found)
