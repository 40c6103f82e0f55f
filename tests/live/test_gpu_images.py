"""The rendered services in images with the layout of the real ones: programs found, flags parsed, health checks passed.

Prometheus and HAProxy run for real, with their official images' layout, in the tests of monitoring and the gateway.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stackgen.cli.main import main
from stackgen.diagnose import diagnose
from stackgen.runtimes.observation.evidence import collect_from_log
from tests.live.gpu_compose import Compose
from tests.live.gpu_engine import GpuEngine, reason_to_skip
from tests.live.gpu_layouts import PARSED, STARTED, use_layouts

pytestmark = [pytest.mark.docker, pytest.mark.gpu_stub, pytest.mark.timeout(120)]

LLAMA = {"engine": "llamacpp", "file": "x.gguf", "max_model_len": "8k", "max_num_seqs": 2, "gpu_layers": 9}
FASTCHAT = {"engine": "fastchat", "load_8bit": True, "max_gpu_memory": "9GiB", "conv_template": "vicuna_v1.1"}
VLLM: dict[str, Any] = {
    "engine": "vllm", "max_model_len": "auto", "dtype": "auto", "quantization": "fp8", "kv_cache_dtype": "fp8",
    "gpu_memory_utilization": 0.5, "max_num_seqs": 4, "enforce_eager": True, "tool_call_parser": "hermes",
    "reasoning_parser": "qwen3", "trust_remote_code": True,
    "lora_adapters": [{"name": "a", "path": "./weights"}],
}  # fmt: skip
SGLANG: dict[str, Any] = {
    "engine": "sglang", "max_model_len": "8k", "dtype": "auto", "quantization": "fp8", "kv_cache_dtype": "fp8_e5m2",
    "mem_fraction_static": 0.5, "max_num_seqs": 4, "enforce_eager": True, "tool_call_parser": "hermes",
    "reasoning_parser": "qwen3", "trust_remote_code": True, "chunked_prefill_size": 2048,
}  # fmt: skip
SERVER = "ghcr.io/ggml-org/llama.cpp:server"
# uid and working directory of the program
CASES = {
    "nvidia": (
        "nvidia",
        [VLLM, LLAMA, FASTCHAT, SGLANG],
        ["2000 in /vllm-workspace", "0 in /app", "1000 in /home/fastchat", "0 in /sgl-workspace/sglang"],
    ),
    "amd": (
        "amd",
        [VLLM, LLAMA | {"image": f"{SERVER}-rocm-b11434"}, LLAMA | {"image": f"{SERVER}-vulkan-b11434"}],
        ["0 in /app", "0 in /app", "0 in /app"],
    ),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[GpuEngine]:
    if reason := reason_to_skip():
        pytest.skip(reason)
    with GpuEngine() as started:
        yield started


def render(folder: Path, driver: str, models: list[dict[str, Any]], **fields: Any) -> tuple[Path, list[str]]:
    """Renders a stack in which each model has its own GPU. Returns the Compose file and the engines' services."""
    (folder / "weights").mkdir()
    entries = [
        {"model": "./weights", "gpus": [index], "served_names": [f"m{index}"]} | model
        for index, model in enumerate(models)
    ]
    data = {"name": "gpu-images", "gpu_driver": driver, "gateway": False, "models": entries} | fields
    (folder / "stack.yaml").write_text(json.dumps(data), encoding="utf-8")
    assert main(["render", str(folder), "--no-validate"]) == 0
    return folder / "compose.yaml", [f"{model['engine']}-m{index}" for index, model in enumerate(models)]


def start(engine: GpuEngine, compose: Compose, services: list[str]) -> None:
    use_layouts(engine, compose)
    compose("up", "-d", "--no-build", "--pull", "never", "--no-deps", *services)


def wait_for_log(compose: Compose, service: str, text: str) -> str:
    """Returns the log of `service` once it contains `text`, or what it contains after 20 seconds."""
    end, log = time.monotonic() + 20, ""
    while text not in log and time.monotonic() < end:
        log = compose("logs", "--no-log-prefix", service).stdout
        time.sleep(0.1)
    return log


@pytest.mark.parametrize("name", CASES)
def test_every_gpu_command_is_found_and_its_flags_are_parsed(engine: GpuEngine, tmp_path: Path, name: str) -> None:
    driver, models, expected = CASES[name]
    file, services = render(tmp_path, driver, models)
    with engine.project(file, f"gpu-{uuid.uuid4().hex[:8]}") as compose:
        start(engine, compose, services)
        logs = [wait_for_log(compose, service, PARSED) for service in services]
    kept = [line for log in logs for line in log.splitlines() if line.startswith("stackgen: compiled code is kept in ")]
    assert len(kept) == models.count(VLLM)
    assert [line for log in logs for line in log.splitlines() if line not in kept] == [
        f"{PARSED}, uid {one}" for one in expected
    ]


def test_services_around_the_engines_start_and_pass_their_health_checks(engine: GpuEngine, tmp_path: Path) -> None:
    file, _ = render(tmp_path, "nvidia", [VLLM | {"lora_adapters": []}], gateway=True, monitoring=True, ui="open-webui")
    expected = {
        "grafana": f"uid 472 in /usr/share/grafana {STARTED} 3000",
        "dcgm-exporter": f"uid 1000 in / {STARTED} 9400",
        "open-webui": f"uid 0 in /app/backend {STARTED} 8080",
    }
    with engine.project(file, f"gpu-{uuid.uuid4().hex[:8]}") as compose:
        use_layouts(engine, compose)
        compose("up", "-d", "--no-build", "--pull", "never", "--no-deps", "--wait", "--wait-timeout", "40", *expected)
        logs = {service: compose("logs", "--no-log-prefix", service).stdout.strip() for service in expected}
    assert logs == expected


def test_a_program_that_the_image_lacks_is_diagnosed(engine: GpuEngine, tmp_path: Path) -> None:
    # an image of another engine
    file, services = render(tmp_path, "nvidia", [LLAMA | {"image": "vllm/vllm-openai:v0.32.0"}])
    with engine.project(file, f"gpu-{uuid.uuid4().hex[:8]}") as compose:
        start(engine, compose, services)
        log = wait_for_log(compose, services[0], "code 127")
    (finding, *_) = diagnose(collect_from_log(log))
    assert finding.id == "SG-D007", log
    assert "llama-server" in finding.cause
