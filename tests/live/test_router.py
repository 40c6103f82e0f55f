"""vllm-router in front of two real vLLM replicas, behind the real HAProxy."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.front]

PORT = 18960
REPLICAS = ("vllm-tiny", "vllm-tiny-2")
METRICS = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/metrics').read().decode())"


@pytest.fixture(scope="module")
def stack(
    vllm_image: str, haproxy_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveStack]:
    model = {"model": str(tiny_model), "engine": "vllm", "served_names": ["tiny"], "image": vllm_image, "replicas": 2,
             "cache_aware": True, "max_model_len": 2048, "cpu_kv_cache_gib": 1, "dtype": "bfloat16",
             "enforce_eager": True}  # fmt: skip
    data = {"name": "fb-router", "port": PORT, "gateway": {"image": haproxy_image}, "models": [model]}
    built = subprocess.run(["scripts/build-image", "vllm-router"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    with LiveStack(tmp_path_factory.mktemp("fb-router"), data) as started:
        started.up()
        wait_for_router(started)
        # the router starts with the first ready replica and finds the second by its own checks
        wait_until(lambda: uses_both_replicas(started), 60, "the router never used both replicas")
        yield started


def wait_for_router(stack: LiveStack) -> None:
    """Waits until the gateway uses the router, which it skips for a moment after each 500."""
    wait_until(lambda: ask(stack, "hi")[2] == "router-tiny/router-tiny", 60, "the router is not used")


def uses_both_replicas(stack: LiveStack) -> bool:
    """Returns whether six simultaneous conversations all went through the router, and to both replicas."""
    before = count_prompt_tokens(stack)
    with ThreadPoolExecutor(6) as pool:
        conversations = [f"talk {number} {time.monotonic()} " * 20 for number in range(6)]
        by = {
            answer[2]
            for answer in pool.map(lambda text: ask(stack, text, max_tokens=40, ignore_eos=True), conversations)
        }
    return (
        by == {"router-tiny/router-tiny"} and min((count_prompt_tokens(stack) - before)[one] for one in REPLICAS) > 100
    )


def ask(
    stack: LiveStack, question: str, path: str = "/v1/chat/completions", key: str = "", **more: Any
) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    body = {"model": "tiny", "messages": [{"role": "user", "content": question}], "max_tokens": 4, **more}
    body = {name: value for name, value in body.items() if value is not None}
    connection.request("POST", path, json.dumps(body), headers(key or stack.key))
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text, response.headers.get("x-stackgen-served-by", "")


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}


def wait_until(check: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.3)


def read_metric(stack: LiveStack, service: str, name: str) -> float:
    text = stack.execute(service, "python3", "-c", METRICS).stdout
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"vllm:{name}"))


def count_prompt_tokens(stack: LiveStack) -> Counter[str]:
    """Returns the prompt tokens of each replica, by vLLM's own metric. A health check adds one or two."""
    return Counter({service: int(read_metric(stack, service, "prefix_cache_queries_total")) for service in REPLICAS})


@contextmanager
def run_load(stack: LiveStack) -> Iterator[list[tuple[int, str, str]]]:
    """Runs four clients that send requests without a pause. Yields the list of their answers."""
    answers: list[tuple[int, str, str]] = []
    stopped = threading.Event()

    def client(number: int) -> None:
        count = 0
        while not stopped.is_set():
            count += 1
            # half of them are large, for the gateway's second process; `user` doesn't change the prompt
            long = {"user": "x" * 100_000} if number % 2 else {}
            answers.append(ask(stack, f"client {number} " * 20 + str(count), max_tokens=20, **long))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for one in clients:
        one.start()
    time.sleep(2)
    try:
        yield answers
    finally:
        stopped.set()
        for one in clients:
            one.join()


def test_conversations_spread_and_each_stays_with_its_cached_prefix(stack: LiveStack) -> None:
    # long, because on the CPU vLLM caches prefixes in blocks of 128 tokens
    openings = [f"conversation {number} " * 160 for number in range(6)]
    with ThreadPoolExecutor(6) as pool:  # simultaneously, or each first turn would find both replicas idle
        first = list(pool.map(lambda text: ask(stack, text, max_tokens=600, ignore_eos=True), openings))
    assert [(status, by) for status, _, by in first] == [(200, "router-tiny/router-tiny")] * 6
    homes, queries, hits = [], 0.0, 0.0
    for opening in openings:
        before, hits_before = (
            count_prompt_tokens(stack),
            {one: read_metric(stack, one, "prefix_cache_hits_total") for one in REPLICAS},
        )
        for turn in range(1, 4):
            assert ask(stack, opening + "and then? " * turn)[0] == 200
        grown = count_prompt_tokens(stack) - before
        home = max(grown, key=lambda service: grown[service])
        assert sum(grown.values()) - grown[home] < 20, grown  # no turn went to another replica
        queries += grown[home]
        hits += read_metric(stack, home, "prefix_cache_hits_total") - hits_before[home]
        homes.append(home)
    assert set(homes) == set(REPLICAS), homes
    # vllm-router sent the second turn to the other replica once in twelve conversations
    assert hits > 0.7 * queries, (hits, queries)


def test_other_paths_bypass_the_router_and_keep_their_key(stack: LiveStack) -> None:
    status, _, by = ask(stack, "x", "/v1/responses", messages=None, input="hi", max_output_tokens=4)
    assert status == 200 and by.startswith("vllm-tiny/")
    assert ask(stack, "x", "/v1/completions", messages=None, prompt="hi")[::2] == (200, "router-tiny/router-tiny")


def test_the_gateway_rejects_an_unknown_model(stack: LiveStack) -> None:
    """The router by itself would send it to any replica."""
    status, text, _ = ask(stack, "hi", model="unknown")
    assert (status, json.loads(text)["error"]["code"]) == (404, "model_not_found")
    assert ask(stack, "hi", key="wrong")[0] == 401


def test_only_gateway_and_replicas_reach_the_router(stack: LiveStack, fastchat_image: str) -> None:
    script = "import urllib.request as u; print(u.urlopen('http://{}/list_workers', timeout=5).status)"
    address = stack.inspect("router-tiny")["NetworkSettings"]["Networks"]
    assert set(address) == {"fb-router_routing"}
    for host in ("router-tiny:30000", f"{address['fb-router_routing']['IPAddress']}:30000"):
        done = subprocess.run(
            ["docker", "run", "--rm", "--network", "fb-router_default", "--entrypoint", "python3", fastchat_image, "-c",
             script.format(host)], capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode != 0, done.stdout
    state = stack.inspect("router-tiny")
    assert state["HostConfig"]["ReadonlyRootfs"] and state["Config"]["User"] == "1000:1000"
    key = json.loads(stack.compose("config", "--format", "json").stdout)["services"]["vllm-tiny"]["environment"]
    assert key["VLLM_API_KEY"] not in json.dumps(state)


def test_answers_stream_and_a_disconnect_stops_the_generation(stack: LiveStack) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1900, "stream": True,
            "ignore_eos": True}  # fmt: skip
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers(stack.key))
    response = connection.getresponse()
    for _ in range(3):
        assert response.readline()
    running = sum(read_metric(stack, service, "num_requests_running") for service in REPLICAS)
    response.close()
    connection.close()
    wait_until(
        lambda: sum(read_metric(stack, one, "num_requests_running") for one in REPLICAS) == 0,
        10,
        f"{running} requests are still running",
    )


def test_killing_the_router_fails_no_request(stack: LiveStack) -> None:
    with run_load(stack) as answers:
        stack.compose("kill", "router-tiny")
        time.sleep(6)
    print(Counter((status, by) for status, _, by in answers))
    assert {status for status, _, _ in answers} == {200}, [one for one in answers if one[0] != 200][:3]
    assert {by for _, _, by in answers[-5:]} <= {"router-tiny/vllm-tiny", "router-tiny/vllm-tiny-2"}
    stack.up()
    wait_for_router(stack)


def test_killing_a_replica_fails_no_request(stack: LiveStack) -> None:
    with run_load(stack) as answers:
        stack.compose("kill", "vllm-tiny-2")
        time.sleep(12)
    print(Counter((status, by) for status, _, by in answers))
    assert {status for status, _, _ in answers} == {200}, [one for one in answers if one[0] != 200][:3]
    assert answers[-1][2] == "router-tiny/router-tiny"
