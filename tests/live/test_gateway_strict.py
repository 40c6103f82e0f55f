"""The rendered gateway in the real HAProxy with a short timeout and no queue, in front of fake engines."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.live.containers import wait_until
from tests.live.fallback import MODEL, Provider, start_provider, write_env
from tests.live.gateway import (
    Answer,
    FakeEngineStack,
    parse_error,
)  # fmt: skip

pytestmark = pytest.mark.docker

# requests per window, and seconds: a minute would take too long
LIMIT, WINDOW = 5, 2


@pytest.fixture(scope="module")
def strict(
    fastchat_image: str, haproxy_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeEngineStack]:
    """A short timeout, no queue, and an engine key with characters that are special in HAProxy."""
    folder = tmp_path_factory.mktemp("strict")
    write_env(folder)
    text = (folder / ".env").read_text()
    (folder / ".env").write_text(re.sub("(?m)^STACKGEN_ENGINE_KEY=.*$", "STACKGEN_ENGINE_KEY=50%b-%[path]-%%", text))
    data = {
        "name": "sgtest-strict", "port": 18163,
        "gateway": {"image": haproxy_image, "timeout": 4, "max_queue": 0,
                    "keys": [{"name": "limited", "requests_per_minute": LIMIT}]},
        "models": [{"model": "./a", "engine": "vllm", "served_names": ["alpha"], "max_num_seqs": 2},
                   {"model": "./c", "engine": "fastchat", "served_names": ["chatty"]},
                   {"model": "./o", "engine": "vllm", "served_names": ["spilled"], "max_num_seqs": 2,
                    "lora_adapters": [{"name": "spilled-lora", "path": "./lora"}],
                    "fallback": {"model": MODEL, "base_url": "http://provider:9000/v1", "api_key_env": "PROVIDER_KEY",
                                 "overflow": True}}],
    }  # fmt: skip
    with FakeEngineStack(folder, data, fastchat_image) as running:
        yield running


def test_a_silent_engine_gets_504(strict: FakeEngineStack) -> None:
    answer = strict.chat("alpha", sleep=7)
    assert (answer.status, parse_error(answer)["code"]) == (504, "timeout")


def test_a_stream_outlives_the_timeout_and_a_reload(strict: FakeEngineStack) -> None:
    connection = strict.connect()
    body = json.dumps({"model": "alpha", "test": {"chunks": 80, "every": 0.1}})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {strict.key}"})
    response = connection.getresponse()
    assert response.readline().startswith(b"data:")
    strict.reload()
    rest = response.read()
    connection.close()
    assert 1 + rest.count(b"data:") == 80


def test_without_a_queue_requests_beyond_the_concurrency_get_429(strict: FakeEngineStack) -> None:
    before = len(strict.received("vllm-alpha"))
    with ThreadPoolExecutor(2) as pool:
        working = [pool.submit(strict.chat, "alpha", sleep=3) for _ in range(2)]
        end = time.monotonic() + 5
        while len(strict.received("vllm-alpha")) < before + 2 and time.monotonic() < end:
            time.sleep(0.05)
        refused = strict.chat("alpha")
        assert (refused.status, parse_error(refused)["code"]) == (429, "queue_full")
        assert [one.result().status for one in working] == [200, 200]
    assert strict.chat("alpha").status == 200


@pytest.fixture(scope="module")
def cloud(strict: FakeEngineStack, fastchat_image: str) -> Iterator[Provider]:
    """The provider of the model `spilled`, whose name the gateway has resolved."""
    provider = start_provider("sgtest-strict", fastchat_image)
    strict.compose("stop", "--timeout", "1", "vllm-spilled")
    try:
        wait_until(lambda: strict.chat("spilled").status == 200, 60, "the fallback did not answer within a minute")
        assert strict.chat("spilled").headers["x-stackgen-served-by"] == f"fallback/provider:{MODEL}"
        strict.compose("start", "vllm-spilled")
        wait_until(lambda: strict.chat("spilled").replica == "vllm-spilled", 60, "the engine did not come back")
        yield provider
    finally:
        provider.remove()


@pytest.mark.parametrize("pad", [0, 100_000], ids=["small", "large"])
def test_with_overflow_the_provider_answers_while_all_replicas_are_busy(
    strict: FakeEngineStack, cloud: Provider, pad: int
) -> None:
    before = len(strict.received("vllm-spilled"))
    with ThreadPoolExecutor(2) as pool:
        working = [pool.submit(strict.chat, "spilled", sleep=3) for _ in range(2)]
        wait_until(lambda: len(strict.received("vllm-spilled")) >= before + 2, 5, "the engine got no requests")
        answer = strict.chat("spilled", pad=pad)
        assert (answer.status, answer.headers["x-stackgen-served-by"]) == (200, f"overflow/provider:{MODEL}")
        assert cloud.last()["model"] == MODEL
        # the provider does not have the adapter
        refused = strict.chat("spilled-lora")
        assert (refused.status, parse_error(refused)["code"]) == (429, "queue_full")
        assert [one.result().replica for one in working] == ["vllm-spilled"] * 2
    assert strict.chat("spilled").replica == "vllm-spilled"


def test_special_characters_in_the_engine_key_are_kept(strict: FakeEngineStack) -> None:
    assert strict.chat("alpha").status == strict.chat("chatty").status == 200
    assert strict.engine_key == "50%b-%[path]-%%"
    for service in ("vllm-alpha", "fastchat-api"):
        assert strict.received(service)[-1]["headers"]["authorization"] == f"Bearer {strict.engine_key}"


def test_a_key_over_its_limit_gets_exactly_its_limit(strict: FakeEngineStack) -> None:
    """Refused requests don't count, Retry-After is true, and parallel requests get no more than the limit."""
    config = strict.folder / "gateway" / "haproxy.cfg"
    before = config.read_text()
    assert before.count("lua.limit-rate 60 ") == 1
    config.write_text(before.replace("lua.limit-rate 60 ", f"lua.limit-rate {WINDOW} "))
    strict.write_keys(default=strict.key, limited="sk-limited")

    def ask(_: object = None) -> Answer:
        return strict.request("GET", "/v1/models", key="sk-limited")

    def most_admitted() -> float:
        return LIMIT * ((time.monotonic() - started) // WINDOW + 1)

    try:
        started = time.monotonic()
        with ThreadPoolExecutor(20) as pool:
            admitted = Counter(answer.status for answer in pool.map(ask, range(60)))[200]
        assert LIMIT <= admitted <= most_admitted()
        # three times the limit is offered, so requests are refused all the time
        while admitted < 2 * LIMIT:
            assert time.monotonic() - started < 5 * WINDOW
            answer = ask()
            admitted += answer.status == 200
            assert admitted <= most_admitted()
            time.sleep(WINDOW / LIMIT / 3)
        while answer.status == 200:
            answer = ask()
        assert parse_error(answer)["code"] == "rate_limit_exceeded"
        wait = int(answer.headers["retry-after"])
        assert 1 <= wait <= WINDOW
        time.sleep(wait)
        assert ask().status == 200
    finally:
        config.write_text(before)
        (strict.folder / "gateway" / "keys.map").unlink()
        strict.reload()
