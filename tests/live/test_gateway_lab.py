"""Rules for keys in the real HAProxy, in front of fake engines: allowed models, last day, tokens and their budget."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from stackgen.cli.main import main
from tests.live.gateway import FakeEngineStack, both_sizes, find_log_line, parse_error

pytestmark = pytest.mark.docker

BUDGET = 50_000
RATE = 3
CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


@pytest.fixture(scope="module")
def lab(fastchat_image: str, haproxy_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeEngineStack]:
    keys: list[dict[str, Any]] = [
        {"name": "ada", "models": ["alpha"]},
        {"name": "grace", "expires": "2020-02-29"},
        {"name": "ken", "tokens_per_day": BUDGET},
        {"name": "leslie", "tokens_per_day": BUDGET, "expires": "2999-12-31"},
    ]
    # without the default below
    keys = [one | {"requests_per_minute": None} for one in keys]
    data = {
        "name": "sgtest-lab", "port": 18176,
        "gateway": {"image": haproxy_image, "keys": keys, "key_defaults": {"requests_per_minute": RATE}},
        "models": [{"model": "./a", "engine": "vllm", "served_names": ["alpha", "first"], "replicas": 2},
                   {"model": "./b", "engine": "vllm", "served_names": ["beta"]},
                   {"model": "./c.gguf", "engine": "llamacpp", "served_names": ["gamma"]}],
    }  # fmt: skip
    with FakeEngineStack(tmp_path_factory.mktemp("lab"), data, fastchat_image) as running:
        (running.folder / "stack.yaml").write_text(yaml.safe_dump(data))
        running.write_keys(default=running.key, guest="sk-guest", **{one["name"]: f"sk-{one['name']}" for one in keys})
        yield running


def usage(lab: FakeEngineStack, name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The counts of one key, as the command reports them."""
    capsys.readouterr()
    assert main(["keys", "usage", "--json", str(lab.folder)]) == 0
    (found,) = [one for one in json.loads(capsys.readouterr().out)["keys"] if one["name"] == name]
    return dict(found)


def tokens(lab: FakeEngineStack, name: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, int]:
    found = usage(lab, name, capsys)
    return found["prompt_tokens"], found["completion_tokens"]


def wait_for_tokens(
    lab: FakeEngineStack, name: str, expected: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    # the count is written when the request has ended, shortly after its last byte
    end = time.monotonic() + 10
    while (found := tokens(lab, name, capsys)) != expected:
        assert time.monotonic() < end, f"{found} instead of {expected}"
        time.sleep(0.2)


def test_a_key_that_is_not_listed_has_the_default_limit(lab: FakeEngineStack) -> None:
    assert [lab.chat("alpha", "sk-guest").status for _ in range(RATE + 1)] == [200] * RATE + [429]
    # `null` lifts it, and the key in .env never has it
    for key in ("sk-ken", lab.key):
        assert {lab.chat("alpha", key).status for _ in range(RATE + 1)} == {200}


@both_sizes
def test_a_key_with_models_gets_403_for_others(lab: FakeEngineStack, pad: int) -> None:
    assert lab.chat("alpha", "sk-ada", pad).status == 200
    for name in ("beta", "first"):
        answer = lab.chat(name, "sk-ada", pad)
        assert (answer.status, parse_error(answer)["code"]) == (403, "model_not_allowed")
        # the error says what is allowed
        assert [one["id"] for one in answer.json["error"]["models"]] == ["alpha"]
        assert lab.chat(name, "sk-ken", pad).status == 200
    unknown = lab.chat("none", "sk-ada", pad)
    assert unknown.status == 404 and [one["id"] for one in unknown.json["error"]["models"]] == ["alpha"]


def test_a_key_with_models_sees_only_these(lab: FakeEngineStack) -> None:
    def listed(key: str) -> list[str]:
        return [one["id"] for one in lab.request("GET", "/v1/models", key=key).json["data"]]

    assert listed("sk-ada") == ["alpha"] and listed("sk-ken") == ["alpha", "first", "beta", "gamma"]
    assert lab.request("GET", "/v1/models/alpha", key="sk-ada").status == 200
    assert lab.request("GET", "/v1/models/beta", key="sk-ada").status == 403
    assert lab.request("GET", "/v1/models/beta", key="sk-ken").status == 200


@both_sizes
def test_a_key_after_its_last_day_gets_401(lab: FakeEngineStack, pad: int) -> None:
    answer = lab.chat("alpha", "sk-grace", pad)
    assert (answer.status, parse_error(answer)["code"]) == (401, "key_expired")
    assert lab.chat("alpha", "sk-leslie", pad).status == 200


@both_sizes
@pytest.mark.parametrize(
    ("raw", "counted"),
    [
        ({"usage": USAGE}, (10, 5)),
        ({"usage": {"prompt_tokens": 10, "total_tokens": 10}}, (10, 0)),
        ({"usage": {"total_tokens": 7}}, (7, 0)),
        # more than a buffer of HAProxy
        ({"text": "x" * 200_000, "usage": USAGE}, (10, 5)),
        # Anthropic's API, and OpenAI's Responses API
        ({"usage": {"input_tokens": 4, "output_tokens": 3}}, (4, 3)),
        # a text that looks like a usage, and an answer without one
        ({"choices": [{"message": {"content": '"usage": {"prompt_tokens": 9000}'}}]}, (0, 0)),
    ],
)
def test_tokens_of_answers_are_counted_as_the_engine_reports_them(
    lab: FakeEngineStack, pad: int, raw: Any, counted: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = tokens(lab, "ken", capsys)
    answer = lab.chat("alpha", "sk-ken", pad, raw=raw)
    assert answer.status == 200 and answer.json == raw
    wait_for_tokens(lab, "ken", (before[0] + counted[0], before[1] + counted[1]), capsys)
    assert find_log_line(lab, answer)["tokens"] == (str(sum(counted)) if any(counted) else "")


@both_sizes
def test_tokens_of_streams_are_counted(lab: FakeEngineStack, pad: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = tokens(lab, "ken", capsys)
    answer = lab.chat("alpha", "sk-ken", pad, chunks=20, every=0.002, usage=USAGE)
    assert answer.text.count("data:") == 21
    wait_for_tokens(lab, "ken", (before[0] + 10, before[1] + 5), capsys)


def llamacpp_response(path: str, *texts: str, tokens: int) -> str:
    """A response of llama.cpp 11434: fields in its order and without spaces, and the usage of the first choice."""

    def choice(index: int, text: str) -> dict[str, Any]:
        if path == CHAT:
            message = {"role": "assistant", "content": text}
            return {"finish_reason": "stop", "index": index, "message": message}
        return {"text": text, "index": index, "logprobs": None, "finish_reason": "stop"}

    answer = {
        "choices": [choice(index, text) for index, text in enumerate(texts)], "created": 1796131772, "model": "/m.gguf",
        "usage": {"completion_tokens": tokens, "prompt_tokens": 2, "total_tokens": 2 + tokens,
                  "prompt_tokens_details": {"cached_tokens": 0}},
        "id": "chatcmpl-1", "timings": {"cache_n": 0, "prompt_n": 2, "predicted_n": tokens},
    }  # fmt: skip
    return json.dumps(answer, separators=(",", ":"))


@pytest.mark.parametrize(
    ("path", "texts", "reported", "least", "most"),
    [
        (CHAT, ["Yes"], 1, 1, 1),
        # a few tokens: as many for each choice
        (CHAT, ["Hugs,", "Hello! How"], 3, 6, 6),
        (TEXTS, [" can't be harmed", " loved the sea and"], 4, 8, 8),
        (TEXTS, [" was the most"] * 4, 3, 12, 12),
        # other choices may be longer or shorter than the first one
        (TEXTS, ["word " * 10, "word " * 400], 10, 380, 430),
        (CHAT, ["word " * 400, "word " * 10], 400, 400, 420),
        (TEXTS, ["", "word " * 400], 1, 450, 550),
        (CHAT, ["1 " * 50] * 3, 100, 290, 310),
        # more than a buffer of HAProxy, and a text that looks like choices
        (CHAT, ["word " * 9_000] * 3, 9_000, 26_990, 27_010),
        (TEXTS, [json.dumps([{"text": "a"}] * 9, separators=(",", ":"))], 60, 60, 60),
    ],
)
@both_sizes
def test_all_choices_of_llamacpp_count_although_it_reports_one(
    lab: FakeEngineStack, pad: int, path: str, texts: list[str], reported: int, least: int, most: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = tokens(lab, "default", capsys)
    raw = llamacpp_response(path, *texts, tokens=reported)
    body = {"messages" if path == CHAT else "prompt": ["x" * pad], "model": "gamma", "test": {"raw": raw}}
    answer = lab.request("POST", path, body)
    assert answer.text == raw
    # the prompt of a chat is exact, and prompts of /v1/completions are estimated
    prompt = 2 if path == CHAT or len(texts) == 1 else -(-len(json.dumps(body)) // 4)
    end = time.monotonic() + 10
    while (found := tokens(lab, "default", capsys)) == before:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert found[0] - before[0] == prompt and least <= found[1] - before[1] <= most


@both_sizes
def test_usages_of_streams_of_llamacpp_are_summed(
    lab: FakeEngineStack, pad: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, counted in (("gamma", 5 + 32 + 4), ("alpha", 32)):
        before = tokens(lab, "default", capsys)
        # vLLM sends a growing usage with --enable-force-include-usage
        usages = [USAGE, USAGE | {"completion_tokens": 32}, USAGE | {"completion_tokens": 4}]
        assert lab.chat(model, pad=pad, chunks=2, every=0.002, usages=usages).status == 200
        wait_for_tokens(lab, "default", (before[0] + 10, before[1] + counted), capsys)


def test_a_stream_without_usage_is_estimated(lab: FakeEngineStack, capsys: pytest.CaptureFixture[str]) -> None:
    before = tokens(lab, "ken", capsys)
    body = {"model": "alpha", "test": {"chunks": 20, "every": 0.002}}
    assert lab.request("POST", "/v1/chat/completions", body, "sk-ken").status == 200
    wait_for_tokens(lab, "ken", (before[0] + -(-len(json.dumps(body)) // 4), before[1] + 20), capsys)


def test_a_stream_that_the_client_leaves_is_counted_as_far_as_it_came(
    lab: FakeEngineStack, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tokens(lab, "ken", capsys)
    connection = lab.connect()
    body = json.dumps({"model": "alpha", "test": {"chunks": 500, "every": 0.05}})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": "Bearer sk-ken"})
    response = connection.getresponse()
    for _ in range(10):
        response.readline()
    response.close()
    connection.close()
    end = time.monotonic() + 10
    while (found := tokens(lab, "ken", capsys)) == before:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert 5 <= found[1] - before[1] < 100


def test_counts_survive_a_reload_and_include_streams_of_the_old_worker(
    lab: FakeEngineStack, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tokens(lab, "leslie", capsys)
    connection = lab.connect()
    body = json.dumps({"model": "alpha", "test": {"chunks": 60, "every": 0.1, "usage": USAGE}})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": "Bearer sk-leslie"})
    response = connection.getresponse()
    assert response.readline().startswith(b"data:")
    lab.chat("alpha", "sk-leslie", raw={"usage": USAGE})
    wait_for_tokens(lab, "leslie", (before[0] + 10, before[1] + 5), capsys)
    time.sleep(1.2)
    lab.reload()
    wait_for_tokens(lab, "leslie", (before[0] + 10, before[1] + 5), capsys)
    assert 1 + response.read().count(b"data:") == 61
    connection.close()
    wait_for_tokens(lab, "leslie", (before[0] + 20, before[1] + 10), capsys)


def test_retries_are_not_lost_by_counting(lab: FakeEngineStack) -> None:
    # the first replica dies, and another one answers
    for pad in (0, 100_000):
        answer = lab.chat("alpha", "sk-ken", pad, die="vllm-alpha")
        assert (answer.status, answer.replica) == (200, "vllm-alpha-2")
        lab.compose("up", "--detach", "vllm-alpha")


@both_sizes
def test_a_key_without_tokens_gets_429_until_midnight(
    lab: FakeEngineStack, pad: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if usage(lab, "leslie", capsys)["tokens_today"] < BUDGET:
        # the last request may exceed the budget, because its tokens are known only afterwards
        assert lab.chat("alpha", "sk-leslie", raw={"usage": {"prompt_tokens": BUDGET}}).status == 200
        time.sleep(0.5)
    answer = lab.chat("alpha", "sk-leslie", pad)
    assert (answer.status, parse_error(answer)["code"]) == (429, "token_budget_exceeded")
    assert 0 < int(answer.headers["retry-after"]) <= 86400
    # what costs no tokens still works, and so do other keys
    assert lab.request("GET", "/v1/models", key="sk-leslie").status == 200
    assert lab.chat("alpha", "sk-ken", pad).status == 200
