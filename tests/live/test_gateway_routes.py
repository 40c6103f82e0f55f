"""The rendered gateway in the real HAProxy, in front of fake engines that record the requests they receive."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackgen import engines
from stackgen.stack.envfile import create_env
from tests.live.gateway import Answer, FakeEngineStack
from tests.resolve.addons.test_gateway import names

pytestmark = [pytest.mark.docker, pytest.mark.front]

# text with a special meaning in a map, a log format, JSON, a shell or HAProxy's quoting
HOSTILE = [
    "it's", 'say "hi"', "a b", "$HOME", "${STACKGEN_ENGINE_KEY}", "%[env(PATH)]", "%b", "a,b;c", "{}", "{{x}}", "#x",
    "a\\b", "a\\", "\\n", "org/Model-1.5:latest", "a%20b", "`ls`", "x--y", "'; deny; '", "x" * 300, "<b>", "&amp;", "*",
]  # fmt: skip


# a body that fits HAProxy's buffer, and one that the gateway's second process handles
both_sizes = pytest.mark.parametrize("pad", [0, 100_000], ids=["small", "large"])
# printable ASCII without a space: what a header value may contain
header_values = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def gateway(
    fastchat_image: str, haproxy_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeEngineStack]:
    keys = [{"name": "alice", "requests_per_minute": 5}, {"name": "bob", "concurrent_requests": 1}, {"name": "carol"}]
    data = {
        "name": "sgtest-gateway", "port": 18161,
        "gateway": {"image": haproxy_image, "keys": keys, "max_body": "2m", "max_queue": 2, "allow": ["/tokenize"]},
        "models": [
            {"model": "./a", "engine": "vllm", "replicas": 2, "served_names": ["alpha", "first", *HOSTILE[:12]]},
            {"model": "./b", "engine": "vllm", "served_names": ["beta", *HOSTILE[12:]], "max_num_seqs": 2},
            {"model": "./c", "engine": "fastchat", "served_names": ["chatty"]},
        ],
    }  # fmt: skip
    with FakeEngineStack(tmp_path_factory.mktemp("gateway"), data, fastchat_image) as running:
        yield running


def test_requests_are_routed_by_model(gateway: FakeEngineStack) -> None:
    with ThreadPoolExecutor(8) as pool:  # simultaneously: an idle replica is chosen at random
        served = {one.replica for one in pool.map(lambda _: gateway.chat("alpha", sleep=0.5), range(8))}
    assert served == {"vllm-alpha", "vllm-alpha-2"}
    assert gateway.chat("first").json["model"] == "first"  # an alias is passed on unchanged
    assert gateway.chat("beta").headers["x-stackgen-served-by"] == "vllm-beta/vllm-beta"
    assert gateway.chat("chatty").replica == "fastchat-api"
    for path in ("/v1/completions", "/v1/embeddings", "/tokenize"):
        assert gateway.request("POST", path, {"model": "beta"}).json["by"] == "vllm-beta"


@pytest.mark.parametrize("name", HOSTILE)
def test_special_characters_in_a_model_name_do_not_break_routing(gateway: FakeEngineStack, name: str) -> None:
    answer = gateway.chat(name)
    assert (answer.status, answer.json["model"]) == (200, name)
    listed = [model["id"] for model in gateway.request("GET", "/v1/models").json["data"]]
    assert listed.count(name) == 1


def test_arbitrary_model_names_and_keys_work(gateway: FakeEngineStack) -> None:
    before = gateway.data["models"][1]
    others = {"beta", *gateway.data["models"][0]["served_names"], "chatty"}

    @given(
        st.lists(names, min_size=1, max_size=8, unique=True),
        st.lists(header_values, min_size=1, max_size=8, unique=True),
    )
    @settings(deadline=None, max_examples=6, database=None)
    def each_name_and_key_works(served: list[str], keys: list[str]) -> None:
        mine = [name for name in served if name not in others]
        gateway.data["models"][1] = before | {"served_names": ["beta", *mine]}
        gateway.render()
        gateway.write_keys(default=gateway.key, **{f"k{number}": key for number, key in enumerate(keys)})
        for name in mine:
            raw = json.dumps({"model": name, "messages": []})
            for body in (raw, raw.replace("/", "\\/")):  # PHP escapes slashes
                answer = gateway.request("POST", "/v1/chat/completions", body.encode())
                assert (answer.status, answer.json["model"]) == (200, name)
        listed = {model["id"] for model in gateway.request("GET", "/v1/models").json["data"]}
        assert listed == {*mine, *others}
        assert {key: gateway.chat("alpha", key).status for key in keys} == dict.fromkeys(keys, 200)

    try:
        each_name_and_key_works()
    finally:
        gateway.data["models"][1] = before
        gateway.render()
        (gateway.folder / "gateway" / "keys.map").unlink(missing_ok=True)
        gateway.reload()


DEEP = "[" * 40 + "]" * 40


@pytest.mark.parametrize(
    "body",
    [
        r'{"model": "org\/Model-1.5:latest"}',
        r'{"model": "\u006frg/Model-1.5:latest"}',
        r'{"mod\u0065l": "org\u002fModel-1.5:latest"}',
        r'{"messages": [{"model": "al\/pha"}], "model": "org\/Model-1.5:latest"}',
        f'{{"tools": {DEEP}, "model": "org/Model-1.5:latest"}}',
        '{"x": ' + '{"model": ' * 40 + "1" + "}" * 40 + ', "model": "org/Model-1.5:latest"}',
    ],
)
def test_the_model_is_found_in_any_json_encoding(gateway: FakeEngineStack, body: str) -> None:
    answer = gateway.request("POST", "/v1/chat/completions", body.encode())
    assert (answer.status, answer.json["model"], answer.replica) == (200, "org/Model-1.5:latest", "vllm-beta")


@pytest.mark.parametrize("head", [100, 14_000])
def test_bodies_around_the_buffer_size_arrive_complete(gateway: FakeEngineStack, head: int) -> None:
    for size in (*range(48_900, 49_400, 100), *range(62_000, 66_500, 250)):
        body = json.dumps({"messages": ["x" * (size - 60)], "model": "first"}).ljust(size).encode()
        answer = gateway.request("POST", "/v1/chat/completions", body, headers={"X-Own": "y" * head})
        assert answer.status == 200, (size, answer.text)
        assert (answer.json["bytes"], answer.json["model"]) == (size, "first")


@pytest.mark.parametrize("name", HOSTILE)
def test_special_characters_in_a_model_name_do_not_break_large_bodies(gateway: FakeEngineStack, name: str) -> None:
    answer = gateway.chat(name, pad=100_000)
    assert answer.status == 200, answer.text
    assert answer.json["model"] == name
    assert answer.replica == ("vllm-beta" if name in HOSTILE[12:] else answer.replica)


@pytest.mark.parametrize("length", [300, 4_000, 4_097, 30_000, 60_000, 1_000_000])
def test_an_unknown_model_name_of_any_length_is_a_client_error(gateway: FakeEngineStack, length: int) -> None:
    for pad in (0, 100_000):
        answer = gateway.chat("n" * length, pad=pad)
        assert answer.status in (400, 404), answer.text[:300]
        assert parse_error(answer)["code"] in ("model_missing", "model_not_found")
        assert find_log_line(gateway, answer)["model"] == ("n" * length if length <= 512 else "")


def test_clients_cannot_break_log_lines(gateway: FakeEngineStack) -> None:
    for path in ("/x" * 200, "/" + "x" * 20_000, '/"\\{}'):
        for key in ("", None):
            answer = gateway.request("GET", path, key=key)
            assert answer.status == (401 if key is None else 404)
            assert find_log_line(gateway, answer)["path"] == (path if len(path) < 512 else "")
    answer = gateway.request("X" * 3_000, "/v1/models")
    assert find_log_line(gateway, answer)["method"] == ""


def test_clients_cannot_forge_headers_of_the_second_process(gateway: FakeEngineStack) -> None:
    forged = {"X-Stackgen-Model": "YWxwaGE=", "X-Stackgen-Key": "alice", "X-Stackgen-Client": "1.2.3.4",
              "X-Stackgen-Status": "500", "X-Stackgen-Logged": "1", "X-Stackgen-Places": "1-5"}  # fmt: skip
    for pad in (0, 100_000):
        body = {"messages": ["x" * pad], "model": "beta"}
        answer = gateway.request("POST", "/v1/chat/completions", body, headers=forged)
        assert (answer.status, answer.replica, answer.json["model"]) == (200, "vllm-beta", "beta")
        assert not [name for name in answer.headers if name.startswith("x-stackgen") and name != "x-stackgen-served-by"]
        headers = gateway.received("vllm-beta")[-1]["headers"]
        assert not [name for name in headers if name.lower().startswith("x-stackgen")]
        assert "1.2.3.4" not in headers["x-forwarded-for"]
    # the ports between the two processes are closed to other containers, and so to clients
    probe = (
        "import socket\nfor port in (8406, 8407, 8408):\n    try: socket.create_connection(('gateway', port), 5)\n"
        "    except ConnectionRefusedError: print('closed')"
    )
    assert gateway.run("vllm-beta", "python3", "-c", probe).split() == ["closed"] * 3


@both_sizes
def test_engines_cannot_forge_headers_of_the_gateway(gateway: FakeEngineStack, pad: int) -> None:
    forged = {"x-stackgen-status": "502", "x-stackgen-logged": "1", "x-stackgen-served-by": "x/y"}
    answer = gateway.chat("beta", pad=pad, headers=forged)
    own = {name: text for name, text in answer.headers.items() if name.startswith("x-stackgen")}
    assert (answer.status, own) == (200, {"x-stackgen-served-by": "vllm-beta/vllm-beta"})
    assert int(find_log_line(gateway, answer)["status"]) == 200


@both_sizes
def test_each_request_reaches_engine_and_log_once(gateway: FakeEngineStack, pad: int) -> None:
    answer = gateway.chat("beta", pad=pad)
    headers = gateway.received("vllm-beta")[-1]["headers"]
    assert headers["x-request-id"] == answer.headers["x-request-id"]
    assert headers["x-forwarded-for"].count(",") == 0
    line = find_log_line(gateway, answer)
    assert (line["key"], line["model"], line["server"], int(line["status"])) == ("default", "beta", "vllm-beta", 200)
    assert line["client"] == headers["x-forwarded-for"]
    assert find_log_line(gateway, gateway.chat("gamma", pad=pad))["model"] == "gamma"  # errors are logged too


@both_sizes
def test_expect_100_continue_is_answered(gateway: FakeEngineStack, pad: int) -> None:
    """curl sends this header with a large body."""
    body = json.dumps({"messages": ["x" * pad], "model": "beta"}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", gateway.data["port"]), 20) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200 ") and f'"bytes": {len(body)}'.encode() in answer


def find_log_line(gateway: FakeEngineStack, answer: Answer) -> dict[str, Any]:
    """Returns the only log line of a request. It appears shortly after the answer."""
    end = time.monotonic() + 10
    while True:
        log = gateway.compose("logs", "--no-color", "gateway").stdout
        matching = [line for line in log.splitlines() if answer.headers["x-request-id"] in line]
        if matching or time.monotonic() > end:
            break
        time.sleep(0.2)
    (line,) = matching
    found: dict[str, Any] = json.loads(line.partition("| ")[2])
    return found


def test_the_model_is_found_at_any_position(gateway: FakeEngineStack) -> None:
    megabyte = "x" * 1_000_000
    body = json.dumps({"messages": [{"role": "user", "content": megabyte}], "stream": False, "model": "beta"})
    answer = gateway.request("POST", "/v1/chat/completions", body.encode())
    assert (answer.status, answer.json["bytes"]) == (200, len(body))
    inner = {
        "messages": [{"model": "alpha", "content": '"model": "alpha"'}],
        "metadata": {"model": "alpha"},
        "model": "beta",
    }
    assert gateway.request("POST", "/v1/chat/completions", inner).json["by"] == "vllm-beta"
    chunked = gateway.connect()
    chunked.request("POST", "/v1/chat/completions", iter([b'{"messages": [],', b' "model": "beta"}']),
                    {"Authorization": f"Bearer {gateway.key}"}, encode_chunked=True)  # fmt: skip
    reply = chunked.getresponse()
    assert reply.headers["x-stackgen-served-by"] == "vllm-beta/vllm-beta"
    assert json.loads(reply.read())["model"] == "beta"
    reply.close()
    chunked.close()


def parse_error(answer: Any) -> dict[str, Any]:
    """Returns the error, which must have OpenAI's format."""
    assert answer.headers["content-type"].startswith("application/json")
    found: dict[str, Any] = answer.json["error"]
    assert set(found) >= {"message", "type", "param", "code"}
    return found


def test_an_unknown_model_gets_404_with_the_list_of_models(gateway: FakeEngineStack) -> None:
    for name in ("gamma", "Alpha", 'x"y', "", 5, "é"):
        answer = gateway.request("POST", "/v1/chat/completions", {"model": name, "messages": []})
        # HAProxy can't decode escapes beyond ASCII, and reports a missing model instead of an unknown one
        assert answer.status in ((404, 400) if name in ("é", "") else (404,)), name
        assert parse_error(answer)["code"] in ("model_not_found", "model_missing")
    for pad in (0, 100_000):
        answer = gateway.chat("gamma", pad=pad)
        found = parse_error(answer)
        assert answer.status == 404 and "gamma" in found["message"]
        assert {"alpha", "beta", "chatty"} <= {model["id"] for model in found["models"]}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b'{"model": null}', b'{"messages": []}', b"\xff\xfe", b"{}" * 9]
)
def test_a_body_without_a_model_gets_400(gateway: FakeEngineStack, body: bytes) -> None:
    for text in (body, body + b" " * 100_000):
        answer = gateway.request("POST", "/v1/chat/completions", text)
        assert answer.status in (400, 404)
        assert parse_error(answer)["code"] in ("model_missing", "model_not_found")


def test_a_body_that_is_too_large_gets_413(gateway: FakeEngineStack) -> None:
    answer = gateway.request("POST", "/v1/chat/completions", {"model": "beta", "x": "y" * (2 * 2**20)})
    assert (answer.status, parse_error(answer)["code"]) == (413, "request_too_large")
    assert "max_body" in parse_error(answer)["message"] and "MiB at most" in parse_error(answer)["message"]
    # chunked, without a Content-Length
    with socket.create_connection(("127.0.0.1", 18161), timeout=20) as raw:
        raw.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\n"
                    "Transfer-Encoding: chunked\r\n\r\n".encode())  # fmt: skip
        received = b""
        try:
            for _ in range(48):
                raw.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        except OSError:
            pass
        with contextlib.suppress(OSError):
            received = raw.recv(4096)
    assert b" 413 " in received


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
            "/abort_requests", "/ping", "/sleep", "/collective_rpc", "/server_info", "/v1", "/v1/", "/metrics", "/keys",
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


def test_a_model_can_be_requested_by_name(gateway: FakeEngineStack) -> None:
    assert gateway.request("GET", "/v1/models/alpha").json["id"] == "alpha"
    assert gateway.request("GET", "/v1/models/org%2FModel-1.5:latest").json["id"] == "org/Model-1.5:latest"
    assert gateway.request("GET", "/v1/models/org/Model-1.5:latest").json["id"] == "org/Model-1.5:latest"
    assert parse_error(gateway.request("GET", "/v1/models/none"))["code"] == "model_not_found"


def test_engines_get_only_the_engine_key_and_clients_never_see_it(gateway: FakeEngineStack) -> None:
    answer = gateway.chat("beta")
    headers = gateway.received("vllm-beta")[-1]["headers"]
    assert headers["authorization"] == f"Bearer {gateway.engine_key}"
    assert gateway.key not in json.dumps(headers)
    assert gateway.engine_key not in answer.text + json.dumps(answer.headers)
    assert answer.headers["x-request-id"] == headers["x-request-id"]
    log = gateway.compose("logs", "--no-color", "gateway").stdout
    assert gateway.key not in log and gateway.engine_key not in log
    line = json.loads(next(line for line in reversed(log.splitlines()) if '"beta"' in line).partition("| ")[2])
    assert (line["key"], line["model"], line["server"], int(line["status"])) == ("default", "beta", "vllm-beta", 200)


def test_keys_have_names_and_limits_and_change_under_load(gateway: FakeEngineStack) -> None:
    failed: list[int] = []
    sent = 0
    stop = threading.Event()

    def load() -> None:
        nonlocal sent
        while not stop.is_set():
            status = gateway.chat("alpha", sleep=0.05).status
            sent += 1
            if status != 200:
                failed.append(status)

    default = gateway.key
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(load) for _ in range(4)]
        gateway.write_keys(default=default, alice="sk-alice", bob="sk-bob")
        assert gateway.chat("beta", "sk-bob").status == 200
        assert gateway.chat("beta", "sk-carol").status == 401
        gateway.write_keys(default=default, alice="sk-alice", bob="sk-bob-2", carol="sk-carol")
        assert gateway.chat("beta", "sk-bob").status == 401
        assert gateway.chat("beta", "sk-bob-2").status == gateway.chat("beta", "sk-carol").status == 200
        stop.set()
        for one in running:
            one.result()
    print(f"two reloads of keys under load: {sent} requests, {len(failed)} failed")
    assert sent > 20
    assert failed == []
    statuses = Counter(gateway.chat("beta", "sk-alice").status for _ in range(8))
    assert statuses == {200: 5, 429: 3}
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


def test_special_characters_in_a_key_do_not_break_the_map(gateway: FakeEngineStack) -> None:
    unusual = ["it's", 'a"b', "$HOME", "${STACKGEN_ENGINE_KEY}", "%[env(PATH)]", "%b", "a,b;c", "{}", "#x", "a\\b",
               "\\n", "managed", "default", "a:b@c", "x" * 2000, "-m", "=", "A" * 64, "`ls`", "';deny;'"]  # fmt: skip
    gateway.write_keys(default=gateway.key, **{f"odd{number}": key for number, key in enumerate(unusual)})
    try:
        assert {key: gateway.chat("alpha", key).status for key in unusual} == dict.fromkeys(unusual, 200)
        log = gateway.compose("logs", "--no-log-prefix", "gateway").stdout
        assert {json.loads(line)["key"] for line in log.splitlines() if line.startswith("{")} >= {
            f"odd{number}" for number in range(len(unusual))
        }
        # neither a hash nor the map's own entries are keys
        for key in ("1", "managed 1", "default 1", "odd1"):
            assert gateway.chat("alpha", key).status == 401
    finally:
        (gateway.folder / "gateway" / "keys.map").unlink()
        gateway.reload()


def test_models_change_under_load(gateway: FakeEngineStack) -> None:
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            statuses[gateway.chat("alpha", sleep=0.05).status] += 1

    before = gateway.data["models"][1]
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(load) for _ in range(4)]
        assert gateway.chat("brand-new").status == 404
        gateway.data["models"][1] = before | {"served_names": ["beta", "brand-new"]}
        gateway.render()
        gateway.reload()
        assert gateway.chat("brand-new").replica == "vllm-beta"
        gateway.data["models"][1] = before
        gateway.render()
        gateway.reload()
        assert gateway.chat("brand-new").status == 404
        stop.set()
        for one in running:
            one.result()
    print(f"two reloads of models under load: {sum(statuses.values())} requests, {statuses}")
    assert set(statuses) == {200} and statuses[200] > 20


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
    body = json.dumps({"pad": "x" * pad, "model": "alpha", "test": {"chunks": 20, "every": 0.05}})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {gateway.key}"})
    response = connection.getresponse()
    times = []
    while line := response.readline():
        if line.startswith(b"data:"):
            times.append(time.monotonic())
    response.close()
    connection.close()
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(times) == 20
    assert sum(gap > 0.02 for gap in gaps) >= 17  # a buffered stream would arrive at once


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


@both_sizes
def test_a_killed_replica_fails_no_request(gateway: FakeEngineStack, pad: int) -> None:
    failed, by = [], Counter[str]()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            answer = gateway.chat("alpha", pad=pad, sleep=0.2)
            by[answer.replica] += 1
            if answer.status != 200:
                failed.append((answer.status, answer.text))

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(load) for _ in range(6)]
        time.sleep(1.5)
        gateway.compose("kill", "vllm-alpha-2")
        time.sleep(4)
        before = by["vllm-alpha-2"]
        time.sleep(1)
        assert by["vllm-alpha-2"] == before
        up = gateway.compose("up", "--detach", "vllm-alpha-2")
        end = time.monotonic() + 30
        while by["vllm-alpha-2"] == before and time.monotonic() < end:
            time.sleep(0.2)
        stop.set()
        for one in running:
            one.result()
    print(
        f"a replica killed and restarted, {pad} bytes a body: "
        f"{sum(by.values())} requests, {len(failed)} failed, {dict(by)}"
    )
    assert up.returncode == 0, up.stderr
    assert failed == []
    show_state = 'exec 3<>/dev/tcp/127.0.0.1/8406; echo "show servers state; show resolvers docker" >&3; cat <&3'
    assert by["vllm-alpha-2"] > before, gateway.run("gateway", "bash", "-c", show_state)


@both_sizes
def test_a_request_is_retried_when_its_replica_dies_before_the_first_byte(gateway: FakeEngineStack, pad: int) -> None:
    for _ in range(40):  # either replica may get it, and only vllm-alpha dies of it
        answer = gateway.chat("alpha", pad=pad, die="vllm-alpha")
        assert (answer.status, answer.replica) == (200, "vllm-alpha-2")
        if "vllm-alpha" not in gateway.running_services():
            break
    else:
        raise AssertionError("no request went to vllm-alpha")
    gateway.compose("up", "--detach", "vllm-alpha")
    end = time.monotonic() + 60
    while gateway.chat("alpha").replica != "vllm-alpha":
        assert time.monotonic() < end, "vllm-alpha gets no requests again"


def count_failures(gateway: FakeEngineStack) -> int:
    """Returns the gateway's count of failed requests with the default key."""
    ask = "import urllib.request as u; print(u.urlopen('http://gateway:8405/keys').read().decode())"
    text = gateway.run("vllm-alpha", "python3", "-c", ask)
    return int(re.findall(r'stackgen_gateway_key_failures_total\{key="default"\} (\d+)', text)[0])


@both_sizes
def test_a_request_that_kills_each_replica_is_not_retried_forever(gateway: FakeEngineStack, pad: int) -> None:
    """It must not kill a whole fleet."""
    failed = count_failures(gateway)
    answer = gateway.chat("beta", pad=pad, die=True)
    assert (answer.status, parse_error(answer)["code"]) in ((502, "bad_gateway"), (503, "unavailable"))
    assert not [name for name in answer.headers if name.startswith("x-stackgen")]
    line = find_log_line(gateway, answer)
    assert (line["key"], line["model"], int(line["status"])) == ("default", "beta", answer.status)
    assert count_failures(gateway) == failed + 1
    # wait until Docker notices that the engine has exited: `up` does not start what it believes to be running
    end = time.monotonic() + 30
    while "vllm-beta" in gateway.running_services():
        assert time.monotonic() < end, "vllm-beta did not exit"
    up = gateway.compose("up", "--detach", "vllm-beta")
    assert up.returncode == 0, up.stderr
    wait_for_status(gateway, "beta")


def wait_for_status(gateway: FakeEngineStack, model: str, status: int = 200, seconds: float = 60) -> float:
    """Waits until completions get `status`, and returns the seconds that it took."""
    started = time.monotonic()
    while gateway.chat(model).status != status:
        assert time.monotonic() - started < seconds, f"{model} did not answer with {status} within {seconds} s"
        time.sleep(0.2)
    return time.monotonic() - started


def test_a_model_without_a_healthy_replica_gets_503_and_is_not_listed(gateway: FakeEngineStack) -> None:
    gateway.run("vllm-beta", "touch", "/tmp/down")
    assert wait_for_status(gateway, "beta", 503) < 15
    answer = gateway.chat("beta")
    assert parse_error(answer)["code"] == "model_unavailable"
    assert answer.headers["retry-after"] == "5"
    listed = {model["id"] for model in gateway.request("GET", "/v1/models").json["data"]}
    assert "beta" not in listed and "alpha" in listed
    assert gateway.request("GET", "/health", None, None).status == 200
    gateway.run("vllm-beta", "rm", "/tmp/down")
    wait_for_status(gateway, "beta")


@pytest.mark.parametrize("which", ["haproxy.cfg", "large.cfg"])
def test_the_container_restarts_when_either_process_dies(gateway: FakeEngineStack, which: str) -> None:
    kill = (
        "for p in /proc/[0-9]*; do read -r name <$p/comm; [ $name = haproxy ] && grep -qs $1 $p/cmdline"
        " && kill -9 ${p#/proc/}; done; true"
    )
    gateway.reload()  # the container must restart after a reload too
    before = gateway.inspect("gateway")["RestartCount"]
    gateway.compose("exec", "-T", "gateway", "bash", "-c", kill, "-", f"gateway.{which}")
    wait = time.monotonic() + 60
    while gateway.inspect("gateway")["RestartCount"] == before or gateway.serving_replica("beta") != "vllm-beta":
        assert time.monotonic() < wait, "the gateway did not restart"
        time.sleep(0.2)
    assert gateway.chat("beta", pad=100_000).status == 200
    assert "one of the gateway's two processes has ended" in gateway.compose("logs", "gateway").stdout


def test_a_wedged_fastchat_model_is_found_although_it_is_listed(gateway: FakeEngineStack) -> None:
    gateway.run("fastchat-api", "touch", "/tmp/wedged")
    took = wait_for_status(gateway, "chatty", 503, 90)
    print(f"the wedged model was found after {took:.0f} s")
    gateway.run("fastchat-api", "rm", "/tmp/wedged")
    wait_for_status(gateway, "chatty")


@pytest.fixture(scope="module")
def strict(
    fastchat_image: str, haproxy_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeEngineStack]:
    """A short timeout, no queue, and an engine key with characters that are special in HAProxy."""
    folder = tmp_path_factory.mktemp("strict")
    create_env(folder)
    text = (folder / ".env").read_text()
    (folder / ".env").write_text(re.sub("(?m)^STACKGEN_ENGINE_KEY=.*$", "STACKGEN_ENGINE_KEY=50%b-%[path]-%%", text))
    data = {
        "name": "sgtest-strict", "port": 18163,
        "gateway": {"image": haproxy_image, "timeout": 8, "max_queue": 0},
        "models": [{"model": "./a", "engine": "vllm", "served_names": ["alpha"], "max_num_seqs": 2},
                   {"model": "./c", "engine": "fastchat", "served_names": ["chatty"]}],
    }  # fmt: skip
    with FakeEngineStack(folder, data, fastchat_image) as running:
        yield running


def test_a_silent_engine_gets_504(strict: FakeEngineStack) -> None:
    answer = strict.chat("alpha", sleep=14)
    assert (answer.status, parse_error(answer)["code"]) == (504, "timeout")


def test_a_stream_outlives_the_timeout_and_a_reload(strict: FakeEngineStack) -> None:
    connection = strict.connect()
    body = json.dumps({"model": "alpha", "test": {"chunks": 150, "every": 0.1}})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {strict.key}"})
    response = connection.getresponse()
    assert response.readline().startswith(b"data:")
    strict.reload()
    rest = response.read()
    connection.close()
    assert 1 + rest.count(b"data:") == 150


def test_without_a_queue_requests_beyond_the_concurrency_get_429(strict: FakeEngineStack) -> None:
    before = len(strict.received("vllm-alpha"))
    with ThreadPoolExecutor(2) as pool:
        working = [pool.submit(strict.chat, "alpha", sleep=7) for _ in range(2)]
        end = time.monotonic() + 5
        while len(strict.received("vllm-alpha")) < before + 2 and time.monotonic() < end:
            time.sleep(0.05)
        refused = strict.chat("alpha")
        assert (refused.status, parse_error(refused)["code"]) == (429, "queue_full")
        assert [one.result().status for one in working] == [200, 200]
    assert strict.chat("alpha").status == 200


def test_special_characters_in_the_engine_key_are_kept(strict: FakeEngineStack) -> None:
    assert strict.chat("alpha").status == strict.chat("chatty").status == 200
    assert strict.engine_key == "50%b-%[path]-%%"
    for service in ("vllm-alpha", "fastchat-api"):
        assert strict.received(service)[-1]["headers"]["authorization"] == f"Bearer {strict.engine_key}"
