"""The rendered gateway in the real HAProxy: paths of each API and engine, forms, lists of models, formats of errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stackgen import engines
from tests.live.gateway import Answer, FakeEngineStack, both_sizes, find_log_line

pytestmark = pytest.mark.docker

MODELS = {"vllm": "alpha", "llamacpp": "lama", "fastchat": "chatty"}
TEXT_PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/responses/input_tokens",
    "/v1/messages", "/v1/messages/count_tokens", "/v1/rerank", "/v1/score",
)  # fmt: skip
AUDIO_PATHS = ("/v1/audio/transcriptions", "/v1/audio/translations")
# the type of Anthropic's error for each status (Anthropic's API reference, "Errors")
ANTHROPIC = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 405: "invalid_request_error",
    413: "request_too_large", 429: "rate_limit_error", 502: "api_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(
    fastchat_image: str, haproxy_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeEngineStack]:
    data = {
        "name": "sgtest-gateway-apis", "port": 18169,
        "gateway": {"image": haproxy_image, "max_body": "1m", "timeout": 2, "max_queue": 0,
                    "keys": [{"name": "slow", "requests_per_minute": 2}, {"name": "single", "concurrent_requests": 2}]},
        "models": [
            {"model": "./a", "engine": "vllm", "served_names": ["alpha"]},
            {"model": "./b", "engine": "llamacpp", "file": "b.gguf", "served_names": ["lama"]},
            {"model": "./c", "engine": "fastchat", "served_names": ["chatty"]},
            {"model": "./d", "engine": "vllm", "served_names": ["busy"], "max_num_seqs": 1},
        ],
    }  # fmt: skip
    with FakeEngineStack(tmp_path_factory.mktemp("apis"), data, fastchat_image) as running:
        keys = {name: f"key-of-{name}" for name in ("slow", "single")}
        running.write_keys(default=running.key, **keys)
        yield running


def form(*fields: tuple[str, str | bytes], boundary: str = "b0undary", ending: str = "--") -> bytes:
    """A multipart body. A field whose value is bytes is a file."""
    body = b""
    for name, value in fields:
        more = '; filename="a; name=\\"model\\".wav"\r\nContent-Type: audio/wav' if isinstance(value, bytes) else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
        body += head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return body + f"--{boundary}{ending}\r\n".encode()


def send_form(gateway: FakeEngineStack, body: bytes, key: str = "", kind: str = "", path: str = "") -> Answer:
    kind = kind or "multipart/form-data; boundary=b0undary"
    return gateway.request("POST", path or AUDIO_PATHS[0], body, key, {"Content-Type": kind})


@pytest.mark.parametrize("query", ["", "?beta=true"])
@pytest.mark.parametrize("engine", MODELS)
@pytest.mark.parametrize("path", [*TEXT_PATHS, *AUDIO_PATHS])
def test_a_path_reaches_exactly_the_engines_that_have_it(
    gateway: FakeEngineStack, path: str, engine: str, query: str
) -> None:
    model = MODELS[engine]
    if path in AUDIO_PATHS:
        answer = send_form(gateway, form(("file", b"RIFF"), ("model", model)), path=path + query)
    else:
        answer = gateway.request("POST", path + query, {"model": model})
    if path in engines.get(engine).dialect.api_paths:
        assert (answer.status, answer.json["model"]) == (200, model)
        assert gateway.received(answer.replica)[-1]["path"] == path + query
    else:
        assert (answer.status, answer.json["error"]["code"]) == (404, "path_not_served")
        assert all(part in answer.json["error"]["message"] for part in (model, engine, path))


AUDIO = bytes(range(256)) * 1200
LONG = 'multipart/form-data; charset=utf-8; BOUNDARY="b\'o=u n/d:a?r.y"'


@pytest.mark.parametrize("size", [100, 300_000])
@pytest.mark.parametrize("is_first", [True, False])
def test_the_model_of_a_form_is_found_before_and_after_the_file(
    gateway: FakeEngineStack, size: int, is_first: bool
) -> None:
    fields: list[tuple[str, str | bytes]] = [("file", AUDIO[:size]), ("language", "en"), ("model", "alpha")]
    body = form(*(fields[::-1] if is_first else fields))
    answer = send_form(gateway, body)
    assert (answer.status, answer.json["model"], answer.json["bytes"]) == (200, "alpha", len(body))
    assert gateway.received("vllm-alpha")[-1]["headers"]["content-type"].startswith("multipart/form-data")
    line = find_log_line(gateway, answer)
    assert (line["model"], line["key"], line["path"]) == ("alpha", "default", AUDIO_PATHS[0])


def test_boundaries_with_special_characters_and_preambles_are_understood(gateway: FakeEngineStack) -> None:
    body = b"a preamble\r\n" + form(("file", b"x" * 20), ("model", "alpha"), boundary="b'o=u n/d:a?r.y")
    assert send_form(gateway, body, kind=LONG).status == 200


@both_sizes
@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ([("file", b"x")], 400, "model_missing"),
        ([("model", "alpha"), ("file", b"x"), ("model", "lama")], 400, "model_duplicate"),
        ([("model", b"alpha"), ("file", b"x")], 404, "model_not_found"),
        ([("model", "nobody"), ("file", b"x")], 404, "model_not_found"),
        ([("file", b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nalpha\r\n')], 400, "model_missing"),
    ],
)
def test_a_form_without_one_known_model_is_refused(
    gateway: FakeEngineStack, fields: list[tuple[str, str | bytes]], status: int, code: str, pad: int
) -> None:
    answer = send_form(gateway, form(("file", b"x" * pad), *fields))
    assert (answer.status, answer.json["error"]["code"]) == (status, code), answer.text
    if code == "model_missing":
        assert "multipart/form-data" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (form(("model", "alpha"), ending=""), ""),
        (form(("model", "alpha"))[:-20], ""),
        (b"", ""),
        (form(("model", "alpha")), "multipart/form-data"),
        (form(("model", "alpha")), "multipart/form-data; boundary=other"),
        (b'{"model": "alpha"}', "application/json"),
        (form(*[("x", "")] * 1100, ("model", "alpha")), ""),
    ],
)
def test_a_damaged_form_is_a_client_error(gateway: FakeEngineStack, body: bytes, kind: str) -> None:
    answer = send_form(gateway, body, kind=kind)
    assert (answer.status, answer.json["error"]["code"]) == (400, "model_missing")


def test_a_key_has_the_same_limits_for_forms(gateway: FakeEngineStack) -> None:
    answers = [send_form(gateway, form(("file", b"x"), ("model", "alpha")), "key-of-slow") for _ in range(3)]
    assert [one.status for one in answers] == [200, 200, 429]
    assert {find_log_line(gateway, one)["key"] for one in answers} == {"slow"}


def test_the_list_of_models_has_what_the_engines_report(gateway: FakeEngineStack) -> None:
    """vLLM reports `max_model_len`, llama.cpp `meta.n_ctx`; FastChat is not asked."""
    for path, headers in (("/v1/models", {}), ("/v1/models", {"anthropic-version": "2023-06-01"})):
        answer = gateway.request("GET", path, headers=headers)
        found = {one["id"]: one for one in answer.json["data"]}
        assert set(found) == {"alpha", "lama", "chatty", "busy"}
        assert (found["alpha"]["max_model_len"], found["lama"]["meta"]) == (4096, {"n_ctx": 2048, "n_ctx_train": 8192})
        assert not {"max_model_len", "meta"} & set(found["chatty"])
        for name, entry in found.items():
            assert gateway.request("GET", f"/v1/models/{name}", headers=headers).json == entry
        if headers:
            assert (answer.json["has_more"], answer.json["first_id"]) == (False, answer.json["data"][0]["id"])
            assert {one["type"] for one in found.values()} == {"model"}
            assert found["alpha"]["created_at"] == "2026-11-28T00:00:00Z"
        else:
            assert answer.json["object"] == "list" and found["alpha"]["created"] == 1795824000
            assert abs(found["chatty"]["created"] - time.time()) < 600
    models = gateway.request("POST", "/v1/chat/completions", {"model": "nobody"}).json["error"]["models"]
    assert {one["id"]: one["created"] for one in models}["alpha"] == 1795824000


def check_format(answer: Answer, is_anthropic: bool) -> None:
    """Compares the body with the format that the clients of the API expect."""
    body, error = answer.json, answer.json["error"]
    assert {type(error["message"]), type(error["code"])} == {str}
    if is_anthropic:
        assert (body["type"], error["type"]) == ("error", ANTHROPIC[answer.status]), answer
    else:
        # only the error for a missing path has one body for both APIs
        assert set(body) - {"error"} == ({"type"} if error["code"] == "path_not_served" else set())
        assert set(error) >= {"message", "type", "param", "code"}, answer


def test_errors_have_the_format_of_the_api_that_was_called(gateway: FakeEngineStack) -> None:
    paths = ("/v1/messages", "/v1/chat/completions")
    seen: set[tuple[str, int]] = set()

    def expect(status: int, path: str, answer: Answer) -> None:
        assert answer.status == status, answer
        check_format(answer, is_anthropic=path == "/v1/messages")
        seen.add((path, status))

    def post(path: str, key: str | None = "", **fields: Any) -> Answer:
        return gateway.request("POST", path, fields, key)

    for path in paths:
        expect(400, path, post(path, other=1))
        expect(400, path, gateway.request("POST", path, b'{"model": "alpha", "model": "alpha"}' + b" " * 100_000))
        expect(401, path, post(path, None, model="alpha"))
        expect(404, path, post(path, model="nobody"))
        expect(404, path, post(path, model="nobody", pad="x" * 100_000))
        expect(404, path, gateway.request("POST", f"{path}/none", {}))
        expect(405, path, gateway.request("GET", path))
        expect(413, path, post(path, model="alpha", pad="x" * 1_100_000))
        for pad in ("", "x" * 100_000):
            expect(502, path, post(path, model="alpha", pad=pad, test={"hang_up": True}))
    with ThreadPoolExecutor(2) as pool:
        silent = {path: pool.submit(post, path, "key-of-single", model=model, test={"sleep": 2.5})
                  for path, model in zip(paths, ("busy", "alpha"), strict=True)}  # fmt: skip
        time.sleep(0.5)
        for path in paths:
            expect(429, path, post(path, "key-of-single", model="alpha"))
            expect(429, path, post(path, model="busy"))
            command = (
                "exec 3<>/dev/tcp/127.0.0.1/8406; echo set server llamacpp-lama/llamacpp-lama state {} >&3; cat <&3"
            )
            gateway.run("gateway", "bash", "-c", command.format("maint"))
            expect(503, path, post(path, model="lama"))
            gateway.run("gateway", "bash", "-c", command.format("ready"))
        for path in paths:
            expect(504, path, silent[path].result())
    assert seen == {(path, status) for path in paths for status in ANTHROPIC}


def test_an_engines_own_404_becomes_an_error_that_names_the_model(gateway: FakeEngineStack) -> None:
    for path in ("/v1/messages", "/v1/embeddings"):
        answer = gateway.request(
            "POST", path, {"model": "alpha", "test": {"status": 404, "raw": '{"detail":"Not Found"}'}}
        )
        assert answer.status == 404
        check_format(answer, is_anthropic=path == "/v1/messages")
        assert all(part in answer.json["error"]["message"] for part in ("alpha", "vllm", path))
    # the engine's own errors pass
    raw = '{"error":{"message":"x","code":404}}'
    assert gateway.request("POST", "/v1/messages", {"model": "alpha", "test": {"status": 404, "raw": raw}}).text == raw
