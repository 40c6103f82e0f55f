"""The chat page in the plan: its endpoint, and its access control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.errors import SpecError
from stackgen.plan import EnvRef, Plan, Volume
from stackgen.render.templating import render
from stackgen.resolve.pipeline import resolve
from stackgen.runtimes.compose.certificate import ensure_certificate
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from stackgen.targets.process import ProcessSite
from tests.resolve.addons.test_gateway import check, files


def plan(*models: dict[str, Any], **fields: Any) -> Plan:
    entries = [{"model": f"org/m{index}", "engine": "vllm"} | model for index, model in enumerate(models)]
    data = {"name": "demo", "models": entries, "ui": "open-webui"} | fields
    return resolve(build_spec(data, "test"), ComposeSite(), "test")


def url(made: Plan) -> Any:
    return dict(made.service("open-webui").environment)["OPENAI_API_BASE_URL"]


def test_chat_page_uses_the_gateway_or_the_only_engine() -> None:
    assert url(plan({"replicas": 2})) == "http://gateway:8000/v1"
    assert url(plan({})) == "http://vllm-m0:8000/v1"
    assert url(plan({"engine": "fastchat"}, {"engine": "fastchat"}, gateway=False)) == "http://fastchat-api:8000/v1"
    assert url(plan({}, gateway={"tls": "generate"})) == "http://gateway:8001/v1"


def test_chat_page_with_several_endpoints_needs_the_gateway() -> None:
    with pytest.raises(SpecError, match="ui: needs the gateway"):
        plan({}, {}, gateway=False)


def test_chat_page_is_on_loopback_with_accounts_and_a_key_from_env() -> None:
    made = plan({}, bind="0.0.0.0", ui={"port": 3999})
    service = made.service("open-webui")
    assert [(port.address, port.host, port.container) for port in service.ports] == [("127.0.0.1", 3999, 8080)]
    environment = dict(service.environment)
    assert environment["WEBUI_AUTH"] == "True" and environment["DEFAULT_USER_ROLE"] == "pending"
    assert environment["BYPASS_MODEL_ACCESS_CONTROL"] == "True"
    assert environment["ENABLE_OLLAMA_API"] == "False" and environment["ANONYMIZED_TELEMETRY"] == "false"
    for name, variable in (("OPENAI_API_KEY", "STACKGEN_API_KEY"), ("WEBUI_SECRET_KEY", "WEBUI_SECRET_KEY")):
        value = environment[name]
        assert isinstance(value, EnvRef) and value.name == variable and value.required
    assert Volume("open-webui", "/app/backend/data") in service.mounts
    assert ("open-webui", "demo-open-webui") in made.volumes
    assert service.role == "ui" and service.health and service.logging and service.restart == "unless-stopped"
    data = yaml.safe_load(render(made)[0].text)["services"]["open-webui"]
    assert data["cap_drop"] == ["ALL"] and ":v" in data["image"]


def test_only_administrators_create_accounts_unless_the_stack_file_allows_sign_up() -> None:
    environment = dict(plan({}).service("open-webui").environment)
    password = environment["WEBUI_ADMIN_PASSWORD"]
    assert isinstance(password, EnvRef) and password.name == "WEBUI_ADMIN_PASSWORD" and password.required
    assert (environment["ENABLE_SIGNUP"], environment["WEBUI_ADMIN_EMAIL"]) == ("False", "admin@localhost")
    environment = dict(
        plan({}, ui={"sign_up": True, "admin_email": "ops@lab.example"}).service("open-webui").environment
    )
    assert (environment["ENABLE_SIGNUP"], environment["WEBUI_ADMIN_EMAIL"]) == ("True", "ops@lab.example")
    # also then, an account waits for approval
    assert environment["DEFAULT_USER_ROLE"] == "pending"


@pytest.mark.parametrize("tls", [True, False])
def test_the_gateway_serves_the_page_to_other_machines(tls: bool) -> None:
    made = plan({}, ui={"bind": "10.0.0.5", "port": 443}, **({"gateway": {"tls": "generate"}} if tls else {}))
    page, front = made.service("open-webui"), made.service("gateway")
    assert page.ports == ()
    assert [(port.address, port.host, port.container) for port in front.ports] == [
        ("127.0.0.1", 8000, 8000), ("10.0.0.5", 443, 8010),
    ]  # fmt: skip
    text = next(file.text for file in render(made) if file.path == "gateway/haproxy.cfg")
    block = text[text.index("\nfrontend page\n") :]
    assert ("bind :8010 ssl crt /tls/site.crt" in block) == tls
    assert "server open-webui open-webui:8080" in block
    assert (dict(page.environment).get("WEBUI_SESSION_COOKIE_SECURE") == "true") == tls
    assert any("the chat UI is open on 10.0.0.5 over plain HTTP" in one for one in made.warnings) == (not tls)


@pytest.mark.docker
@pytest.mark.parametrize("tls", [True, False])
def test_haproxy_accepts_the_page(tls: bool, tmp_path: Path, haproxy_image: str) -> None:
    fields: dict[str, Any] = {"gateway": {"tls": "generate"}} if tls else {}
    data = {"name": "demo", "models": [{"model": "org/m", "engine": "vllm"}], "ui": {"bind": "0.0.0.0"}} | fields
    spec = build_spec(data, "test")
    made = resolve(spec, ComposeSite(tmp_path, tmp_path), "test")
    certificate = ensure_certificate(spec, made, tmp_path)
    mounts = [f"-v={certificate}:/tls/site.crt:ro", f"-v={certificate.with_suffix('.key')}:/tls/site.crt.key:ro"] if (
        certificate
    ) else []  # fmt: skip
    assert check(files(made), tmp_path, haproxy_image, "--user=0:0", *mounts) == ""


def test_a_page_on_loopback_is_not_part_of_the_gateway() -> None:
    made = plan({}, gateway=True, ui={"bind": "127.0.0.2"})
    assert [port.address for port in made.service("open-webui").ports] == ["127.0.0.2"]
    assert "8010" not in "".join(file.text for file in render(made))


def test_a_page_for_other_machines_needs_the_gateway() -> None:
    with pytest.raises(SpecError, match=r"ui\.bind: needs the gateway"):
        plan({}, gateway=False, ui={"bind": "0.0.0.0"})


def test_people_can_use_their_own_keys_only_if_browsers_may_call_the_gateway() -> None:
    for gateway in (False, True):
        with pytest.raises(
            SpecError, match=r"ui\.direct_connections: needs the gateway with `cors`.*127\.0\.0\.1:3080"
        ):
            plan({}, gateway=gateway, ui={"direct_connections": True})
    made = plan({}, gateway={"cors": ["http://127.0.0.1:3080"]}, ui={"direct_connections": True})
    assert dict(made.service("open-webui").environment)["ENABLE_DIRECT_CONNECTIONS"] == "True"
    assert "ENABLE_DIRECT_CONNECTIONS" not in dict(plan({}).service("open-webui").environment)


def test_chat_page_port_must_be_free() -> None:
    with pytest.raises(SpecError, match=r"ui\.port: port 3000 is also used by `monitoring\.grafana_port`"):
        plan({}, ui={"port": 3000}, monitoring=True)
    with pytest.raises(SpecError, match=r"ui\.port: port 8000 is also used by `port`"):
        plan({}, ui={"port": 8000})
    assert "open-webui" in {service.name for service in plan({}, ui={"port": 3000}).services}


def test_local_processes_warn_that_the_chat_page_is_not_used(tmp_path: Path) -> None:
    data = {"name": "demo", "models": [{"model": "./m", "engine": "vllm"}], "ui": "open-webui"}
    made = resolve(build_spec(data, "test"), ProcessSite(tmp_path, tmp_path / "state"), "test")
    assert [service.name for service in made.services] == ["vllm-m"]
    assert "the chat UI needs containers: local processes run without the chat UI" in made.warnings


def test_chat_page_is_off_by_default() -> None:
    assert "open-webui" not in {service.name for service in plan({}, ui=None).services}


def test_custom_chat_page_image_without_version_warns() -> None:
    assert "image me/chat is not pinned to a version" in plan({}, ui={"image": "me/chat"}).warnings


@pytest.mark.parametrize(
    ("models", "sends_tools"),
    [
        ([{"tool_call_parser": "hermes"}], True),
        ([{"extra_args": ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]}], True),
        ([{"tool_call_parser": "hermes", "max_model_len": "32K"}], True),
        ([{"tool_call_parser": "hermes", "max_model_len": "auto"}], True),
        ([{"engine": "llamacpp", "file": "m.gguf"}], True),
        # vLLM without a parser answers each chat with 400, and FastChat knows no tools
        ([{}], False),
        ([{"engine": "fastchat"}], False),
        ([{"tool_call_parser": "hermes"}, {}], False),
        # the tools alone would fill such a context
        ([{"tool_call_parser": "hermes", "max_model_len": "8K"}], False),
        ([{"engine": "llamacpp", "file": "m.gguf", "max_model_len": 4096}], False),
    ],
)
def test_chat_page_sends_no_tools_that_a_model_would_refuse(models: list[dict[str, Any]], sends_tools: bool) -> None:
    environment = dict(plan(*models).service("open-webui").environment)
    expected = None if sends_tools else '{"function_calling": "legacy"}'
    assert environment.get("DEFAULT_MODEL_PARAMS") == expected
    text = render(plan(*models))[0].text
    assert yaml.safe_load(text)["services"]["open-webui"]["environment"].get("DEFAULT_MODEL_PARAMS") == expected


def test_an_offline_chat_page_never_asks_the_hub() -> None:
    assert "OFFLINE_MODE" not in dict(plan({}).service("open-webui").environment)
    made = plan({}, storage={"offline": True})
    assert dict(made.service("open-webui").environment)["OFFLINE_MODE"] == "True"


def test_a_page_that_stays_on_this_machine_although_the_api_is_open_is_reported() -> None:
    def reports(**fields: Any) -> list[str]:
        return [one for one in plan({}, **fields).warnings if "from this machine only" in one]

    (one,) = reports(bind="0.0.0.0")
    assert 'set `ui: {bind: "0.0.0.0"}`' in one and 'set `ui: {bind: "127.0.0.1"}`' in one
    assert len(reports(bind="::", ui={"port": 3081})) == 1
    assert not reports()
    for written in ("127.0.0.1", "0.0.0.0"):
        assert not reports(bind="0.0.0.0", ui={"bind": written})
