"""keys, scale and update from the command line, without anything running."""

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


def keys(folder: Path, *words: str) -> int:
    return main(["keys", *words, "--stack", str(folder)])


def test_a_new_key_is_printed_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(folder, "new", "team") == 0
    said = capsys.readouterr()
    key = said.out.strip()
    assert digest(key) in (folder / MAP).read_text()
    assert key not in said.err
    assert "counts from the next start" in said.err and "warning" not in said.err
    assert keys(folder, "list") == 0
    assert key not in capsys.readouterr().out


def test_a_name_that_is_not_declared_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(folder, "new", "guest", "--json") == 0
    said = capsys.readouterr()
    assert "guest is not in gateway.keys" in said.err
    data = json.loads(said.out)
    assert (data["name"], data["reloaded"], data["key"][:3]) == ("guest", False, "sk-")
    assert keys(folder, "rotate", "guest") == 0
    assert "remove guest --older" in capsys.readouterr().err
    assert keys(folder, "remove", "guest", "--older") == 0
    assert capsys.readouterr().out == "removed 1 key of guest\n"
    assert keys(folder, "remove", "guest", "--older") == 0
    assert capsys.readouterr().out == "removed 0 keys of guest\n"


def test_who_holds_the_old_key_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "stack.yaml").write_text(STACK + "monitoring: true\nui: open-webui\n")
    assert keys(folder, "rotate", "default") == 0
    said = capsys.readouterr().err
    assert "go on with the old key until `stackgen update`" in said and "exporter" in said and "webui" in said
    assert "gateway," not in said and "vllm-m" not in said
    assert keys(folder, "remove", "default", "--older") == 0
    assert "401" in capsys.readouterr().err
    (folder / "stack.yaml").write_text(STACK)
    assert keys(folder, "rotate", "default") == 0
    assert "stackgen update" not in capsys.readouterr().err


def test_the_list_for_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(folder, "list", "--json") == 0
    default, team = json.loads(capsys.readouterr().out)["keys"]
    assert (default["name"], len(default["keys"]), default["from_env"]) == ("default", 1, True)
    assert (team["name"], team["keys"], team["concurrent_requests"]) == ("team", [], 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("new",), "whose key?"),
        (("rotate", "team"), "team has no key"),
        (("remove", "default"), "own commands use"),
        (("new", "default"), "has a key already"),
    ],
)
def test_wrong_words(folder: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(folder, *words) == 2
    assert said in capsys.readouterr().err
    assert not (folder / MAP).exists()


def test_without_a_gateway(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "stack.yaml").write_text("name: n\nmodels: [{model: ./m, engine: vllm}]\n")
    assert keys(folder, "list") == 2
    assert "gateway: true" in capsys.readouterr().err
    assert main(["scale", "m=2", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "gateway: true" in said and "with a gap" in said


def test_nothing_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rolling, "containers", lambda name: {})
    monkeypatch.setattr(drift, "containers", lambda name: {})
    assert main(["update", str(folder)]) == 2
    assert "the stack does not run" in capsys.readouterr().err
    monkeypatch.setattr(scaling, "running_gateway", lambda name: object())
    before = (folder / "stack.yaml").read_text()
    assert main(["scale", "m=2", str(folder)]) == 2
    assert (folder / "stack.yaml").read_text() == before
