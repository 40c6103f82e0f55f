"""Shared by all tests: real images and models, built once, and the switch that turns skips into failures."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.parts import *  # noqa: F403  (hooks: groups, parts and the table at the end)

ROOT = Path(__file__).parents[1]
# `make test` and CI set it: everything that a test needs must exist there, so a skip is a failure
STRICT = os.environ.get("STACKGEN_STRICT") == "1"

# a control plane takes 10 minutes to compile: `make test-cluster` starts one, and `make test` leaves these tests alone
collect_ignore = [] if os.environ.get("STACKGEN_TEST_KUBECONFIG") else ["cluster"]
# stackgen records the folders of stacks there, and the user's own list must not contain the stacks of tests
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="stackgen-test-state-")

# how long an example takes depends on the other load of the machine: pytest's own time limit finds what hangs
settings.register_profile("stackgen", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("stackgen")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    # pytest reports an expected failure as skipped too
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped, but STACKGEN_STRICT=1 makes a skip a failure: {report.longrepr}"


def _is_docker_running() -> bool:
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


def _build(script: str, *args: str) -> str:
    """Runs a script in scripts/ that builds an image or model if needed. Returns the tag or path that it prints."""
    if not _is_docker_running():
        pytest.skip("no Docker engine is running")
    done = subprocess.run([str(ROOT / "scripts" / script), *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def vllm_image() -> str:
    """vLLM for the CPU, built here."""
    return _build("build-image", "vllm-cpu")


@pytest.fixture(scope="session")
def standin_image() -> str:
    """An engine that answers like vLLM 0.32.0 and starts in 0.3 s; `tests/live/test_standin.py` compares the two."""
    return _build("build-image", "vllm-standin")


@pytest.fixture(scope="session")
def fastchat_image() -> str:
    """FastChat for the CPU, built under the tag that stackgen renders."""
    return _build("build-image", "fastchat")


@pytest.fixture(scope="session")
def llamacpp_image() -> str:
    """llama.cpp for the CPU, built under the tag that stackgen renders."""
    return _build("build-image", "llamacpp")


@pytest.fixture(scope="session")
def old_llamacpp_image() -> str:
    """An older build of llama.cpp's server for the CPU, built here."""
    return _build("build-image", "llamacpp", "11401")


@pytest.fixture(scope="session")
def download_image() -> str:
    """The image that only downloads, built under the tag that stackgen renders."""
    return _build("build-image", "download")


@pytest.fixture(scope="session")
def haproxy_image() -> str:
    """The official HAProxy image if it is available, else one built from Debian's package."""
    return _build("build-image", "haproxy")


@pytest.fixture(scope="session")
def prometheus_image() -> str:
    """The official Prometheus image if it is available, else one built from Debian's package, with promtool."""
    return _build("build-image", "prometheus")


@pytest.fixture(scope="session")
def router_image() -> str:
    """vllm-router, built under the tag that stackgen renders."""
    return _build("build-image", "vllm-router")


@pytest.fixture(scope="session")
def nginx_image() -> str:
    """nginx, built from Debian's package."""
    return _build("build-image", "nginx")


@pytest.fixture(scope="session")
def grafana_image() -> str:
    """The official Grafana image if it is available, else "", because Debian has no package."""
    found = _build("build-image", "grafana")
    return "" if found == "none" else found


@pytest.fixture(scope="session")
def exporter_image() -> str:
    """The exporter with the stackgen of this checkout, under the tag that stackgen renders."""
    return _build("build-image", "exporter")


@pytest.fixture(scope="session")
def tiny_model(vllm_image: str) -> Path:
    """A Llama with random weights, smaller than 1 MB."""
    return Path(_build("small-model", "tiny"))


@pytest.fixture(scope="session")
def smollm2(vllm_image: str) -> Path:
    """SmolLM2-135M-Instruct: small, but it knows the capital of France."""
    return Path(_build("small-model", "smollm2"))


@pytest.fixture
def free_port() -> int:
    """A port of this machine that is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
