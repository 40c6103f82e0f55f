"""What `render` says about ports that other machines reach: one warning, and only where its advice has an effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli import main as cli
from tests.doctor.hosts import NO_GPU, findings

MODEL = {"model": "org/m-1B", "engine": "vllm", "gpus": 1, "revision": "abc"}
TLS = {"gateway": {"tls": "generate"}}


def warnings(folder: Path, capsys: pytest.CaptureFixture[str], **fields: Any) -> list[str]:
    """The warnings about plain HTTP and open paths of `render`, of all machines."""
    (folder / "stack.yaml").write_text(yaml.safe_dump({"name": "demo", "models": [MODEL]} | fields, sort_keys=False))
    assert cli.main(["render", str(folder), "--no-validate"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    return [line for line in lines if "plain HTTP" in line or "open on" in line]


@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "10.0.0.5"])
@pytest.mark.parametrize("models", [[MODEL], [MODEL, MODEL | {"model": "org/n-1B"}]], ids=["one", "two"])
def test_an_open_gateway_without_tls_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bind: str, models: list[Any]
) -> None:
    (one,) = warnings(tmp_path, capsys, bind=bind, models=models)
    assert f"the gateway is open on {bind} over plain HTTP" in one and "`gateway: {tls: generate}`" in one
    assert "chat UI" not in one
    assert warnings(tmp_path, capsys, bind=bind, models=models, **TLS) == []
    assert warnings(tmp_path, capsys, bind="127.0.0.1", models=models) == []


def test_an_open_chat_page_is_in_the_same_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = {"ui": {"kind": "open-webui", "bind": "0.0.0.0"}}
    (both,) = warnings(tmp_path, capsys, bind="0.0.0.0", **page)
    assert "the gateway is open on" in both and "passwords of the chat UI" in both
    (only,) = warnings(tmp_path, capsys, **page)
    assert "the chat UI is open on 0.0.0.0 over plain HTTP" in only and "`gateway: {tls: generate}`" in only
    assert warnings(tmp_path, capsys, bind="0.0.0.0", **page, **TLS) == []


def test_a_cluster_has_no_bind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert warnings(tmp_path, capsys, bind="0.0.0.0", target="kubernetes") == []


SPLIT = {
    "bind": "192.168.1.5",
    "hosts": {"box1": {"address": "10.0.0.2"}, "box2": {"address": "10.0.0.3"}, "box3": {"address": "10.0.0.4"}},
    "models": [MODEL | {"host": ["box1", "box2"], "split_hosts": True}, MODEL | {"model": "org/n", "host": "box3"}],
}


def test_with_hosts_only_the_first_machine_has_clients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (one,) = warnings(tmp_path, capsys, **SPLIT)
    assert "the gateway is open on 192.168.1.5 over plain HTTP" in one
    assert warnings(tmp_path, capsys, **SPLIT, **TLS) == []
    # the advice would have no effect in the folder of another machine
    found = [one for one in findings(NO_GPU, tmp_path / "box3" / "stack.yaml", offline=True) if one.id == "SG-P022"]
    assert [one.status for one in found] == ["ok"] and "private network" in found[0].message


def test_a_container_in_its_machines_network_publishes_no_ports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warnings(tmp_path, capsys, **SPLIT, **TLS) == []
    for host in ("box1", "box2"):
        service = yaml.safe_load((tmp_path / host / "compose.yaml").read_text())["services"]["vllm-m-1b"]
        assert service["network_mode"] == "host" and "ports" not in service


def test_a_printed_compose_file_has_its_warnings_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump({"name": "n", "bind": "0.0.0.0", "models": [MODEL]}))
    assert cli.main(["render", str(tmp_path), "--stdout"]) == 0
    shown = capsys.readouterr()
    assert "warning: the gateway is open on 0.0.0.0 over plain HTTP" in shown.err and "warning" not in shown.out


@pytest.mark.parametrize(
    ("model", "fields", "count"),
    [
        ("Qwen/Qwen3-VL-8B-Instruct", {"gateway": True}, 1),
        ("google/gemma-3-27b-it", {"gateway": {"tls": "generate"}}, 1),
        # no image, no gateway, and limits that somebody chose
        ("google/gemma-3-1b-it", {"gateway": True}, 0),
        ("Qwen/Qwen3-8B", {"gateway": True}, 0),
        ("Qwen/Qwen3-VL-8B-Instruct", {}, 0),
        ("Qwen/Qwen3-VL-8B-Instruct", {"gateway": {"max_body": "20m"}}, 0),
        ("Qwen/Qwen3-VL-8B-Instruct", {"gateway": {"max_body": "2m"}}, 0),
    ],
)
def test_a_gateway_that_refuses_photos_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, fields: dict[str, Any], count: int
) -> None:
    stack = {"name": "demo", "models": [MODEL | {"model": model}]} | fields
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump(stack, sort_keys=False))
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    assert capsys.readouterr().err.count("set `gateway: {max_body: 20m}`") == count
