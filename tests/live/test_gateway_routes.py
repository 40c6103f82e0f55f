"""The rendered gateway in the real HAProxy routes requests by model, whatever is in names and bodies.

The engines are fakes that record the requests they receive; so are those of the other test_gateway_* modules.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackgen.resolve.addons import webui
from tests.live.bodies import TWO_MODELS, json_objects
from tests.live.gateway import (
    HOSTILE,
    FakeEngineStack,
    both_sizes,
    find_log_line,
    gateway_data,
    parse_error,
)  # fmt: skip
from tests.resolve.addons.test_gateway import names

pytestmark = pytest.mark.docker

# printable ASCII without a space: what a header value may contain
header_values = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def gateway(
    fastchat_image: str, haproxy_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeEngineStack]:
    data = gateway_data("sgtest-gateway", 18161, haproxy_image)
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


@pytest.mark.parametrize("pad", ["", " " * 100_000], ids=["small", "large"])
@pytest.mark.parametrize("body", TWO_MODELS)
def test_a_body_with_two_models_is_refused(gateway: FakeEngineStack, body: str, pad: str) -> None:
    json.loads(body)
    answer = gateway.request("POST", "/v1/chat/completions", (body + pad).encode())
    assert (answer.status, parse_error(answer)["code"]) == (400, "model_duplicate")


def test_gateway_and_engine_read_the_same_model(gateway: FakeEngineStack) -> None:
    """Engines use Python's json. The gateway routes by the model that they read, or it refuses the request."""
    owners = {name: one.replicas for one in gateway.plan.endpoints for name in one.models}

    @given(json_objects(), st.booleans())
    @settings(deadline=None, max_examples=200, database=None)
    def read_the_same(body: str, large: bool) -> None:
        answer = gateway.request("POST", "/v1/chat/completions", (body + " " * 100_000 * large).encode())
        models = [value for key, value in json.loads(body, object_pairs_hook=list) if key == "model"]
        if len(models) == 1 and isinstance(models[0], str) and models[0] in owners:
            assert answer.status == 200 and answer.json["model"] == models[0] and answer.replica in owners[models[0]]
        else:
            assert answer.status in (400, 404), (body, answer)

    read_the_same()


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


def test_a_model_can_be_requested_by_name(gateway: FakeEngineStack) -> None:
    assert gateway.request("GET", "/v1/models/alpha").json["id"] == "alpha"
    assert gateway.request("GET", "/v1/models/org%2FModel-1.5:latest").json["id"] == "org/Model-1.5:latest"
    assert gateway.request("GET", "/v1/models/org/Model-1.5:latest").json["id"] == "org/Model-1.5:latest"
    assert parse_error(gateway.request("GET", "/v1/models/none"))["code"] == "model_not_found"


def test_the_gateway_answers_the_recorded_requests_of_the_chat_page(gateway: FakeEngineStack) -> None:
    (recording,) = (Path(__file__).parent / "recordings").glob("open-webui-*.json")
    recorded = json.loads(recording.read_text())["requests"]
    assert recording.stem.removeprefix("open-webui-") in webui.IMAGE
    seen = set()
    for one in recorded:
        headers = {name: value for name, value in one["headers"].items() if name != "authorization"}
        # the connection of the test doesn't decompress
        answer = gateway.request(one["method"], one["path"], one["body"], headers=headers | {"accept-encoding": ""})
        assert answer.status == 200, (one, answer.text)
        # the page needs a list of models with ids, streams, and whole answers
        if one["body"] is None:
            assert "alpha" in [model["id"] for model in answer.json["data"]]
        else:
            assert answer.json["model"] == "alpha" and answer.replica in ("vllm-alpha", "vllm-alpha-2")
        seen.add((one["path"], bool(one["body"] and one["body"]["stream"])))
        refused = gateway.request(one["method"], one["path"], one["body"], None, headers)
        assert refused.status == 401
    assert seen == {("/v1/models", False), ("/v1/chat/completions", True), ("/v1/chat/completions", False)}
