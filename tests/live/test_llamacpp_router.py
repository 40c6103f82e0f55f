"""llama.cpp's router mode with the real server: two GGUF files of SmolLM2, one of which is in memory at a time.

The stack is this module's own: the shared one serves a single file. The models load in half a second.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.containers import wait_until
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(300)]

PORT = 18141
HEALTH = ("sh", "/stackgen/llamacpp_health.sh", "http://127.0.0.1:8080", "router")


@pytest.fixture(scope="module")
def stack(llamacpp_image: str, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    folder = tmp_path_factory.mktemp("router")
    gguf = next(smollm2.with_name("smollm2-GGUF").glob("*.gguf"))
    (folder / "gguf" / "second").mkdir(parents=True)
    # copies, because a link out of the folder leads nowhere in the container
    shutil.copy(gguf, folder / "gguf" / "first.gguf")
    shutil.copy(gguf, folder / "gguf" / "second" / "x.gguf")
    model = {"engine": "llamacpp", "models_dir": "./gguf", "served_names": ["first", "second"], "max_model_len": 1024,
             "max_num_seqs": 2, "hang_timeout": 10, "extra_args": ["--threads", "1"]}  # fmt: skip
    with LiveStack(folder, {"name": "sgtest-router", "port": PORT, "gateway": False, "models": [model]}) as made:
        assert llamacpp_image in (folder / "compose.yaml").read_text()
        made.up()
        yield made


def call(stack: LiveStack, path: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"Authorization": f"Bearer {stack.key}", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body else None
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, headers)) as response:
        return json.load(response)


def loaded(stack: LiveStack) -> list[str]:
    return [one["id"] for one in call(stack, "/v1/models")["data"] if one["status"]["value"] == "loaded"]


def ask(stack: LiveStack, model: str, **fields: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 8, **fields}
    return call(stack, "/v1/chat/completions", body)


def process_of(stack: LiveStack, model: str) -> int:
    top = subprocess.run(["docker", "top", stack.inspect("llamacpp-first")["Id"], "-o", "pid,args"],
                         capture_output=True, text=True, check=True).stdout  # fmt: skip
    return next(int(line.split()[0]) for line in top.splitlines() if f"--alias {model}" in line)


def test_each_model_is_checked_under_its_name_and_one_is_in_memory(stack: LiveStack) -> None:
    (endpoint,) = stack.check()["endpoints"]
    chats = [one for one in endpoint["results"] if one["name"] == "chat"]
    assert [(one["model"], one["status"]) for one in chats] == [("first", "pass"), ("second", "pass")]
    assert ask(stack, "first")["model"] == "first"
    assert loaded(stack) == ["first"]
    # 1,024 tokens for each of two slots
    props = call(stack, "/props?model=first")
    assert (props["default_generation_settings"]["n_ctx"], props["total_slots"]) == (1024, 2)


def test_the_health_check_asks_the_loaded_model_and_loads_none(stack: LiveStack) -> None:
    ask(stack, "second")
    assert stack.execute("llamacpp-first", *HEALTH).returncode == 0
    assert loaded(stack) == ["second"]
    child = process_of(stack, "second")
    os.kill(child, signal.SIGSTOP)
    try:
        # the router itself still answers
        assert call(stack, "/health")["status"] == "ok"
        assert stack.execute("llamacpp-first", "timeout", "5", *HEALTH).returncode != 0
    finally:
        os.kill(child, signal.SIGCONT)


def test_a_model_that_hangs_is_ended_and_loaded_again_without_a_restart(stack: LiveStack) -> None:
    ask(stack, "second")
    child = process_of(stack, "second")
    started = stack.inspect("llamacpp-first")["State"]["StartedAt"]
    # the watch of the model begins a few seconds after the load
    time.sleep(3)
    os.kill(child, signal.SIGSTOP)
    wait_until(lambda: not loaded(stack), 60, "the model that hangs is still loaded")
    log = stack.compose("logs", "llamacpp-first").stdout
    assert "stackgen: the model second hangs: no progress" in log and "the service hangs" not in log
    assert ask(stack, "second")["model"] == "second" and process_of(stack, "second") != child
    assert stack.inspect("llamacpp-first")["State"]["StartedAt"] == started


def test_a_stop_waits_for_the_requests_of_a_loaded_model(stack: LiveStack) -> None:
    ask(stack, "first")
    found: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: found.update(ask(stack, "first", max_tokens=300, ignore_eos=True)))
    thread.start()
    wait_until(lambda: any(one["is_processing"] for one in call(stack, "/slots?model=first")), 20, "no request runs")
    started = time.monotonic()
    stack.compose("stop", "llamacpp-first")
    thread.join(60)
    stack.stopped = True
    assert found["choices"][0]["finish_reason"] == "length", "the request was aborted"
    assert time.monotonic() - started < 35
