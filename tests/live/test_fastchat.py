"""FastChat on the CPU: two models, one of them in two replicas, behind one API server."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.live.stacks import QUESTION, LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
PORT = 18111
WORKERS = ("fastchat-smollm2", "fastchat-tiny", "fastchat-tiny-2")


@pytest.fixture
def stack(fastchat_stack: LiveStack) -> LiveStack:
    return fastchat_stack


def post(
    stack: LiveStack, body: dict[str, Any], key: str | None = None, path: str = "/v1/chat/completions"
) -> tuple[int, str]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def chat(model: str = "smollm2", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4} | fields


def test_the_models_answer_under_all_served_names(stack: LiveStack) -> None:
    assert "Paris" in stack.ask()
    assert "Paris" in stack.ask(QUESTION, "--model", "smol")
    assert stack.ask("hi", "--model", "tiny")  # random weights, so any text is right


def test_the_check_passes_for_every_model(stack: LiveStack) -> None:
    report = stack.check()
    assert report["ok"]
    (endpoint,) = report["endpoints"]
    checked = {
        result["model"] for result in endpoint["results"] if result["name"] == "stream" and result["status"] == "pass"
    }
    assert checked == {"smollm2", "smol", "tiny"}


def test_the_prompt_uses_the_tokenizers_chat_template(stack: LiveStack) -> None:
    """FastChat's default template turns "hi" into 964 tokens."""
    status, body = post(stack, chat(), stack.key)
    assert status == 200
    assert json.loads(body)["usage"]["prompt_tokens"] < 50


def test_no_path_answers_without_the_key(stack: LiveStack) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/api/v1/chat/completions", "/api/v1/token_check"):
        assert post(stack, chat(), path=path)[0] == 401, path
        assert post(stack, chat(), key="wrong", path=path)[0] == 401, path
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{PORT}/docs", timeout=10)


def test_null_parameters_do_not_wedge_the_worker(stack: LiveStack) -> None:
    """In plain FastChat, each of them permanently takes one of five concurrent requests."""
    for _ in range(7):
        assert post(stack, chat(temperature=None, top_p=None), stack.key)[0] == 200
    assert "Paris" in stack.ask()


def test_controller_and_workers_are_closed_to_the_host(stack: LiveStack) -> None:
    for service in ("fastchat-controller", *WORKERS):
        found = stack.inspect(service)
        assert not any(found["NetworkSettings"]["Ports"].values()), service
        assert list(found["NetworkSettings"]["Networks"]) == ["sgtest-fastchat_fastchat"]
    for port in (21001, 21002):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_the_internal_network_reaches_nothing_outside(stack: LiveStack) -> None:
    probe = "import socket; socket.create_connection(('172.17.0.1', 22), timeout=3)"
    done = stack.execute(WORKERS[0], "python3", "-c", probe)
    assert "unreachable" in done.stderr or "timed out" in done.stderr, done.stderr


def test_workers_register_under_their_service_names(stack: LiveStack) -> None:
    log = stack.compose("logs", "fastchat-controller").stdout
    for worker in WORKERS:
        assert f"Register done: http://{worker}:21002" in log


def test_the_api_server_started_after_the_workers(stack: LiveStack) -> None:
    api = stack.inspect("fastchat-api")["State"]["StartedAt"]
    assert all(stack.inspect(worker)["State"]["StartedAt"] < api for worker in WORKERS)


def test_the_key_is_not_in_logs_process_list_or_inspect(stack: LiveStack) -> None:
    assert stack.key not in stack.logs()
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert stack.key not in listing
    for service in ("fastchat-controller", *WORKERS):
        assert stack.key not in json.dumps(stack.inspect(service)), service


def test_a_killed_worker_restarts_and_registers_again(stack: LiveStack) -> None:
    """Last in this file, because it kills a worker."""
    kill_worker = (
        "for p in /proc/[0-9]*; do grep -aq 'launch.py.worker' $p/cmdline && grep -q python $p/comm"
        " && kill -9 ${p#/proc/}; done; true"
    )
    stack.execute(WORKERS[0], "sh", "-c", kill_worker)
    end = time.monotonic() + 90
    while True:
        status, body = post(stack, chat(), stack.key)
        if status == 200 and "starting it again" in stack.logs():
            break
        assert time.monotonic() < end, (status, body, stack.logs()[-3000:])
        time.sleep(1)
