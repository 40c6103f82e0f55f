"""A fallback of a stack in a cluster: the port that its NetworkPolicy allows, its key, and the warnings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli import main as cli

MODEL = {"model": "Qwen/Qwen3-8B", "engine": "vllm", "gpus": 1, "served_names": ["qwen"]}
OWN = {"base_url": "https://llm.example.com:9443/v1", "model": "q", "api_key_env": "EXAMPLE_KEY"}


def render(folder: Path, fallback: Any, capsys: pytest.CaptureFixture[str], **fields: Any) -> dict[str, Any]:
    data = {"name": "lab", "target": "kubernetes", "gateway": True, "models": [MODEL | {"fallback": fallback}]}
    (folder / "stack.yaml").write_text(json.dumps(data | fields))
    capsys.readouterr()
    assert cli.main(["render", str(folder), "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def policy(folder: Path, name: str) -> dict[str, Any]:
    objects = yaml.safe_load_all((folder / "kubernetes" / "network-policies.yaml").read_text())
    (found,) = [one["spec"] for one in objects if one["metadata"]["name"] == name]
    return dict(found)


@pytest.mark.parametrize(
    ("fallback", "port"),
    [(OWN, 9443), (OWN | {"base_url": "http://10.0.0.5/v1"}, 80), ("together:Qwen/Qwen3-8B", 443)],
)
def test_the_gateway_may_connect_to_the_port_of_the_fallback(
    fallback: Any, port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render(tmp_path, fallback, capsys)
    # without `to`: any address
    outside = [one for one in policy(tmp_path, "gateway")["egress"] if "to" not in one]
    assert outside == [{"ports": [{"protocol": "TCP", "port": port}]}]


def test_warnings_name_the_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(render(tmp_path, OWN, capsys, proxy="http://proxy.example.com:3128")["warnings"])
    assert "including all prompts, leave the cluster" in text
    assert "allow connections from the cluster to llm.example.com:9443" in text and "this machine" not in text


@pytest.mark.parametrize("in_environment", [False, True])
def test_a_missing_key_of_a_provider_is_a_to_do(
    in_environment: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the Secrets contain only variables that .env names
    monkeypatch.setenv("EXAMPLE_KEY", "from-the-shell") if in_environment else None
    printed = render(tmp_path, OWN, capsys)
    (text,) = [one for one in printed["to_do"] if "EXAMPLE_KEY" in one]
    assert text.startswith("set EXAMPLE_KEY in ") and text.endswith("and run `stackgen render` again")
    assert any("leave the cluster" in one for one in printed["warnings"])
    assert "kubernetes/secrets/" in (tmp_path / ".gitignore").read_text()
    secrets = tmp_path / "kubernetes" / "secrets"
    assert {one.name for one in secrets.iterdir()} == {"engine.env", "STACKGEN_API_KEY", "keys.map", "hf_token"}
    assert "EXAMPLE_KEY" not in (secrets / "engine.env").read_text()
    with (tmp_path / ".env").open("a") as file:
        file.write("EXAMPLE_KEY=mine\n")
    assert not any("EXAMPLE_KEY" in one for one in render(tmp_path, OWN, capsys)["to_do"])
    value = "from-the-shell" if in_environment else "mine"
    assert f"EXAMPLE_KEY={value}" in (secrets / "engine.env").read_text().splitlines()
