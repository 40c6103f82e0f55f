"""What the rendered gateway allows to clients: paths by engine, origins of web pages, order of the limits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from stackgen import engines
from stackgen.errors import SpecError
from tests.resolve.addons.test_gateway import FC, check, files, plan

LLAMACPP = {"engine": "llamacpp", "file": "x.gguf"}


def config(*models: dict[str, Any], **gateway: Any) -> str:
    return files(plan(*models, gateway=gateway or True))["gateway/haproxy.cfg"]


def read_body(text: str, anthropic: bool) -> str:
    """The body that HAProxy makes of a log format, for a request for Anthropic's API or for OpenAI's."""
    text = text.replace("%[var(txn.shape)]", '"type":"error",' if anthropic else "")
    text = re.sub(r"%\[var\(txn.anthropic\),iif\((\w+),(\w+)\)\]", r"\1" if anthropic else r"\2", text)
    text = text.replace("%[var(txn.entries)]", "").replace("%[var(txn.grants)]", "")
    return text.replace("%%", "%")


def allowed_paths(text: str) -> set[str]:
    found = {tuple(line.split()[3:]) for line in text.splitlines() if line.startswith("    acl posted path ")}
    assert len(found) == 1, "both processes must allow the same paths"
    return set(found.pop())


@pytest.mark.parametrize("models", [({},), (FC,), (LLAMACPP,), ({}, FC, LLAMACPP)])
def test_a_model_has_the_paths_of_its_engine_and_other_paths_name_the_engine(models: Any) -> None:
    text = config(*models)
    known = {path for name in engines.names() for path in engines.get(name).dialect.api_paths}
    assert allowed_paths(text) == known >= {"/v1/messages", "/v1/messages/count_tokens", "/v1/responses"}
    made = plan(*models, gateway=True)
    for endpoint in made.endpoints:
        rule = rf"return status 404 [^\n]*lf-string '([^']*)' if {{ var\(txn\.backend\) -m str {endpoint.name} }}"
        served = set(engines.get(endpoint.dialect.name).dialect.api_paths)
        found = re.findall(rule + r" { path ([^}]*) }", text)
        assert {path for _, paths in found for path in paths.split()} == known - served
        for body, _ in found:
            error = json.loads(body)
            # Anthropic's clients read `type`, OpenAI's clients read `error`
            assert error["type"] == "error" and error["error"]["code"] == "path_not_served"
            assert endpoint.dialect.name in error["error"]["message"]
            assert all(path in error["error"]["message"] for path in served)


def test_a_path_in_allow_is_passed_on_for_every_engine() -> None:
    text = config({}, FC, allow=["/v1/messages", "/tokenize"])
    assert {"/v1/messages", "/tokenize"} <= allowed_paths(text)
    (refused,) = {line.rpartition(" { path ")[2] for line in text.splitlines() if "path_not_served" in line and
                  "fastchat" in line and " { path " in line}  # fmt: skip
    assert "/v1/messages/count_tokens" in refused and "/v1/messages" not in refused.split()


@pytest.mark.parametrize(
    ("written", "compared"),
    [
        ("https://app.example.com", "https://app.example.com"),
        ("https://App.Example.com:443", "https://app.example.com"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "'http://[::1]:3000'"),
    ],
)
def test_origins_are_compared_as_browsers_send_them(written: str, compared: str) -> None:
    assert f"req.fhdr(origin) -m str https://first.example {compared} }}" in config(
        {}, cors=["https://first.example", written]
    )


def test_without_cors_no_origin_is_allowed_and_engines_cannot_allow_one() -> None:
    text = config({})
    assert "access-control-allow-origin" not in text and "http-response del-header access-control- -m beg" in text
    assert "req.fhdr(origin) -m found" in config({}, cors=["*"])


@pytest.mark.parametrize(
    "origin", ["app.example.com", "https://x/", "https://x/y", "ftp://x", "https://", "https://*.example.com", "null"]
)
def test_what_is_not_an_origin_is_rejected_with_an_example(origin: str) -> None:
    with pytest.raises(SpecError, match=r"gateway.cors\[0\]: must be an origin: .*https://app.example.com"):
        plan({}, gateway={"cors": [origin]})


def test_requests_refused_by_other_limits_do_not_count_for_the_rate_limit() -> None:
    text = config({}, keys=[{"name": "a", "requests_per_minute": 3, "concurrent_requests": 2}])
    order = [text.index(one) for one in ("invalid_api_key", "concurrency_limit_exceeded", "lua.limit-rate 60 ")]
    assert order == sorted(order) and "http_req_rate" not in text


@pytest.mark.docker
@pytest.mark.parametrize("cors", [["https://a.example", "http://[::1]:3000"], ["*"]])
def test_haproxy_accepts_origins_and_engines_of_every_kind(cors: list[str], tmp_path: Path, haproxy_image: str) -> None:
    assert check(files(plan({}, FC, LLAMACPP, gateway={"cors": cors})), tmp_path, haproxy_image) == ""
