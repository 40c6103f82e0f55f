"""What tests share: real images and models, built once, and the switch that turns skips into failures."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# `make test` and CI set it: there, whatever a test needs must be there, and a skip is a failure
STRICT = os.environ.get("STACKGEN_STRICT") == "1"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped, and skips count as failures here: {report.longrepr}"


def _engine_answers() -> bool:
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


def _built(script: str, *words: str) -> str:
    if not _engine_answers():
        pytest.skip("no Docker engine answers")
    done = subprocess.run([str(ROOT / "scripts" / script), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def vllm_image() -> str:
    """vLLM for the CPU, built here."""
    return _built("build-image", "vllm-cpu")


@pytest.fixture(scope="session")
def fastchat_image() -> str:
    """FastChat for the CPU, built here under the very tag that is rendered."""
    return _built("build-image", "fastchat")


@pytest.fixture(scope="session")
def llamacpp_image() -> str:
    """llama.cpp for the CPU, built here under the very tag that is rendered."""
    return _built("build-image", "llamacpp")


@pytest.fixture(scope="session")
def haproxy_image() -> str:
    """The official image where it can be had, else HAProxy as Debian packages it."""
    return _built("build-image", "haproxy")


@pytest.fixture(scope="session")
def prometheus_image() -> str:
    """The official image where it can be had, else Prometheus and promtool as Debian packages them."""
    return _built("build-image", "prometheus")


@pytest.fixture(scope="session")
def nginx_image() -> str:
    """nginx as Debian packages it."""
    return _built("build-image", "nginx")


@pytest.fixture(scope="session")
def grafana_image() -> str:
    """The official image where it can be had, else "": nobody else packages it."""
    found = _built("build-image", "grafana")
    return "" if found == "none" else found


@pytest.fixture(scope="session")
def exporter_image() -> str:
    """The stackgen of this checkout, under the very tag that is rendered."""
    return _built("build-image", "exporter")


@pytest.fixture(scope="session")
def tiny_model(vllm_image: str) -> Path:
    """A random Llama of under 1 MB."""
    return Path(_built("small-model", "tiny"))


@pytest.fixture(scope="session")
def broken_model(vllm_image: str) -> Path:
    """A random Llama that vLLM loads, and dies of at the first request."""
    return Path(_built("small-model", "tiny-broken"))


@pytest.fixture(scope="session")
def smollm2(vllm_image: str) -> Path:
    """SmolLM2-135M-Instruct: small, and knows the capital of France."""
    return Path(_built("small-model", "smollm2"))


@pytest.fixture
def free_port() -> int:
    """A port of this machine that nobody holds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
