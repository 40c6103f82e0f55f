"""vllm-router in front of two real vLLM replicas, behind the real HAProxy. test_router.py has faults, on stand-ins."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.live.containers import read_metric, wait_until
from tests.live.front import PORT, ROUTER, TINY, ask, container
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("front"), pytest.mark.timeout(600)]

BY_ROUTER = f"{ROUTER}/{ROUTER}"


@pytest.fixture(scope="module")
def stack(quiet_front: LiveStack) -> LiveStack:
    # the router starts with the first ready replica and finds the second by its own checks
    wait_until(lambda: uses_both_replicas(quiet_front), 60, "the router never used both replicas")
    return quiet_front


def uses_both_replicas(stack: LiveStack) -> bool:
    """Returns whether six simultaneous conversations all went through the router, and to both replicas."""
    before = count_prompt_tokens()
    conversations = [f"talk {number} {time.monotonic()} " * 20 for number in range(6)]
    answers = talk(stack, conversations, max_tokens=40, ignore_eos=True)
    grown = count_prompt_tokens() - before
    return {by for _, by in answers} == {BY_ROUTER} and min(grown[one] for one in TINY) > 100


def talk(stack: LiveStack, questions: list[str], **more: object) -> list[tuple[int, str]]:
    """Asks all questions at the same time. Returns status and replica of each answer."""
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(
            pool.map(lambda text: ask(stack, "tiny", messages=[{"role": "user", "content": text}], **more)[::2],
                     questions)
        )  # fmt: skip


def count_prompt_tokens() -> Counter[str]:
    """Returns the prompt tokens of each replica, by vLLM's own metric. A health check adds one or two."""
    return Counter({one: int(read_metric(container(one), "vllm:prefix_cache_queries_total")) for one in TINY})


def count_cache_hits() -> Counter[str]:
    return Counter({one: int(read_metric(container(one), "vllm:prefix_cache_hits_total")) for one in TINY})


def test_conversations_spread_and_each_stays_with_its_cached_prefix(stack: LiveStack) -> None:
    # long, because on the CPU vLLM caches prefixes in blocks of 128 tokens
    openings = [f"conversation {number} " * 160 for number in range(6)]
    # simultaneously, or each first turn would find both replicas idle
    assert talk(stack, openings, max_tokens=600, ignore_eos=True) == [(200, BY_ROUTER)] * 6
    homes, queries, hits = [], 0, 0
    for opening in openings:
        before, hits_before = count_prompt_tokens(), count_cache_hits()
        for turn in range(1, 4):
            assert talk(stack, [opening + "and then? " * turn])[0][0] == 200
        grown = count_prompt_tokens() - before
        home = max(grown, key=lambda service: grown[service])
        assert sum(grown.values()) - grown[home] < 20, grown  # no turn went to another replica
        queries += grown[home]
        hits += (count_cache_hits() - hits_before)[home]
        homes.append(home)
    assert set(homes) == set(TINY), homes
    # vllm-router sent the second turn to the other replica once in twelve conversations
    assert hits > 0.7 * queries, (hits, queries)


def test_other_paths_bypass_the_router_and_keep_their_key(stack: LiveStack) -> None:
    status, _, by = ask(stack, "tiny", "/v1/responses", messages=None, max_tokens=None, input="hi",
                        max_output_tokens=4)  # fmt: skip
    assert status == 200 and by.startswith("vllm-tiny/")
    assert ask(stack, "tiny", "/v1/completions", messages=None, prompt="hi")[::2] == (200, BY_ROUTER)


def test_answers_stream_and_a_disconnect_stops_the_generation(stack: LiveStack) -> None:
    def running() -> float:
        return sum(read_metric(container(one), "vllm:num_requests_running") for one in TINY)

    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1900, "stream": True,
            "ignore_eos": True}  # fmt: skip
    headers = {"Authorization": f"Bearer {stack.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    for _ in range(3):
        assert response.readline()
    assert response.headers["x-stackgen-served-by"] == BY_ROUTER
    response.close()
    connection.close()
    wait_until(lambda: running() == 0, 10, lambda: f"{running()} requests are still running")
