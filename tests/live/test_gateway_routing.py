"""`routing: prefix` in the real HAProxy in front of fake engines: who gets a request, and who gets it instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.live.containers import wait_until
from tests.live.gateway import FakeEngineStack

pytestmark = pytest.mark.docker

REPLICAS = {"vllm-alpha", "vllm-alpha-2", "vllm-alpha-3"}
# moves a request to the gateway's second process
LARGE = 60_000


@pytest.fixture(scope="module")
def gateway(
    fastchat_image: str, haproxy_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeEngineStack]:
    data = {
        "name": "sgtest-gateway-routing", "port": 18169,
        "gateway": {"image": haproxy_image, "routing": "prefix", "prefix_bytes": 256},
        "models": [
            {"model": "./a", "engine": "vllm", "replicas": 3, "served_names": ["alpha"]},
            {"model": "./b", "engine": "vllm", "replicas": 2, "served_names": ["beta"], "max_num_seqs": 1},
            {"model": "./c", "engine": "llamacpp", "file": "x.gguf", "replicas": 2, "served_names": ["llama"]},
        ],
    }  # fmt: skip
    with FakeEngineStack(tmp_path_factory.mktemp("gateway"), data, fastchat_image) as running:
        yield running


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def ask(gateway: FakeEngineStack, path: str = "/v1/chat/completions", headers: Any = None, **body: Any) -> str:
    """Returns the replica that answered."""
    answer = gateway.request("POST", path, {"model": "alpha", **body}, headers=headers)
    assert answer.status == 200, answer.text
    return answer.replica


def turns(first: str, later: str) -> list[list[dict[str, Any]]]:
    """The messages of four requests of one conversation."""
    more = [{"role": "assistant", "content": later}, user(later)]
    return [[{"role": "system", "content": 'Say "user" {['}, user(first), *more * number] for number in range(4)]


BODIES: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "/v1/chat/completions": lambda text: [{"messages": one} for one in turns(text, "and then?")],
    "/v1/messages": lambda text: [{"system": "s", "messages": one[1:]} for one in turns(text, "and then?")],
    "/v1/responses": lambda text: [{"input": one} for one in turns(text, "and then?")],
    "/v1/completions": lambda text: [{"prompt": text + "." * 256 + str(number)} for number in range(4)],
}


@pytest.mark.parametrize("path", BODIES)
def test_requests_of_a_conversation_reach_one_replica_and_conversations_spread(
    gateway: FakeEngineStack, path: str
) -> None:
    found = Counter[str]()
    for number in range(24):
        replicas = {ask(gateway, path, **body) for body in BODIES[path](f"question {number}")}
        assert len(replicas) == 1, f"conversation {number} moved"
        found.update(replicas)
    assert found.keys() == REPLICAS


def test_a_conversation_stays_when_its_body_grows_out_of_the_first_process(gateway: FakeEngineStack) -> None:
    found = set()
    for number in range(8):
        replicas = {ask(gateway, messages=one) for one in turns(f"long {number}", "x" * LARGE)}
        assert len(replicas) == 1
        found |= replicas
    assert len(found) > 1


@pytest.mark.parametrize("first", [f'"quoted \\ }}] {1}"', [{"type": "text", "text": "parts"}], "x" * LARGE])
def test_the_first_message_may_have_any_form(gateway: FakeEngineStack, first: Any) -> None:
    for order in (lambda one: one, lambda one: dict(reversed(one.items()))):
        assert len({ask(gateway, messages=[order(turn) for turn in one]) for one in turns(first, "more")}) == 1


@pytest.mark.parametrize("header", ["X-Session-Id", "X-Claude-Code-Session-Id", "session_id", ""])
def test_a_session_id_decides_before_the_messages(gateway: FakeEngineStack, header: str) -> None:
    found = set()
    for number in range(12):
        headers = {header: f"session {number}"} if header else {}
        body = {} if header else {"prompt_cache_key": f"session {number}"}
        replicas = {
            ask(gateway, headers=headers, messages=[user(f"{text}" + "x" * LARGE * (text == 2))], **body)
            for text in range(3)
        }
        assert len(replicas) == 1
        found |= replicas
    assert len(found) > 1


def test_a_busy_replica_passes_requests_on(gateway: FakeEngineStack) -> None:
    with ThreadPoolExecutor(12) as pool:
        found = Counter(pool.map(lambda _: ask(gateway, messages=[user("busy")], test={"sleep": 2}), range(12)))
    # at most 1.25 times the average of 4, rounded up
    assert len(found) == 3 and max(found.values()) <= 6, found
    assert len({ask(gateway, messages=[user("busy")]) for _ in range(4)}) == 1


def test_requests_wait_for_the_first_free_replica_if_all_are_full(gateway: FakeEngineStack) -> None:
    with ThreadPoolExecutor(8) as pool:
        full: dict[str, Any] = {"model": "beta", "messages": [user("full")], "test": {"sleep": 0.3}}
        found = Counter(pool.map(lambda _: ask(gateway, **full), range(8)))
    assert len(found) == 2 and min(found.values()) >= 3, found


@pytest.mark.parametrize("why", ["down", "drain"])
def test_another_replica_takes_over_while_the_first_choice_is_away(gateway: FakeEngineStack, why: str) -> None:
    first = ask(gateway, messages=[user(why)])
    api = 'exec 3<>/dev/tcp/127.0.0.1/8406; echo "set server vllm-alpha/$0 state $1" >&3; cat <&3'
    away, back = {"down": (["touch", "/tmp/down"], ["rm", "/tmp/down"]),
                  "drain": (["bash", "-c", api, first, "drain"], ["bash", "-c", api, first, "ready"])}[why]  # fmt: skip
    gateway.run(first if why == "down" else "gateway", *away)
    try:
        wait_until(lambda: ask(gateway, messages=[user(why)]) != first, 30, f"{first} still answers")
        second = {ask(gateway, messages=[user(why)]) for _ in range(6)}
        assert len(second) == 1 and first not in second
    finally:
        gateway.run(first if why == "down" else "gateway", *back)
    wait_until(lambda: ask(gateway, messages=[user(why)]) == first, 30, f"{first} gets no requests again")


def test_a_dying_replica_loses_no_request(gateway: FakeEngineStack) -> None:
    first = ask(gateway, messages=[user("die")])
    answer = gateway.request("POST", "/v1/chat/completions",
                             {"model": "alpha", "messages": [user("die")], "test": {"die": first}})  # fmt: skip
    assert answer.status == 200 and answer.replica != first
    # `up` does not start what Docker believes to be running
    wait_until(lambda: first not in gateway.running_services(), 30, f"{first} has not ended")
    assert gateway.compose("up", "--detach", first).returncode == 0
    # a retry goes to any other replica, and the next requests to the second choice
    wait_until(lambda: ask(gateway, messages=[user("die")]) == first, 60, f"{first} gets no requests again")


def test_requests_without_a_prompt_are_spread(gateway: FakeEngineStack) -> None:
    found: set[str] = set()

    def is_complete() -> bool:
        found.add(ask(gateway, tools=[]))
        return found == REPLICAS

    wait_until(is_complete, 30, lambda: found)


def test_llamacpp_is_routed_by_prefix_too(gateway: FakeEngineStack) -> None:
    found = set()
    for number in range(12):
        replicas = {ask(gateway, model="llama", messages=one) for one in turns(f"llama {number}", "more")}
        assert len(replicas) == 1
        found |= replicas
    assert found == {"llamacpp-llama", "llamacpp-llama-2"}
