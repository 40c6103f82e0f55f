"""The rendered gateway in the real HAProxy: keys, limits, closed paths, queues and streams, on fake engines."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from stackgen import engines
from tests.live.containers import wait_until
from tests.live.gateway import (
    FakeEngineStack,
    both_sizes,
    find_log_line,
    gateway_data,
    parse_error,
    repeat,
)  # fmt: skip

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def gateway(
    fastchat_image: str, haproxy_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeEngineStack]:
    data = gateway_data("sgtest-gateway-access", 18165, haproxy_image)
    data["gateway"]["cors"] = ["https://app.example.com", "http://localhost:3000"]
    with FakeEngineStack(tmp_path_factory.mktemp("gateway"), data, fastchat_image) as running:
        yield running


INVALID_AUTHORIZATION = [
    None,
    "",
    "Bearer",
    "Bearer ",
    "Bearer wrong",
    "Basic {basic}",
    "bearer",
    "{key}",
    "Bearer {key}x",
    "Bearer  ",
]


@pytest.mark.parametrize("header", INVALID_AUTHORIZATION)
def test_without_a_valid_key_the_gateway_reveals_nothing(gateway: FakeEngineStack, header: str | None) -> None:
    sent = {} if header is None else {"Authorization": header.format(key=gateway.key, basic="eDp5")}
    for method, path in (
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/invocations"),
        ("GET", "/"),
    ):
        answer = gateway.request(method, path, b'{"model": "beta"}' if method == "POST" else None, None, sent)
        assert (answer.status, parse_error(answer)["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "beta" not in answer.text


def test_paths_that_engines_leave_open_are_closed(gateway: FakeEngineStack) -> None:
    """The paths that an engine serves without a key get 401 without a key, and 404 or 405 with a valid one."""
    known = {path for name in engines.names() for path in engines.get(name).dialect.open_paths}
    more = ("/detokenize", "/score", "/rerank", "/classify", "/pooling", "/pause", "/resume", "/update_weights",
            "/abort_requests", "/ping", "/sleep", "/collective_rpc", "/server_info", "/v1", "/v1/", "/metrics", "/docs",
            "/openapi.json", "/any", "/keys",
            "/v1/load_lora_adapter", "/alive", "//v1/models", "/v1/../metrics", "/v1/models/../../metrics",
            "/V1/models", "/v1/chat/completions/", "/v1/chat/completions/../../../invocations", "/%2e%2e/metrics",
            "/v1/chat%2fcompletions")  # fmt: skip
    before = [len(gateway.received(name)) for name in gateway.engines]
    for path in sorted((known | set(more)) - {"/tokenize"}):
        for method in ("GET", "POST"):
            body = b'{"model": "beta"}' if method == "POST" else None
            assert gateway.request(method, path, body, None).status == 401, path
            assert gateway.request(method, path, body).status in (404, 405), path
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert gateway.request(method, "/v1/chat/completions", b'{"model": "beta"}').status in (404, 405)
    assert [len(gateway.received(name)) for name in gateway.engines] == before


def test_engines_get_only_the_engine_key_and_clients_never_see_it(gateway: FakeEngineStack) -> None:
    answer = gateway.chat("beta")
    headers = gateway.received("vllm-beta")[-1]["headers"]
    assert headers["authorization"] == f"Bearer {gateway.engine_key}"
    assert gateway.key not in json.dumps(headers)
    assert gateway.engine_key not in answer.text + json.dumps(answer.headers)
    assert answer.headers["x-request-id"] == headers["x-request-id"]
    line = find_log_line(gateway, answer)
    log = gateway.logs()
    assert gateway.key not in log and gateway.engine_key not in log
    assert (line["key"], line["model"], line["server"], int(line["status"])) == ("default", "beta", "vllm-beta", 200)


def test_keys_have_names_and_limits_and_change_under_load(gateway: FakeEngineStack) -> None:
    statuses: list[int] = []
    default = gateway.key
    with repeat(lambda: statuses.append(gateway.chat("alpha", sleep=0.05).status), 4):
        gateway.write_keys(default=default, alice="sk-alice", bob="sk-bob")
        assert gateway.chat("beta", "sk-bob").status == 200
        assert gateway.chat("beta", "sk-carol").status == 401
        gateway.write_keys(default=default, alice="sk-alice", bob="sk-bob-2", carol="sk-carol")
        assert gateway.chat("beta", "sk-bob").status == 401
        assert gateway.chat("beta", "sk-bob-2").status == gateway.chat("beta", "sk-carol").status == 200
    print(f"two reloads of keys under load: {Counter(statuses)}")
    assert set(statuses) == {200} and len(statuses) > 20
    assert Counter(gateway.chat("beta", "sk-alice").status for _ in range(8)) == {200: 5, 429: 3}
    refused = gateway.chat("beta", "sk-alice")
    assert parse_error(refused)["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert gateway.chat("beta", "sk-carol").status == 200  # a limit applies to one key only
    with ThreadPoolExecutor(3) as pool:
        several = Counter(
            one.status for one in pool.map(lambda _: gateway.chat("alpha", "sk-bob-2", sleep=1), range(3))
        )
    assert several == {200: 1, 429: 2}
    ask = "import urllib.request as u; print(u.urlopen('http://gateway:8405/keys').read().decode())"
    metrics = gateway.run("vllm-beta", "python3", "-c", ask)
    assert re.search(r'stackgen_gateway_key_requests_total\{key="alice"\} 9\b', metrics)
    assert re.search(r'stackgen_gateway_key_errors_total\{key="alice"\} 4\b', metrics)
    assert re.search(r'stackgen_gateway_key_concurrent_requests\{key="bob"\} 0\b', metrics)
    (gateway.folder / "gateway" / "keys.map").unlink()
    gateway.reload()
    assert gateway.chat("beta").status == 200


def test_x_api_key_is_as_good_as_a_bearer_token(gateway: FakeEngineStack) -> None:
    """Claude Code sends its key in x-api-key. Names, limits and logs hold for both headers."""
    gateway.write_keys(default=gateway.key, carol="sk-carol", alice="sk-anthropic")
    try:
        body = {"model": "beta"}
        for headers, status in (
            ({"x-api-key": "sk-carol"}, 200), ({"X-Api-Key": "sk-carolx"}, 401), ({"x-api-key": ""}, 401),
            ({"x-api-key": "Bearer sk-carol"}, 401), ({"x-api-key": "sk-carol", "Authorization": "Bearer no"}, 401),
            ({"x-api-key": "no", "Authorization": "Bearer sk-carol"}, 200),
            ({"x-api-key": "sk-carol", "Authorization": "Basic eDp5"}, 200),
        ):  # fmt: skip
            answer = gateway.request("POST", "/v1/chat/completions", body, None, headers)
            assert answer.status == status, headers
            if status == 200:
                assert find_log_line(gateway, answer)["key"] == "carol"
                received = {name.lower(): value for name, value in gateway.received("vllm-beta")[-1]["headers"].items()}
                assert received["authorization"] == f"Bearer {gateway.engine_key}" and "x-api-key" not in received
        both = [gateway.request("GET", "/v1/models", None, None, {"x-api-key": "sk-anthropic"}) for _ in range(3)]
        both += [gateway.request("GET", "/v1/models", None, "sk-anthropic") for _ in range(3)]
        assert [one.status for one in both] == [200] * 5 + [429]
    finally:
        (gateway.folder / "gateway" / "keys.map").unlink()
        gateway.reload()


def test_only_head_of_the_root_needs_no_key(gateway: FakeEngineStack) -> None:
    """Claude Code starts with HEAD / and no key."""
    answer = gateway.request("HEAD", "/", key=None)
    assert (answer.status, answer.text) == (200, "")
    assert gateway.request("HEAD", "/v1/models", key=None).status == 401


@both_sizes
def test_a_path_that_the_engine_lacks_gets_404_in_the_shape_of_both_apis(gateway: FakeEngineStack, pad: int) -> None:
    for path in ("/v1/messages?beta=true", "/v1/messages/count_tokens", "/v1/responses"):
        body = {"messages": ["x" * pad], "model": "beta"}
        assert gateway.request("POST", path, body).json["by"] == "vllm-beta"
        assert gateway.received("vllm-beta")[-1]["path"] == path
        before = len(gateway.received("fastchat-api"))
        answer = gateway.request("POST", path, body | {"model": "chatty"})
        assert (answer.status, answer.json["type"], parse_error(answer)["code"]) == (404, "error", "path_not_served")
        for word in ("chatty", "fastchat", path.partition("?")[0], "/v1/chat/completions"):
            assert word in parse_error(answer)["message"]
        assert len(gateway.received("fastchat-api")) == before


@both_sizes
def test_web_pages_of_allowed_origins_can_call_the_gateway(gateway: FakeEngineStack, pad: int) -> None:
    allowed, ask = "https://app.example.com", {"Access-Control-Request-Method": "POST"}
    preflight = ask | {"Access-Control-Request-Headers": "authorization,content-type"}
    path, body = "/v1/chat/completions", {"messages": ["x" * pad], "model": "beta"}
    answer = gateway.request("OPTIONS", path, key=None, headers=preflight | {"Origin": allowed})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, allowed)
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in answer.headers["access-control-allow-methods"]
    for key, status in ((gateway.key, 200), ("wrong", 401), (None, 401)):
        # engines allow every origin
        test = {"headers": {"access-control-allow-origin": "*", "access-control-allow-credentials": "true"}}
        answer = gateway.request("POST", path, body | {"test": test}, key, {"Origin": allowed})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, allowed)
        assert answer.headers["vary"] == "origin" and "access-control-allow-credentials" not in answer.headers
        other = gateway.request("POST", path, body | {"test": test}, key, {"Origin": f"{allowed}.evil.example"})
        assert other.status == status and "access-control-allow-origin" not in other.headers
    for origin in (f"{allowed}:8443", "http://app.example.com", "null", "", f"{allowed},https://x"):
        answer = gateway.request("OPTIONS", path, key=None, headers=preflight | {"Origin": origin})
        assert (answer.status, "access-control-allow-origin" in answer.headers) == (401, False), origin
    # without the header of a preflight request, OPTIONS is a request like others
    assert gateway.request("OPTIONS", path, key=None, headers={"Origin": allowed}).status == 401


def logged_keys(gateway: FakeEngineStack) -> set[str]:
    return {json.loads(line)["key"] for line in gateway.logs().splitlines() if line.startswith("{")}


def test_special_characters_in_a_key_do_not_break_the_map(gateway: FakeEngineStack) -> None:
    unusual = ["it's", 'a"b', "$HOME", "${STACKGEN_ENGINE_KEY}", "%[env(PATH)]", "%b", "a,b;c", "{}", "#x", "a\\b",
               "\\n", "managed", "default", "a:b@c", "x" * 2000, "-m", "=", "A" * 64, "`ls`", "';deny;'"]  # fmt: skip
    gateway.write_keys(default=gateway.key, **{f"odd{number}": key for number, key in enumerate(unusual)})
    try:
        assert {key: gateway.chat("alpha", key).status for key in unusual} == dict.fromkeys(unusual, 200)
        expected = {f"odd{number}" for number in range(len(unusual))}
        # Docker gets the last lines a moment after the answers
        wait_until(lambda: logged_keys(gateway) >= expected, 10, lambda: expected - logged_keys(gateway))
        # neither a hash nor the map's own entries are keys
        for key in ("1", "managed 1", "default 1", "odd1"):
            assert gateway.chat("alpha", key).status == 401
    finally:
        (gateway.folder / "gateway" / "keys.map").unlink()
        gateway.reload()


def test_models_change_under_load(gateway: FakeEngineStack) -> None:
    statuses: list[int] = []
    before = gateway.data["models"][1]
    with repeat(lambda: statuses.append(gateway.chat("alpha", sleep=0.05).status), 4):
        assert gateway.chat("brand-new").status == 404
        gateway.data["models"][1] = before | {"served_names": ["beta", "brand-new"]}
        gateway.render()
        gateway.reload()
        assert gateway.chat("brand-new").replica == "vllm-beta"
        gateway.data["models"][1] = before
        gateway.render()
        gateway.reload()
        assert gateway.chat("brand-new").status == 404
    print(f"two reloads of models under load: {Counter(statuses)}")
    assert set(statuses) == {200} and len(statuses) > 20


@both_sizes
def test_a_full_queue_gets_429_and_not_a_timeout(gateway: FakeEngineStack, pad: int) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: gateway.chat("beta", pad=pad, sleep=1.5), range(12)))
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) == {200, 429}
    assert statuses[200] >= 4  # two in flight, and at least two queued
    refused = next(answer for answer in answers if answer.status == 429)
    assert parse_error(refused)["code"] == "queue_full"
    assert "retry-after" in refused.headers


@both_sizes
def test_streams_are_not_buffered(gateway: FakeEngineStack, pad: int) -> None:
    connection = gateway.connect()
    body = json.dumps({"pad": "x" * pad, "model": "alpha", "test": {"chunks": 20, "every": 0.2}})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {gateway.key}"})
    response = connection.getresponse()
    times = []
    while line := response.readline():
        if line.startswith(b"data:"):
            times.append(time.monotonic())
    response.close()
    connection.close()
    assert len(times) == 20
    # 19 pauses of 0.2 s; a buffered stream would arrive at once
    assert times[-1] - times[0] > 2.5


@both_sizes
def test_a_client_disconnect_reaches_the_engine(gateway: FakeEngineStack, pad: int) -> None:
    connection = gateway.connect()
    body = json.dumps({"pad": "x" * pad, "model": "beta", "test": {"chunks": 400, "every": 0.05}})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {gateway.key}"})
    response = connection.getresponse()
    response.readline()
    response.close()
    connection.close()
    end = time.monotonic() + 10
    while gateway.received("vllm-beta")[-1]["ended"] != "client gone" and time.monotonic() < end:
        time.sleep(0.2)
    assert gateway.received("vllm-beta")[-1]["ended"] == "client gone"
