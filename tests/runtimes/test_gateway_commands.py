"""`stackgen keys`, `scale` and `update` on the command line, with nothing running."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stackgen.cli.main import main
from stackgen.runtimes.compose import gateway
from stackgen.runtimes.rollout import drift, rolling, scaling
from stackgen.stack.envfile import API_KEY, create_env
from stackgen.stack.keys import MAP, digest

STACK = "name: n\ngateway: {keys: [{name: team, concurrent_requests: 2}]}\nmodels: [{model: ./m, engine: vllm}]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(API_KEY, raising=False)
    monkeypatch.setattr(gateway, "running_gateway", lambda name: None)
    (tmp_path / "stack.yaml").write_text(STACK)
    create_env(tmp_path)
    return tmp_path


def keys(folder: Path, *args: str) -> int:
    return main(["keys", *args, "--stack", str(folder)])


def test_new_key_is_printed_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(folder, "new", "team") == 0
    output = capsys.readouterr()
    key = output.out.strip()
    assert digest(key) in (folder / MAP).read_text()
    assert key not in output.err
    assert "it loads the keys at its next start" in output.err and "warning" not in output.err
    assert keys(folder, "list") == 0
    assert key not in capsys.readouterr().out


def test_undeclared_name_warns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(folder, "new", "guest", "--json") == 0
    output = capsys.readouterr()
    assert "gateway.keys of stack.yaml does not list guest" in output.err
    data = json.loads(output.out)
    assert (data["name"], data["reloaded"], data["key"][:3]) == ("guest", False, "sk-")
    assert keys(folder, "rotate", "guest") == 0
    assert "remove guest --older" in capsys.readouterr().err
    assert keys(folder, "remove", "guest", "--older") == 0
    assert capsys.readouterr().out == "removed 1 key for guest\n"
    assert keys(folder, "remove", "guest", "--older") == 0
    assert capsys.readouterr().out == "removed 0 keys for guest\n"


def test_rotating_the_default_key_names_the_services_that_use_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "stack.yaml").write_text(STACK + "monitoring: true\nui: open-webui\n")
    assert keys(folder, "rotate", "default") == 0
    output = capsys.readouterr().err
    assert (
        "Run `stackgen update` before you remove the old key" in output and "exporter" in output and "webui" in output
    )
    assert "gateway," not in output and "vllm-m" not in output
    assert keys(folder, "remove", "default", "--older") == 0
    assert "401" in capsys.readouterr().err
    (folder / "stack.yaml").write_text(STACK)
    assert keys(folder, "rotate", "default") == 0
    assert "stackgen update" not in capsys.readouterr().err


def test_list_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(folder, "list", "--json") == 0
    default, team = json.loads(capsys.readouterr().out)["keys"]
    assert (default["name"], len(default["keys"]), default["from_env"]) == ("default", 1, True)
    assert (team["name"], team["keys"], team["concurrent_requests"]) == ("team", [], 2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("new",), "the name of the key is missing: `stackgen keys new NAME`"),
        (("rotate", "team"), "team has no key"),
        (("remove", "default"), "own commands use"),
        (("new", "default"), "already has a key"),
    ],
)
def test_invalid_arguments_change_nothing(
    folder: Path, args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys(folder, *args) == 2
    assert message in capsys.readouterr().err
    assert not (folder / MAP).exists()


def test_commands_without_a_gateway_suggest_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "stack.yaml").write_text("name: n\nmodels: [{model: ./m, engine: vllm}]\n")
    assert keys(folder, "list") == 2
    assert "gateway: true" in capsys.readouterr().err
    assert main(["scale", "m=2", str(folder)]) == 2
    output = capsys.readouterr().err
    assert "gateway: true" in output and "with downtime" in output


def test_update_and_scale_need_a_running_stack(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rolling, "find_containers", lambda name: {})
    monkeypatch.setattr(drift, "find_containers", lambda name: {})
    assert main(["update", str(folder)]) == 2
    assert "the stack is not running" in capsys.readouterr().err
    monkeypatch.setattr(scaling, "running_gateway", lambda name: object())
    before = (folder / "stack.yaml").read_text()
    assert main(["scale", "m=2", str(folder)]) == 2
    assert (folder / "stack.yaml").read_text() == before
