"""vllm-router and its replicas are killed behind the real HAProxy. The replicas are stand-ins for vLLM.

test_front_router.py has what depends on real vLLM: prefix caches, streams and other paths.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from stackgen.stack.envfile import read_env
from tests.live.containers import docker, read_metric, wait_until
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

NAME, PORT = "fb-router", 18960
REPLICAS = ("vllm-tiny", "vllm-tiny-2")
ROUTER = "router-tiny/router-tiny"
SHOW_STAT = "exec 3<>/dev/tcp/127.0.0.1/8406; echo 'show stat' >&3; cat <&3"

Answer = tuple[int, str, str]


@pytest.fixture(scope="module")
def stack(
    standin_image: str, haproxy_image: str, router_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveStack]:
    folder = tmp_path_factory.mktemp("fb-router")
    (folder / "model").mkdir()
    model = {"model": "./model", "engine": "vllm", "served_names": ["tiny"], "image": standin_image, "replicas": 2,
             "cache_aware": True, "max_model_len": 2048}  # fmt: skip
    data = {"name": NAME, "port": PORT, "gateway": {"image": haproxy_image}, "models": [model]}
    with LiveStack(folder, data) as started:
        assert router_image in (folder / "compose.yaml").read_text()
        started.up()
        wait_for_router(started)
        # the router starts with the first ready replica and finds the second by its own checks
        wait_until(lambda: uses_both_replicas(started), 60, "the router never used both replicas")
        yield started
        # on SIGTERM, gateway and router wait for their connections
        started.compose("kill")


def wait_for_router(stack: LiveStack) -> None:
    """Waits until the gateway uses the router, which it skips for a moment after each 500."""
    wait_until(lambda: ask(stack, "hi")[2] == ROUTER, 60, "the router is not used")


def container(service: str) -> str:
    return f"{NAME}-{service}-1"


def count_prompt_tokens() -> Counter[str]:
    return Counter({one: int(read_metric(container(one), "vllm:prompt_tokens_total")) for one in REPLICAS})


def uses_both_replicas(stack: LiveStack) -> bool:
    """Returns whether six simultaneous conversations all went through the router, and to both replicas."""
    before = count_prompt_tokens()
    with ThreadPoolExecutor(6) as pool:
        conversations = [f"talk {number} {time.monotonic()} " * 20 for number in range(6)]
        by = {answer[2] for answer in pool.map(lambda text: ask(stack, text, max_tokens=40), conversations)}
    grown = count_prompt_tokens() - before
    return by == {ROUTER} and min(grown[one] for one in REPLICAS) > 30


def ask(stack: LiveStack, question: str, key: str = "", model: str = "tiny", **more: object) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 4, **more}
    headers = {"Authorization": f"Bearer {key or stack.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text, response.headers.get("x-stackgen-served-by", "")


@contextmanager
def run_load(stack: LiveStack) -> Iterator[list[Answer]]:
    """Runs four clients that send requests without a pause. Yields the list of their answers."""
    answers: list[Answer] = []
    stopped = threading.Event()

    def client(number: int) -> None:
        count = 0
        while not stopped.is_set():
            count += 1
            # half of them are large, for the gateway's second process; `user` doesn't change the prompt
            long = {"user": "x" * 100_000} if number % 2 else {}
            answers.append(ask(stack, f"client {number} " * 20 + str(count), max_tokens=20, **long))

    before = count_prompt_tokens()
    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for one in clients:
        one.start()
    try:
        # requests must be in flight at both replicas before a test kills something
        wait_until(lambda: min((count_prompt_tokens() - before)[one] for one in REPLICAS) > 100, 30, "no load")
        yield answers
    finally:
        stopped.set()
        for one in clients:
            one.join()


def router_state() -> str:
    """Returns the state of the router in HAProxy, UP or DOWN."""
    lines = docker("exec", container("gateway"), "bash", "-c", SHOW_STAT).lstrip("# ").splitlines()
    fields = lines[0].split(",")
    rows = [dict(zip(fields, line.split(","), strict=False)) for line in lines[1:]]
    (found,) = (row["status"] for row in rows if (row["pxname"], row.get("svname")) == ("router-tiny", "router-tiny"))
    return found


def test_the_gateway_rejects_an_unknown_model(stack: LiveStack) -> None:
    """The router by itself would send it to any replica."""
    status, text, _ = ask(stack, "hi", model="unknown")
    assert (status, json.loads(text)["error"]["code"]) == (404, "model_not_found")
    assert ask(stack, "hi", key="wrong")[0] == 401


def test_only_gateway_and_replicas_reach_the_router(stack: LiveStack, standin_image: str) -> None:
    script = "import urllib.request as u; print(u.urlopen('http://{}/list_workers', timeout=5).status)"
    state = stack.inspect("router-tiny")
    address = state["NetworkSettings"]["Networks"]
    assert set(address) == {f"{NAME}_routing"}
    for network, hosts in (
        ("default", ("router-tiny:30000", f"{address[f'{NAME}_routing']['IPAddress']}:30000")),
        # the router does answer in its own network
        ("routing", ("router-tiny:30000",)),
    ):
        for host in hosts:
            done = subprocess.run(
                ["docker", "run", "--rm", "--network", f"{NAME}_{network}", "--entrypoint", "python3", standin_image,
                 "-c", script.format(host)], capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert (done.returncode == 0) == (network == "routing"), done.stdout + done.stderr
    assert state["HostConfig"]["ReadonlyRootfs"] and state["Config"]["User"] == "1000:1000"
    key = read_env(stack.folder)["STACKGEN_ENGINE_KEY"]
    assert f"VLLM_API_KEY={key}" in stack.inspect("vllm-tiny")["Config"]["Env"]
    assert key not in json.dumps(state)


def test_killing_the_router_fails_no_request(stack: LiveStack) -> None:
    with run_load(stack) as answers:
        docker("kill", container("router-tiny"))
        # HAProxy's own check must have failed too, and not only requests
        wait_until(lambda: router_state() == "DOWN", 20, lambda: f"the router is {router_state()}")
        done = len(answers)
        wait_until(lambda: len(answers) > done + 200, 30, "requests hang")
    print(Counter((status, by) for status, _, by in answers))
    assert {status for status, _, _ in answers} == {200}, [one for one in answers if one[0] != 200][:3]
    assert {by for _, _, by in answers[-5:]} <= {"router-tiny/vllm-tiny", "router-tiny/vllm-tiny-2"}
    stack.up()
    wait_for_router(stack)


def test_killing_a_replica_fails_no_request(stack: LiveStack) -> None:
    with run_load(stack) as answers:
        before = len(answers)
        docker("kill", container("vllm-tiny-2"))
        # the router answers 500 until its checks exclude the replica; meanwhile the gateway skips the router
        wait_until(lambda: any(by != ROUTER for _, _, by in answers[before:]), 20, "the replica was not used")
        wait_until(lambda: {by for _, _, by in answers[-50:]} == {ROUTER}, 30, "the router is not used again")
        done = len(answers)
        wait_until(lambda: len(answers) > done + 200, 30, "requests hang")
    print(Counter((status, by) for status, _, by in answers))
    assert {status for status, _, _ in answers} == {200}, [one for one in answers if one[0] != 200][:3]
    assert answers[-1][2] == ROUTER
