"""Base URLs, keys, and what counts as loopback."""

from __future__ import annotations

import pytest

from stackgen.check.dialects import TOGETHER, dialect_from_models
from stackgen.check.target import Target, normalize_url
from stackgen.errors import StackgenError
from stackgen.plan import Endpoint

from .conftest import VLLM
from .fake import model_list


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        (" http://127.0.0.1:8000/v1// \n", "http://127.0.0.1:8000/v1"),
        ("https://api.together.ai/v1", "https://api.together.ai/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
        ("http://[fe80::1%25eth0]:8000", "http://[fe80::1%eth0]:8000/v1"),
        ("http://[fe80::1%eth0]:8000/a%25b", "http://[fe80::1%eth0]:8000/a%25b"),
        ("https://gateway.example/llm/v1/", "https://gateway.example/llm/v1"),
        # any other path is kept as it is, like the OpenAI SDK does
        ("https://gateway.example/openai", "https://gateway.example/openai"),
    ],
)
def test_a_base_url_is_normalized(given: str, normal: str) -> None:
    assert normalize_url(given) == normal
    assert normalize_url(normal) == normal


@pytest.mark.parametrize(
    ("given", "says", "hints"),
    [
        ("127.0.0.1:8000", "has no http:// or https://", "http://127.0.0.1:8000"),
        ("localhost:8000/v1", "has no http:// or https://", "http://localhost:8000/v1"),
        ("//gpu1:8000", "has no http:// or https://", "http://gpu1:8000"),
        ("ftp://gpu1/v1", "has no http:// or https://", "http://gpu1/v1"),
        ("", "has no http:// or https://", "http://127.0.0.1:8000"),
        ("http://", "has no usable host", "http://127.0.0.1:8000/v1"),
        ("http://a b/v1", "has no usable host", "http://127.0.0.1:8000/v1"),
        ("http://h:0/v1", "has no usable host", "http://127.0.0.1:8000/v1"),
        ("http://h:99999/v1", "is not a valid URL", "http://127.0.0.1:8000/v1"),
        ("http://[::1/v1", "is not a valid URL", "http://127.0.0.1:8000/v1"),
        ("https://me:hunter2@gpu1/v1", "credentials", "--api-key"),
        ("https://hunter2@gpu1/v1", "credentials", "--api-key"),
        ("https://gpu1/v1?key=hunter2", "credentials", "--api-key"),
        ("https://gpu1/v1#hunter2", "credentials", "--api-key"),
    ],
)
def test_a_wrong_base_url_is_an_input_error_with_a_hint(given: str, says: str, hints: str) -> None:
    with pytest.raises(StackgenError) as caught:
        Target.from_url(given, None)
    assert caught.value.exit_code == 2
    assert says in caught.value.message
    assert hints in caught.value.hint
    assert "hunter2" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("LOCALHOST", True), ("api.localhost", True),
        ("[::1]", True), ("[::ffff:127.0.0.1]", True), ("localhost.", True),
        ("0.0.0.0", False), ("192.168.1.4", False), ("example.com", False), ("127.0.0.1.example.com", False),
        ("notlocalhost", False), ("[2001:db8::1]", False),
    ],
)  # fmt: skip
def test_loopback_is_detected_from_the_host(host: str, loopback: bool) -> None:
    target = Target.from_url(f"http://{host}:8000", None)
    assert target.loopback is loopback
    assert target.exposed is not loopback


def test_an_endpoint_bound_to_all_addresses_can_be_marked_as_exposed() -> None:
    endpoint = Endpoint("api", "api", "http://127.0.0.1:8000/v1", ("tiny",), VLLM)
    assert not Target.from_endpoint(endpoint, "key-1").exposed
    target = Target.from_endpoint(endpoint, "key-1", exposed=True)
    assert target.exposed
    assert (target.name, target.models, target.dialect, target.root) == (
        "api",
        ("tiny",),
        VLLM,
        "http://127.0.0.1:8000",
    )


def test_the_repr_hides_the_key() -> None:
    target = Target.from_url("http://h:1", "sk-planted-1")
    assert target.api_key == "sk-planted-1"
    assert "planted" not in repr(target) + str(target)


@pytest.mark.parametrize("key", ["sk-plan ted", "sk-plan\nted", "sk-plänted", "sk-plan\x00ted"])
def test_an_invalid_key_is_rejected_without_being_shown(key: str) -> None:
    with pytest.raises(StackgenError, match="API key") as caught:
        Target.from_url("http://h:1", key)
    assert key[:7] not in repr(caught.value) + caught.value.hint


@pytest.mark.parametrize(("key", "kept"), [(" sk-1\n", "sk-1"), ("", None), (" \n", None), (None, None)])
def test_white_space_around_a_key_is_removed(key: str | None, kept: str | None) -> None:
    assert Target.from_url("http://h:1", key).api_key == kept


@pytest.mark.parametrize(("url", "port"), [("https://h", 443), ("http://h", 80), ("http://h:8080", 8080)])
def test_the_port_defaults_to_that_of_the_scheme(url: str, port: int) -> None:
    assert Target.from_url(url, None).port == port


def test_an_unknown_dialect_error_lists_the_known_ones() -> None:
    with pytest.raises(StackgenError) as caught:
        Target.from_url("http://h", None, dialect_name="vlm", dialects={"vllm": VLLM})
    assert caught.value.hint == "known dialects: openai, together, vllm"
    assert Target.from_url("http://h", None, dialect_name="together").dialect is TOGETHER


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (model_list("a", owner="vllm"), "vllm"),
        (model_list("a", owner="fastchat"), "fastchat"),
        (model_list("a", owner="llamacpp"), "llamacpp"),
        (model_list("a", owner="openai"), None),
        ([{"id": "a"}], "together"),
        ({"object": "list", "data": []}, None),
        # a gateway in front of two engines
        ({"data": [*model_list("a")["data"], *model_list("b", owner="fastchat")["data"]]}, None),
        ({"data": [1, None, {"owned_by": ["vllm"]}]}, None),
        ({"data": 3}, None),
        ("vllm", None),
        (None, None),
    ],
)
def test_the_dialect_is_detected_from_the_model_list(body: object, name: str | None) -> None:
    assert dialect_from_models(body) == name
