"""Proxies of the machine, and stacks without the field `proxy`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stackgen.runtimes.observation.proxies import NAMES, has_daemon_proxy, read_proxy_facts
from tests.doctor.hosts import EIGHT_80, findings, write_stack

SECRET = "http://me:s3cret@proxy.example.com:3128"


def about_proxy(folder: Path, host: dict[str, Any], **fields: Any) -> list[Any]:
    path = write_stack(folder, **fields)
    return [one for one in findings(replace(EIGHT_80, **host), path) if one.id == "SG-P065"]


@pytest.mark.parametrize("host", [{"proxies": ("HTTPS_PROXY",)}, {"daemon_proxy": True}])
def test_a_machine_behind_a_proxy_needs_the_field(tmp_path: Path, host: dict[str, Any]) -> None:
    (finding,) = about_proxy(tmp_path, host, model="org/m")
    assert (finding.status, finding.place) == ("warn", "proxy")
    assert "download" in finding.message and "`proxy: http://HOST:PORT`" in finding.fix
    assert ("HTTPS_PROXY" if "proxies" in host else "the Docker daemon") in finding.evidence


def test_the_field_is_enough(tmp_path: Path) -> None:
    host = {"proxies": ("HTTPS_PROXY",)}
    (finding,) = about_proxy(tmp_path, host, model="org/m", stack_proxy="http://proxy.example.com:3128")
    assert finding.status == "ok"


def test_unknown_is_not_ok_and_a_stack_that_stays_inside_needs_no_proxy(tmp_path: Path) -> None:
    (finding,) = about_proxy(tmp_path / "a", {"proxies": None}, model="org/m")
    assert finding.status == "unknown"
    (finding,) = about_proxy(tmp_path / "b", {}, model="org/m")
    assert finding.status == "ok"
    assert about_proxy(tmp_path / "c", {"proxies": ("HTTPS_PROXY",)}) == []


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "not json", '{"proxies": null}', '{"proxies": {}}', '{"proxies": {"default": 1}}',
     '{"auths": {"https://x": {"auth": "c2VjcmV0"}}}'],
)  # fmt: skip
def test_a_client_without_proxy_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert read_proxy_facts() == {"proxies": ()}


def test_proxies_are_found_without_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"proxies": {"default": {"httpsProxy": SECRET}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", SECRET)
    found = read_proxy_facts()["proxies"]
    assert found == ("https_proxy", "config.json of Docker's client")


def test_docker_desktops_own_proxy_is_none_of_the_network() -> None:
    own = "http.docker.internal:3128"
    assert not has_daemon_proxy({"HttpProxy": own, "HttpsProxy": own})
    assert not has_daemon_proxy({"HttpProxy": "", "HttpsProxy": ""})
    assert has_daemon_proxy({"HttpProxy": "", "HttpsProxy": "http://proxy.example.com:3128"})


@pytest.mark.parametrize(("stack", "env"), [("http://localhost:3128", ""), ("http://p:3128", "http://127.0.0.1:3128")])
def test_a_proxy_inside_the_container_itself_is_a_warning(tmp_path: Path, stack: str, env: str) -> None:
    path = write_stack(tmp_path, model="org/m", stack_proxy=stack)
    if env:
        (tmp_path / ".env").write_text(f"{(tmp_path / '.env').read_text()}STACKGEN_PROXY={env}\n")
    (finding,) = [one for one in findings(EIGHT_80, path) if one.id == "SG-P065"]
    assert (finding.status, finding.place) == ("warn", "proxy") and "the container itself" in finding.message
