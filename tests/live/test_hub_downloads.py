"""Stacks whose weights are on a fake Hub: rendered, downloaded once, started, and started a second time.

The download service is real. The engine is the stand-in; `test_hub.py` loads what was downloaded into real engines.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.standin import Hub
from tests.live.small_stacks import vllm_entry
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
# the address of Docker's default bridge: containers in every network reach the host under it
BRIDGE = "172.17.0.1"


@pytest.fixture(scope="module")
def image(vllm_image: str, standin_image: str) -> Iterator[str]:
    """vLLM's image, whose `hf` downloads, with the stand-in instead of vLLM."""
    name, flags = "sgtest-hub-standin", "/usr/local/share/vllm-standin/flags.json"
    text = f"FROM {vllm_image}\nCOPY --from={standin_image} {flags} {flags}\n"
    text += f"COPY --from={standin_image} /usr/local/bin/vllm /opt/venv/bin/vllm\n"
    built = subprocess.run(["docker", "build", "--quiet", "--tag", name, "-"], input=text, capture_output=True,
                           text=True, timeout=300)  # fmt: skip
    assert built.returncode == 0, built.stderr
    yield name
    subprocess.run(["docker", "rmi", "--force", name], capture_output=True)


def remove(stack: LiveStack) -> None:
    """Removes a stack and its storage, but not vLLM's cache, which other stacks use."""
    stack.compose("down", "--timeout", "5")
    subprocess.run(["docker", "volume", "rm", stack.data["storage"]["volume"]], capture_output=True, check=True)


def test_weights_are_downloaded_once(image: str, tiny_model: Path, tmp_path: Path) -> None:
    hub = Hub({"org/tiny": tiny_model}, host=BRIDGE)
    model = vllm_entry(image, "org/tiny", served_names=["org/tiny"], revision=hub.commit("org/tiny"))
    storage = {"volume": "sgtest-downloads-models", "hub_endpoint": hub.url}
    data = {"name": "sgtest-downloads", "port": 18135, "models": [model], "storage": storage}
    with LiveStack(tmp_path, data) as stack:
        try:
            done = stack.run_stackgen("up", str(tmp_path), "--progress", "plain")
            assert done.returncode == 0, done.stdout + done.stderr
            assert hub.sent() > 500_000
            assert "download" in done.stderr and "complete" in done.stderr
            requests, engine = len(hub.requests), stack.inspect("vllm-tiny")

            again = stack.run_stackgen("up", str(tmp_path), "--json")
            assert again.returncode == 0 and json.loads(again.stdout)["ok"], again.stderr
            assert len(hub.requests) == requests, "the second start sent requests to the Hub"
            assert stack.inspect("vllm-tiny")["State"]["StartedAt"] == engine["State"]["StartedAt"]
            assert "org/tiny is already there" in stack.compose("logs", "download").stdout
            # only the download service may read a token, and only the engine the key
            assert stack.key not in json.dumps(stack.inspect("download"))
        finally:
            remove(stack)
            hub.close()


def test_a_gated_model_without_a_token_fails_with_a_fix(image: str, tiny_model: Path, tmp_path: Path) -> None:
    hub = Hub({"org/gated": tiny_model}, gated=("org/gated",), host=BRIDGE)
    model = {"model": "org/gated", "engine": "vllm", "image": image}
    storage = {"volume": "sgtest-gated-models", "hub_endpoint": hub.url}
    with LiveStack(tmp_path, {"name": "sgtest-gated", "port": 18136, "models": [model], "storage": storage}) as stack:
        try:
            done = stack.run_stackgen("up", str(tmp_path))
            assert done.returncode == 1
            assert "it needs a token and none was given" in done.stderr and "HF_TOKEN_FILE" in done.stderr
            assert stack.compose("ps", "--all", "--quiet", "vllm-gated").stdout == "" or (
                stack.inspect("vllm-gated")["State"]["Status"] == "created"
            )
        finally:
            remove(stack)
            hub.close()


def test_a_model_for_an_image_without_hf_is_downloaded_by_a_small_image(download_image: str, tmp_path: Path) -> None:
    """The images of llama.cpp for GPUs have no `hf`; llama.cpp itself is not started here."""
    published = tmp_path / "published"
    published.mkdir()
    (published / "m.gguf").write_bytes(b"GGUF" + bytes(600_000))
    hub = Hub({"org/gguf": published}, host=BRIDGE)
    model = {"model": "org/gguf", "engine": "llamacpp", "file": "m.gguf", "image": "sgtest/llama:1"}
    storage = {"volume": "sgtest-gguf-models", "hub_endpoint": hub.url}
    with LiveStack(tmp_path, {"name": "sgtest-gguf", "port": 18139, "models": [model], "storage": storage}) as stack:
        try:
            assert not (tmp_path / "llamacpp").exists(), "nothing is compiled"
            done = stack.compose("up", "--no-build", "--pull", "never", "download")
            assert done.returncode == 0, done.stdout + done.stderr
            container = stack.inspect("download")
            assert container["State"]["ExitCode"] == 0, done.stdout
            assert container["Config"]["Image"] == download_image
            assert hub.sent() > 600_000
            size = subprocess.run(["docker", "image", "inspect", "--format", "{{.Size}}", download_image],
                                  capture_output=True, text=True, check=True).stdout  # fmt: skip
            # the image that compiles llama.cpp and vLLM's image have 0.3 and 30 GB
            assert int(size) < 500e6
        finally:
            remove(stack)
            hub.close()
