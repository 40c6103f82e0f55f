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
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from stackgen.targets.process import ProcessSite


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
    assert environment["ENABLE_OLLAMA_API"] == "False" and environment["ANONYMIZED_TELEMETRY"] == "false"
    for name, variable in (("OPENAI_API_KEY", "STACKGEN_API_KEY"), ("WEBUI_SECRET_KEY", "WEBUI_SECRET_KEY")):
        value = environment[name]
        assert isinstance(value, EnvRef) and value.name == variable and value.required
    assert Volume("open-webui", "/app/backend/data") in service.mounts
    assert ("open-webui", "demo-open-webui") in made.volumes
    assert service.role == "ui" and service.health and service.logging and service.restart == "unless-stopped"
    data = yaml.safe_load(render(made)[0].text)["services"]["open-webui"]
    assert data["cap_drop"] == ["ALL"] and ":v" in data["image"]


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
    assert "the chat page needs containers: local processes run without it" in made.warnings


def test_chat_page_is_off_by_default() -> None:
    assert "open-webui" not in {service.name for service in plan({}, ui=None).services}


def test_custom_chat_page_image_without_version_warns() -> None:
    assert "image me/chat is not pinned to a version" in plan({}, ui={"image": "me/chat"}).warnings
