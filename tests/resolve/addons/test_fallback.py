"""Fallbacks in the plan and in the rendered configuration. tests/live runs them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackgen.errors import SpecError
from stackgen.plan import EnvRef, Plan
from stackgen.plan.clouds import CLOUDS
from stackgen.providers.catalog import providers
from stackgen.render.templating import render
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from stackgen.targets.process import ProcessSite

LLAMA = "meta-llama/Llama-3.3-70B-Instruct-Turbo"


def plan(*models: dict[str, Any], **fields: Any) -> Plan:
    entries = [
        {"model": f"org/m{index}", "engine": "vllm", "revision": "main"} | one for index, one in enumerate(models)
    ]
    return resolve(
        build_spec({"name": "demo", "gateway": True, "models": entries} | fields, "test"), ComposeSite(), "test"
    )


def files(made: Plan) -> dict[str, str]:
    return {file.path: file.text for file in render(made)}


def backend(made: Plan, name: str) -> str:
    return files(made)["gateway/haproxy.cfg"].split(f"\nbackend {name}\n")[1].split("\nbackend ")[0]


def mistakes(fallback: Any, **fields: Any) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        plan({"fallback": fallback}, **fields)
    return [(one.path, one.message) for one in caught.value.mistakes]


def test_no_fallback_renders_nothing_for_it() -> None:
    rendered = files(plan({}, {}))
    assert not any("fallback" in path for path in rendered)
    assert "fallback" not in rendered["gateway/haproxy.cfg"] and "fallbacks.map" not in rendered
    assert not any("leave this machine" in text for text in plan({}).warnings)


OVERFLOW = {"provider": "together", "model": LLAMA, "overflow": True}


def test_only_with_overflow_requests_leave_while_the_queue_is_full() -> None:
    made = plan({"fallback": f"together:{LLAMA}"}, {"fallback": OVERFLOW}, gateway={"max_queue": 7})
    text = files(made)["gateway/haproxy.cfg"]
    # for small and for large bodies
    (rule,) = {line.strip() for line in text.splitlines() if "set-var(txn.overflow)" in line}
    assert "{ var(txn.backend) -m str vllm-m1 } { queue(vllm-m1) ge 7 } { be_conn_free(vllm-m1) le 0 }" in rule
    assert "overflow/together:" in backend(made, "fallback-vllm-m1")
    assert "overflow" not in backend(made, "fallback-vllm-m0")
    first, second = (text for text in made.warnings if "leave this machine" in text)
    assert "the queue is full" not in first
    assert "if no replica is up, or all are busy and the queue is full, the requests for org/m1" in second


def test_the_warning_about_overflow_contains_its_numbers() -> None:
    def text(model: dict[str, Any], **gateway: Any) -> str:
        made = plan({"fallback": OVERFLOW} | model, gateway={"enabled": True} | gateway)
        return next(one for one in made.warnings if "leave this machine" in one)

    default = text({"replicas": 2})
    assert "busy with 512 requests, and the queue is full with 256 more. A request that waits 60 s in the " in default
    assert "gets a 503" in default and default.endswith("lower `gateway.max_queue` and `max_num_seqs`")
    chosen = text({"max_num_seqs": 64}, max_queue=8, queue_timeout=20)
    assert "busy with 64 requests, and the queue is full with 8 more. A request that waits 20 s" in chosen
    assert "To use the fallback earlier" not in chosen
    assert text({"max_num_seqs": 64}, max_queue=0).endswith("All replicas are busy with 64 requests")
    assert text({"engine": "fastchat"}).endswith("To use the fallback earlier, lower `gateway.max_queue`")


def test_overflow_also_looks_at_the_queue_in_front_of_a_router() -> None:
    made = plan({"fallback": OVERFLOW, "replicas": 2, "cache_aware": True})
    rules = [line for line in files(made)["gateway/haproxy.cfg"].splitlines() if "set-var(txn.overflow)" in line]
    assert {rule.split("be_conn_free(")[1].split(")")[0] for rule in rules} == {"vllm-m0", "router-m0"}


def test_short_form_sets_url_key_and_certificate_name() -> None:
    made = plan({"fallback": f"together:{LLAMA}"}, {})
    text = backend(made, "fallback-vllm-m0")
    assert "server together api.together.ai:443 " in text
    assert "ssl verify required ca-file @system-ca sni 'str(api.together.ai)'" in text
    assert "set-header host api.together.ai" in text and "set-path '/v1%[path,bytes(3)]'" in text
    assert "'Bearer %[env(TOGETHER_API_KEY)]'" in text
    assert f"x-stackgen-served-by fallback/together:{LLAMA}" in text
    rendered = files(made)
    assert rendered["gateway/fallbacks.map"].splitlines()[1:] == [f"{b'org/m0'.hex().upper()} fallback-vllm-m0"]
    assert rendered["gateway/fallback.lua"] == Path("templates/gateway/fallback.lua").read_text()


def test_only_the_gateway_gets_the_provider_key_from_env() -> None:
    made = plan({"fallback": f"together:{LLAMA}"}, {"fallback": f"together:{LLAMA}"}, {"engine": "fastchat"})
    for service in made.services:
        refs = [value for name, value in service.environment if name == "TOGETHER_API_KEY"]
        if service.name != "gateway":
            assert refs == []
        else:
            (ref,) = refs
            assert isinstance(ref, EnvRef) and "together" in ref.required and ref.default == ""


@pytest.mark.compose
@pytest.mark.parametrize("name", ["TOGETHER_API_KEY", "TOGETHERAI_API_KEY"])
def test_together_key_is_read_from_either_variable(tmp_path: Path, name: str) -> None:
    made = plan({"fallback": f"together:{LLAMA}", "model": "./m"})
    for path, text in files(made).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / ".env").write_text(f"STACKGEN_API_KEY=a\nSTACKGEN_ENGINE_KEY=b\n{name}=the-key\n")
    command = ["docker", "compose", "--project-directory", str(tmp_path), "config", "--format", "json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    environment = json.loads(done.stdout)["services"]["gateway"]["environment"]
    assert environment["TOGETHER_API_KEY"] == "the-key"
    # without either, the gateway reports it and does not start
    script = tmp_path / "scripts" / "gateway_start.sh"
    known = {"PATH": os.environ["PATH"], "STACKGEN_API_KEY": "a", "STACKGEN_REQUIRED": environment["STACKGEN_REQUIRED"]}
    refused = subprocess.run(["sh", script], env=known | {"TOGETHER_API_KEY": ""}, capture_output=True, text=True)
    assert refused.returncode == 1 and "TOGETHER_API_KEY is missing in .env" in refused.stderr


def test_compose_requires_the_key_of_a_provider_with_one_variable() -> None:
    made = plan({"fallback": {"base_url": "http://10.0.0.5/v1", "model": "m", "api_key_env": "MINE"}})
    assert "${MINE:?" in files(made)["compose.yaml"] and "STACKGEN_REQUIRED" not in files(made)["compose.yaml"]


def test_a_warning_says_that_prompts_leave_the_machine() -> None:
    (text,) = [text for text in plan({"fallback": f"together:{LLAMA}"}).warnings if "fallback" in text]
    assert "leave this machine" in text and "api.together.ai" in text and LLAMA in text and "unencrypted" not in text
    plain = {"base_url": "http://10.0.0.5:8000/v1", "model": "m", "api_key_env": "KEY"}
    assert any("unencrypted" in text for text in plan({"fallback": plain}).warnings)


def test_fallback_needs_all_replicas_down_and_excludes_adapters() -> None:
    lora = {"lora_adapters": [{"name": "sql", "path": "org/lora"}], "replicas": 2, "served_names": ["a", "b"]}
    rendered = files(plan(lora | {"fallback": f"together:{LLAMA}"}))
    owners = dict(line.split() for line in rendered["gateway/fallbacks.map"].splitlines()[1:])
    assert owners == {"61": "fallback-vllm-a", "62": "fallback-vllm-a"}
    assert "{ nbsrv(vllm-a) eq 0 } { nbsrv(fallback-vllm-a) gt 0 }" in rendered["gateway/haproxy.cfg"]


def test_each_fastchat_model_has_its_own_fallback() -> None:
    made = plan({"engine": "fastchat", "served_names": ["x"]},
                {"engine": "fastchat", "served_names": ["y"], "fallback": f"openai:{LLAMA}"})  # fmt: skip
    assert "server openai api.openai.com:443" in backend(made, "fallback-fastchat-y")
    assert "fallback-fastchat-x" not in files(made)["gateway/haproxy.cfg"]


@pytest.mark.parametrize(
    ("url", "server", "host", "path"),
    [
        ("http://10.0.0.5:8000/v1", "10.0.0.5:8000", "10.0.0.5:8000", "/v1"),
        ("http://box.lan", "box.lan:80", "box.lan", ""),
        ("https://box.lan:8443/a%20b/v1/", "box.lan:8443", "box.lan:8443", "/a%%20b/v1"),
        ("http://[fd00::5]:8000/v1", "'[fd00::5]:8000'", "'[fd00::5]:8000'", "/v1"),
    ],
)
def test_any_openai_compatible_server_can_be_a_fallback(url: str, server: str, host: str, path: str) -> None:
    text = backend(plan({"fallback": {"base_url": url, "model": "m", "api_key_env": "MY_KEY"}}), "fallback-vllm-m0")
    assert f" {server} resolvers" in text
    assert f"set-header host {host}\n" in text
    assert f"set-path '{path}%[path,bytes(3)]'" in text
    assert ("ssl verify required" in text) == url.startswith("https")


@pytest.mark.parametrize(
    ("fallback", "path", "expected"),
    [
        ("togther:x", "provider", "unknown provider 'togther'"),
        ("together", "", "must look like"),
        ({"model": "x"}, "", "needs `provider` or `base_url`"),
        ({"provider": "vllm", "model": "x"}, "base_url", "vllm has no known URL"),
        ({"base_url": "http://box.lan/v1", "model": "x"}, "api_key_env", "is required"),
        ({"provider": "together", "base_url": "https://together.ai.evil.net/v1", "model": "x"}, "api_key_env",
         "is not sent to other hosts"),
        ({"provider": "together", "model": "x", "api_key_env": "STACKGEN_API_KEY"}, "api_key_env", "key of this stack"),
        ({"provider": "together", "model": "x", "api_key_env": "STACKGEN_ENGINE_KEY"}, "api_key_env", "key of this"),
        ({"base_url": "http://localhost:8000/v1", "model": "x", "api_key_env": "K1"}, "base_url", "own container"),
        ({"base_url": "http://127.0.0.1:8000/v1", "model": "x", "api_key_env": "K1"}, "base_url", "own container"),
        ({"base_url": "https://10.0.0.5/v1", "model": "x", "api_key_env": "K1"}, "base_url", "needs a host name"),
        ({"base_url": "http://a:99999/v1", "model": "x", "api_key_env": "K1"}, "base_url", "is not a URL"),
        ({"base_url": "http://a'b/v1", "model": "x", "api_key_env": "K1"}, "base_url", "is not a URL"),
        ({"base_url": "http://é.lan/v1", "model": "x", "api_key_env": "K1"}, "base_url", "is not a URL"),
        ("together:a b", "model", "printable ASCII"),
        ("together:ä", "model", "printable ASCII"),
        ("together:a\tb", "model", "printable ASCII"),
    ],
)  # fmt: skip
def test_invalid_fallbacks_are_rejected(fallback: Any, path: str, expected: str) -> None:
    ((where, message),) = mistakes(fallback)
    assert where == f"models[0].fallback{path and '.'}{path}"
    assert expected in message


def test_fallback_needs_the_gateway() -> None:
    assert ("models[0].fallback", "needs the gateway") in mistakes("together:x", gateway=False)


def test_local_processes_warn_that_the_fallback_is_not_used(tmp_path: Path) -> None:
    entry = {"model": "./m", "engine": "vllm", "fallback": "together:x"}
    made = resolve(build_spec({"name": "demo", "models": [entry]}, "test"), ProcessSite(tmp_path, tmp_path), "test")
    assert any("without the gateway" in text for text in made.warnings)
    assert not any("leave this machine" in text for text in made.warnings)


def test_clouds_are_valid_fallback_providers() -> None:
    for name, cloud in CLOUDS.items():
        assert (providers()[name].url, providers()[name].key_names) == (cloud.url, cloud.key_names)
        assert cloud.owns(cloud.url.split("/")[2])
    assert not CLOUDS["together"].owns("together.ai.evil.net") and not CLOUDS["together"].owns("nottogether.ai")


@pytest.mark.docker
def test_haproxy_accepts_the_rendered_configuration(haproxy_image: str, tmp_path: Path) -> None:
    models = [
        {"fallback": f"together:{LLAMA}"},
        {"fallback": {"base_url": "http://[fd00::5]/%22'v1", "model": "a'b\"c\\d%b%[x]{}#$HOME", "api_key_env": "K1"}},
        {"fallback": {"base_url": "http://10.0.0.5:8000/v1", "provider": "vllm", "model": "m", "api_key_env": "K1"}},
    ]
    accepted(files(plan(*models)), haproxy_image, tmp_path)


@pytest.mark.docker
@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40), min_size=1, max_size=40
    )
)
def test_no_model_id_breaks_the_configuration(
    haproxy_image: str, tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    models = [{"served_names": [f"m{n}"], "fallback": f"together:{name}"} for n, name in enumerate(names)]
    accepted(files(plan(*models)), haproxy_image, tmp_path_factory.mktemp("ids"))


def accepted(rendered: dict[str, str], image: str, folder: Path) -> None:
    """HAProxy's own check of the configuration."""
    for path, text in rendered.items():
        if path.startswith("gateway/"):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text)
    done = subprocess.run(
        ["docker", "run", "--rm", "--volume", f"{folder}/gateway:/gateway:ro", "--env", "STACKGEN_ENGINE_KEY=k",
         "--env", "STACKGEN_KEY_HASH=0", image, "sh", "-c",
         "haproxy -c -f /gateway/haproxy.cfg && haproxy -c -f /gateway/large.cfg"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr


@pytest.mark.parametrize(("url", "needs"), [
    ("https://api.groq.com/openai", "https://api.groq.com/openai/v1"), ("http://llm.example.com/", "/v1"),
    ("https://api.groq.com/openai/v1", ""), ("https://example.com/v1beta/openai/", ""),
    ("https://example.com/api/paas/v4", ""), ("https://api.perplexity.ai", ""),
])  # fmt: skip
def test_a_base_url_without_a_version_is_a_warning(url: str, needs: str) -> None:
    made = plan({"fallback": {"base_url": url, "model": "m", "api_key_env": "KEY"}})
    found = [one for one in made.warnings if "has no version" in one]
    assert len(found) == (needs != "")
    assert all(one.startswith("models[0].fallback.base_url: ") and one.endswith(needs) for one in found)
