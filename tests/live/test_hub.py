"""Real engines that load from the storage that the download service has filled, all of them offline.

`test_hub_downloads.py` tests the download itself.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.standin import Hub
from tests.live.small_stacks import vllm_entry
from tests.live.stacks import QUESTION, LiveStack
from tests.live.starts import Starts, selected_names

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(600)]
# the address of Docker's default bridge: containers in every network reach the host under it
BRIDGE = "172.17.0.1"
REPO = "org/tiny"
# the engine reaches nothing but itself, and nothing reaches it
CUT_OFF = """
services: {vllm-tiny: {ports: !reset [], networks: !override [inside]}}
networks: {inside: {internal: true}}
"""
ASK = """
import json, os, sys, urllib.request as u
body = json.dumps({"model": sys.argv[1], "prompt": "1", "max_tokens": 4}).encode()
headers = {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["VLLM_API_KEY"]}
print(u.urlopen(u.Request("http://127.0.0.1:8000/v1/completions", body, headers), timeout=60).read().decode())
"""


@pytest.fixture(scope="module")
def hub(tiny_model: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    served = shutil.copytree(tiny_model, tmp_path_factory.mktemp("served") / "tiny")
    (served / "original").mkdir()  # not downloaded, so an engine has to load without it
    (served / "original/consolidated.00.pth").write_bytes(bytes(1000))
    hub = Hub({REPO: served, "org/gguf": smollm2.with_name("smollm2-GGUF")}, host=BRIDGE)
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def starts(
    request: pytest.FixtureRequest, hub: Hub, vllm_image: str, fastchat_image: str, llamacpp_image: str, smollm2: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Starts]:  # fmt: skip
    """Both stacks, started at the same time."""
    with Starts(2, selected_names(request)) as starts:
        model = vllm_entry(vllm_image, REPO, served_names=[REPO], revision=hub.commit(REPO))
        storage = {"volume": "sgtest-hub-models", "hub_endpoint": hub.url}
        data = {"name": "sgtest-hub", "port": 18130, "models": [model], "storage": storage}
        starts.run("vllm_offline", LiveStack(tmp_path_factory.mktemp("vllm"), data), start_without_a_network)
        file = next(smollm2.with_name("smollm2-GGUF").glob("*.gguf")).name
        models = [
            {"model": REPO, "engine": "fastchat", "served_names": ["tiny"]},
            {"model": "org/gguf", "engine": "llamacpp", "file": file, "served_names": ["smol"], "max_model_len": 1024},
        ]
        storage = {"volume": "sgtest-others-models", "hub_endpoint": hub.url}
        data = {"name": "sgtest-others", "port": 18131, "gateway": False, "models": models, "storage": storage}
        starts.run("others", LiveStack(tmp_path_factory.mktemp("others"), data), start_and_list_endpoints)
        yield starts
    subprocess.run(["docker", "volume", "rm", "--force", "sgtest-hub-models"], capture_output=True)


def start_without_a_network(stack: LiveStack) -> None:
    (stack.folder / "edited.yaml").write_text(CUT_OFF)
    done = stack.compose("-f", str(stack.folder / "edited.yaml"), "up", "--detach", "--wait")
    assert done.returncode == 0, done.stderr[-3000:] + stack.logs()[-3000:]


def start_and_list_endpoints(stack: LiveStack) -> None:
    done = stack.run_stackgen("up", str(stack.folder), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [endpoint["name"] for endpoint in json.loads(done.stdout)["endpoints"]] == ["fastchat", "llamacpp-smol"]


@pytest.fixture
def vllm_offline(starts: Starts) -> LiveStack:
    """vLLM with the download service as rendered, but the engine itself is on an internal network."""
    starts.finish("vllm_offline")
    return starts.stacks["vllm_offline"]


@pytest.fixture
def others(starts: Starts) -> LiveStack:
    """FastChat by repository id, llama.cpp by the path of a file in it, with one storage."""
    starts.finish("others")
    return starts.stacks["others"]


def test_vllm_serves_the_download_without_a_network(vllm_offline: LiveStack, hub: Hub) -> None:
    found = vllm_offline.inspect("vllm-tiny")
    assert list(found["NetworkSettings"]["Networks"]) == ["sgtest-hub_inside"]
    done = vllm_offline.execute("vllm-tiny", "python3", "-c", ASK, REPO)
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert reply["model"] == REPO
    assert 1 <= reply["usage"]["completion_tokens"] <= 4  # random weights can end the answer early
    assert not [request for request in hub.requests if "consolidated" in request.path]


def test_the_engine_only_reads_the_storage(vllm_offline: LiveStack) -> None:
    found = vllm_offline.inspect("vllm-tiny")
    assert [mount["RW"] for mount in found["Mounts"] if mount["Destination"] == "/models"] == [False]
    host = found["HostConfig"]
    assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and "no-new-privileges:true" in host["SecurityOpt"]
    assert vllm_offline.execute("vllm-tiny", "id", "-u").stdout.strip() == "2000"


def test_fastchat_and_llamacpp_load_from_the_same_storage(others: LiveStack) -> None:
    assert "Paris" in others.ask(QUESTION, "--model", "smol")


def test_only_storage_remove_deletes_the_storage(others: LiveStack) -> None:
    """Last in this file, because it removes the stack."""
    volume = ["docker", "volume", "inspect", "sgtest-others-models"]
    others.stackgen("down", str(others.folder))
    assert subprocess.run(volume, capture_output=True).returncode == 0
    # other stacks may use it
    others.stackgen("down", str(others.folder), "--volumes")
    assert subprocess.run(volume, capture_output=True).returncode == 0
    # a stack that is down may be started again
    refused = others.run_stackgen("storage", "remove", "sgtest-others-models", "--yes")
    assert refused.returncode == 2 and "stacks that are down: sgtest-others" in refused.stderr
    shutil.rmtree(others.folder)
    others.stackgen("storage", "remove", "sgtest-others-models", "--yes")
    assert subprocess.run(volume, capture_output=True).returncode == 1
