"""A complete stack with a fake Hub: rendered, downloaded once, served by vLLM, and started a second time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub.standin import Hub
from tests.live.stacks import QUESTION, LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
# the address of Docker's default bridge: containers in every network reach the host under it
BRIDGE = "172.17.0.1"


def test_weights_are_downloaded_once(vllm_image: str, tiny_model: Path, tmp_path: Path) -> None:
    hub = Hub({"org/tiny": tiny_model}, host=BRIDGE)
    model = {
        "model": "org/tiny", "engine": "vllm", "image": vllm_image, "max_model_len": 512, "cpu_kv_cache_gib": 1,
        "revision": hub.commit("org/tiny"), "enforce_eager": True,
    }  # fmt: skip
    data = {
        "name": "sgtest-hub", "port": 18130, "models": [model],
        "storage": {"volume": "sgtest-hub-models", "hub_endpoint": hub.url},
    }  # fmt: skip
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
            stack.stackgen("down", str(tmp_path), "--volumes")
            hub.close()


def test_a_gated_model_without_a_token_fails_with_a_fix(vllm_image: str, tiny_model: Path, tmp_path: Path) -> None:
    hub = Hub({"org/gated": tiny_model}, gated=("org/gated",), host=BRIDGE)
    model = {"model": "org/gated", "engine": "vllm", "image": vllm_image}
    storage = {"volume": "sgtest-gated-models", "hub_endpoint": hub.url}
    with LiveStack(tmp_path, {"name": "sgtest-gated", "port": 18131, "models": [model], "storage": storage}) as stack:
        try:
            done = stack.run_stackgen("up", str(tmp_path))
            assert done.returncode == 1
            assert "it needs a token and none was given" in done.stderr and "HF_TOKEN_FILE" in done.stderr
            assert stack.compose("ps", "--all", "--quiet", "vllm-gated").stdout == "" or (
                stack.inspect("vllm-gated")["State"]["Status"] == "created"
            )
        finally:
            stack.stackgen("down", str(tmp_path), "--volumes")
            hub.close()


def test_fastchat_and_llamacpp_load_from_the_same_storage(
    fastchat_image: str, llamacpp_image: str, tiny_model: Path, smollm2: Path, tmp_path: Path
) -> None:
    """FastChat by repository id, llama.cpp by the path of a file in it; both offline, with read-only storage."""
    folder = smollm2.with_name("smollm2-GGUF")
    file = next(folder.glob("*.gguf")).name
    hub = Hub({"org/tiny": tiny_model, "org/gguf": folder}, host=BRIDGE)
    models = [
        {"model": "org/tiny", "engine": "fastchat", "served_names": ["tiny"]},
        {"model": "org/gguf", "engine": "llamacpp", "file": file, "served_names": ["smol"], "max_model_len": 1024},
    ]
    storage = {"volume": "sgtest-others-models", "hub_endpoint": hub.url}
    data = {"name": "sgtest-others", "port": 18132, "gateway": False, "models": models, "storage": storage}
    with LiveStack(tmp_path, data) as stack:
        try:
            done = stack.run_stackgen("up", str(tmp_path), "--json")
            assert done.returncode == 0, done.stdout + done.stderr
            assert [endpoint["name"] for endpoint in json.loads(done.stdout)["endpoints"]] == [
                "fastchat",
                "llamacpp-smol",
            ]
            assert "Paris" in stack.ask(QUESTION, "--model", "smol")
        finally:
            stack.stackgen("down", str(tmp_path), "--volumes")
            hub.close()
