"""A stack with another `name:`: what still has the old one is named. The Docker engine is a stub."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stackgen.cli.commands import renames
from stackgen.cli.main import main
from stackgen.errors import MachineError, StackgenError
from stackgen.runtimes.compose import project

STACK = """name: before
gateway: true
ui: {kind: open-webui}
models: [{model: org/name, engine: vllm, revision: abc}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stack that was rendered as `before`, and is now called `after`."""
    monkeypatch.setattr(project, "check_socket", lambda *_: None)
    docker(monkeypatch)
    monkeypatch.setattr(renames, "find_own_volumes", lambda old: {f"{old}-open-webui"} if old == "before" else set())
    (tmp_path / "stack.yaml").write_text(STACK)
    assert main(["render", str(tmp_path)]) == 0
    (tmp_path / "stack.yaml").write_text(STACK.replace("before", "after"))
    return tmp_path


def docker(monkeypatch: pytest.MonkeyPatch, *rows: dict[str, Any]) -> None:
    api = SimpleNamespace(containers=lambda **_: list(rows))
    monkeypatch.setattr(project, "connect", lambda *_: SimpleNamespace(api=api, close=lambda: None))


def container(name: str, state: str = "running", target: str = "/stackgen") -> dict[str, Any]:
    return {"Labels": {"com.docker.compose.project": name}, "State": state, "Mounts": [{"Destination": target}]}


def test_render_names_containers_and_volumes_of_the_old_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # a project of the user's own in the same folder is not stackgen's
    docker(monkeypatch, container("before"), container("before"), container("mine", target="/data"))
    capsys.readouterr()
    assert main(["render", str(folder)]) == 0
    shown = capsys.readouterr().err
    assert "warning: the name of the stack changed from before to after" in shown
    assert "2 containers of before still run, which `docker compose -p before down` removes" in shown
    assert "before-open-webui (chats and accounts). To keep them, set `name: before` again" in shown
    assert "mine" not in shown
    # compose.yaml has the new name now, and the containers still show the old one
    monkeypatch.setattr("stackgen.cli.commands.up.check_ownership", lambda *_: None)

    def stop(*_: object) -> None:
        raise StackgenError("the start would begin here")

    monkeypatch.setattr("stackgen.cli.commands.up.write_keys", stop)
    main(["up", str(folder), "--skip-doctor"])
    assert "changed from before to after" in capsys.readouterr().err


def test_a_name_that_left_nothing_behind_is_not_mentioned(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(renames, "find_own_volumes", lambda _: set())
    capsys.readouterr()
    assert main(["render", str(folder)]) == 0
    assert "changed from" not in capsys.readouterr().err


def test_without_an_answer_of_docker_the_old_name_is_known_from_compose_yaml(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def silent(*_: object) -> None:
        raise MachineError("the Docker engine does not answer")

    monkeypatch.setattr(project, "connect", silent)
    capsys.readouterr()
    assert main(["render", str(folder)]) == 0
    shown = capsys.readouterr().err
    assert "If before is still running, `docker compose -p before down` stops it" in shown
    assert "before-open-webui" in shown
    # told once: from now on, nothing shows the old name
    assert main(["render", str(folder)]) == 0
    assert "changed from" not in capsys.readouterr().err
