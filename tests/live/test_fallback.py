"""A model's fallback in the real HAProxy. The engines and the provider are fakes.

tests/live/test_front_updates.py has a real engine with a fallback.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.live.containers import docker, wait_until
from tests.live.fallback import MODEL, PROVIDER_KEY, Provider, create_certificates, start_provider, write_env
from tests.live.gateway import FakeEngineStack, find_log_line

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def trusting_image(haproxy_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The gateway's image with the test's authority as a trusted one, and the folder of certificates."""
    folder, tag = tmp_path_factory.mktemp("tls"), "sgtest-fallback-haproxy:ca"
    create_certificates(folder)
    (folder / "Dockerfile").write_text(
        f"FROM {haproxy_image}\nUSER root\nCOPY ca.crt /usr/local/share/ca-certificates/test.crt\n"
        "RUN update-ca-certificates\nUSER haproxy\n"
    )
    docker("build", "--quiet", "--tag", tag, str(folder))
    yield tag, folder
    subprocess.run(["docker", "rmi", tag], capture_output=True)


@pytest.fixture(scope="module")
def fallback_gateway(
    fastchat_image: str, trusting_image: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FakeEngineStack, Provider]]:
    """The rendered gateway with all engines down, and the fake provider."""
    image, certificates_at = trusting_image

    def model(name: str, **fallback: str) -> dict[str, Any]:
        return {"model": f"./{name}", "engine": "vllm", "served_names": [name, f"{name}-alias"],
                "lora_adapters": [{"name": f"{name}-lora", "path": "./lora"}],
                "fallback": {"model": MODEL, "api_key_env": "PROVIDER_KEY", **fallback}}  # fmt: skip

    data = {
        "name": "fb-fake", "port": 18940, "gateway": {"image": image, "allow": ["/tokenize"], "max_body": "4m"},
        "models": [
            model("plain", base_url="http://provider:9000/some%20path/v1/"),
            model("secure", base_url="https://cloud.test:9443/v1"),
            model("foreign", base_url="https://other.test:9443/v1"),
            model("unknown", base_url="https://cloud.test:9444/v1"),
            model("refused", base_url="http://provider:9000/v1", api_key_env="OTHER_KEY"),
            model("closed", base_url="http://provider:9/v1"),
            model("nowhere", base_url="http://no-such-host.invalid/v1"),
            {"model": "./none", "engine": "vllm", "served_names": ["none"]},
        ],
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("fallback")
    write_env(folder)
    with FakeEngineStack(folder, data, fastchat_image) as running:
        mounts = (f"{certificates_at}:/tls:ro",)
        cloud = start_provider("fb-fake", fastchat_image, "9443=/tls/known", "9444=/tls/unknown", mounts=mounts)
        assert running.chat("plain").replica == "vllm-plain"
        for engine in running.engines:
            assert not any("tgp_" in json.dumps(one["headers"]) for one in running.received(engine))
        running.compose("kill", *running.engines)
        try:
            wait_until(lambda: running.chat("plain").status == 200, 60, "the fallback did not answer within a minute")
            wait_until(lambda: running.chat("secure").status == 200, 60, running.chat("secure").text)
            yield running, cloud
        finally:
            cloud.remove()


def test_the_provider_gets_its_own_model_key_path_and_host(fallback_gateway: tuple[FakeEngineStack, Provider]) -> None:
    gateway, cloud = fallback_gateway
    body = {"messages": [{"role": "user", "content": '"model": "plain"'}], "x": {"model": "plain"}, "model": "plain"}
    answer = gateway.request("POST", "/v1/chat/completions", body, headers={"Cookie": "a=b", "X-Own": "1"})
    assert (answer.status, answer.json["model"]) == (200, MODEL)
    assert answer.headers["x-stackgen-served-by"] == f"fallback/provider:{MODEL}"
    assert not {"set-cookie", "alt-svc", "strict-transport-security"} & set(answer.headers)
    got = cloud.last()
    assert got["body"] == body | {"model": MODEL}
    assert got["path"] == "/some%20path/v1/chat/completions"
    assert got["headers"]["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert got["headers"]["host"] == "provider:9000"
    # nothing about the client is passed on: no address, cookie or id
    assert set(got["headers"]) <= {"accept-encoding", "authorization", "content-length", "content-type", "host"}
    texts = json.dumps(cloud.received())
    assert gateway.key not in texts and gateway.engine_key not in texts


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(max_size=8) | st.sampled_from(["messages", "Model", "models", "mode"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text() | st.just("model"),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=6) | st.just("model"), inner, max_size=3),
            max_leaves=12,
        ),
        max_size=5,
    ),
    st.integers(0, 5), st.booleans(), st.booleans(),
)  # fmt: skip
def test_only_the_model_changes_in_the_body_for_the_provider(
    fallback_gateway: tuple[FakeEngineStack, Provider], other: dict[str, Any], place: int, ascii_only: bool, loose: bool
) -> None:
    gateway, cloud = fallback_gateway
    for known in ("model", "stream", "fail"):
        other.pop(known, None)
    items = list(other.items())
    body = dict([*items[:place], ("model", "plain-alias"), *items[place:]])
    text = json.dumps(
        body, ensure_ascii=ascii_only, indent=1 if loose else None, separators=None if loose else (",", ":")
    )
    answer = gateway.request(
        "POST", "/v1/chat/completions", text.encode("utf-8", "surrogatepass" if ascii_only else "ignore")
    )
    if "�" in text:
        return
    assert answer.status == 200, answer.text
    got = cloud.last()
    assert got["model"] == MODEL
    if got["body"] is not None:
        assert json.dumps(got["body"]) == json.dumps(json.loads(json.dumps(body | {"model": MODEL})))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"model":"plain","mod\\u0065l":7}', "model_duplicate"),
        ('{"model":"plain","\\u006dodel":null}', "model_duplicate"),
        ('{"model":"plain","mod\\u0065l":"dearer/Model","model":"another"}', "model_duplicate"),
        (f'{{"model":"plain","a":"{"x" * 65_000}","model":"plain","b":"{"y" * 65_000}"}}', "model_duplicate"),
        ("{" + '"model":"plain",' * 20 + '"model":"plain"}', "model_duplicate"),
        ('{"model":"plain"}{"model":"plain"}', "model_missing"),
        ('{"model":"plain"', "model_missing"),
        ('{"model":"plain", "a" "b"}', "model_missing"),
    ],
)
def test_ambiguous_bodies_are_not_sent_to_the_provider(
    fallback_gateway: tuple[FakeEngineStack, Provider], text: str, code: str
) -> None:
    gateway, cloud = fallback_gateway
    before = len(cloud.received())
    answer = gateway.request("POST", "/v1/chat/completions", text.encode())
    assert (answer.status, answer.json["error"]["code"]) == (400, code)
    assert len(cloud.received()) == before
    assert (
        not answer.headers["x-stackgen-served-by"].startswith("fallback/")
        if "x-stackgen-served-by" in answer.headers
        else True
    )


@pytest.mark.parametrize("pattern", ["a", "\\n", "[],", '"",'])
def test_large_bodies_reach_the_provider_complete(
    fallback_gateway: tuple[FakeEngineStack, Provider], pattern: str
) -> None:
    gateway, cloud = fallback_gateway
    size = 4 * 2**20 - 100
    filling = pattern * (size // len(pattern))
    inner = f"[{filling}0]" if pattern[-1] == "," else f'"{filling}"'
    text = f'{{"filling":{inner},"model":"plain"}}'.encode()
    answer = gateway.request("POST", "/v1/chat/completions", text)
    assert answer.status == 200, answer.text[:300]
    got = cloud.last()
    assert (got["model"], got["bytes"]) == (MODEL, len(text) - len('"plain"') + len(json.dumps(MODEL)))
    # chunked, as clients do when they don't know the size
    connection = gateway.connect()
    parts = iter([text[at : at + 65536] for at in range(0, len(text), 65536)])
    connection.request(
        "POST", "/v1/chat/completions", parts, {"Authorization": f"Bearer {gateway.key}"}, encode_chunked=True
    )
    assert connection.getresponse().status == 200
    assert cloud.last()["bytes"] == got["bytes"]
    connection.close()


def test_the_model_of_a_large_body_is_replaced_across_buffer_boundaries(
    fallback_gateway: tuple[FakeEngineStack, Provider],
) -> None:
    """The process for large bodies works buffer by buffer, and a model name may span two of them."""
    gateway, cloud = fallback_gateway
    for before in (*range(64_000, 66_000, 13), *range(16_000, 16_500, 51), *range(129_000, 132_000, 101)):
        text = json.dumps({"a": "x" * before, "model": "plain-alias", "b": "y" * (200_000 - before), "model2": "plain"})
        answer = gateway.request("POST", "/v1/chat/completions", text.encode())
        assert answer.status == 200, (before, answer.text[:300])
        wanted = text.replace('"plain-alias"', json.dumps(MODEL)).encode()
        got = cloud.last()
        assert (got["bytes"], got["sha256"]) == (len(wanted), hashlib.sha256(wanted).hexdigest()), before


def test_the_provider_streams_token_by_token(fallback_gateway: tuple[FakeEngineStack, Provider]) -> None:
    gateway, _ = fallback_gateway
    connection = gateway.connect()
    connection.request("POST", "/v1/chat/completions", json.dumps({"model": "plain", "messages": [], "stream": True}),
                       {"Authorization": f"Bearer {gateway.key}"})  # fmt: skip
    response = connection.getresponse()
    assert response.headers["x-stackgen-served-by"] == f"fallback/provider:{MODEL}"
    times = []
    while line := response.readline():
        if line.startswith(b"data:"):
            times.append(time.monotonic())
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) == 5 and all(gap > 0.15 for gap in gaps[:3]), gaps
    connection.close()


def test_the_provider_over_tls_gets_its_host_name_as_sni(fallback_gateway: tuple[FakeEngineStack, Provider]) -> None:
    gateway, cloud = fallback_gateway
    answer = gateway.chat("secure")
    assert (answer.status, answer.headers["x-stackgen-served-by"]) == (200, f"fallback/cloud.test:{MODEL}")
    got = cloud.last()
    assert (got["sni"], got["headers"]["host"], got["path"]) == (
        "cloud.test",
        "cloud.test:9443",
        "/v1/chat/completions",
    )


@pytest.mark.parametrize("name", ["foreign", "unknown"])
def test_a_provider_with_a_wrong_certificate_gets_no_request(
    fallback_gateway: tuple[FakeEngineStack, Provider], name: str
) -> None:
    gateway, cloud = fallback_gateway
    before = len(cloud.received())
    answer = gateway.chat(name)
    assert (answer.status, answer.json["error"]["code"]) == (503, "unavailable")
    assert "cannot be reached" in answer.json["error"]["message"]
    assert len(cloud.received()) == before


def test_errors_of_the_provider_are_passed_on(fallback_gateway: tuple[FakeEngineStack, Provider]) -> None:
    gateway, _ = fallback_gateway
    for status in (400, 404, 429, 500, 503):
        answer = gateway.request("POST", "/v1/chat/completions", {"model": "plain", "fail": status})
        assert (answer.status, answer.json["error"]["message"]) == (status, "failed on request")
        assert answer.headers["x-stackgen-served-by"].startswith("fallback/")
    assert gateway.chat("refused").status == 401
    assert gateway.chat("closed").status == 503
    # a host name that does not resolve means no fallback: the model is unavailable, and not listed
    assert gateway.chat("nowhere").json["error"]["code"] == "model_unavailable"


def test_only_requests_that_the_provider_can_serve_are_sent_to_it(
    fallback_gateway: tuple[FakeEngineStack, Provider],
) -> None:
    gateway, cloud = fallback_gateway
    before = len(cloud.received())
    assert gateway.chat("none").status == 503
    # an adapter is another model, and /tokenize exists only in vLLM
    assert gateway.chat("plain-lora").status == 503
    assert gateway.request("POST", "/tokenize", {"model": "plain", "prompt": "x"}).status == 503
    assert gateway.chat("plain", key="wrong").status == 401
    assert gateway.chat("plain", key=None).status == 401
    assert len(cloud.received()) == before
    listed = {model["id"] for model in gateway.request("GET", "/v1/models").json["data"]}
    assert {"plain", "plain-alias", "secure"} <= listed
    assert not {"none", "plain-lora", "nowhere"} & listed
    assert gateway.request("GET", "/health", key=None).status == 200


def test_the_log_names_the_server_that_answered(fallback_gateway: tuple[FakeEngineStack, Provider]) -> None:
    gateway, _ = fallback_gateway
    answer = gateway.chat("plain")
    assert answer.status == 200
    last = find_log_line(gateway, answer)
    text = gateway.logs()
    assert (last["upstream"], last["server"]) == ("fallback-vllm-plain", "provider")
    assert PROVIDER_KEY not in text and "tgp_" not in text
