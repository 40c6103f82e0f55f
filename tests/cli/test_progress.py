"""Progress lines of `up`, `update` and `scale` show no secret of the stack, in every mode."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackgen.cli.main import main
from stackgen.cli.progress import show_progress
from stackgen.cli.scrub import protect
from stackgen.render.write import compare, write_files
from stackgen.stack.envfile import create_env
from stackgen.stack.folder import open_stack
from tests.runtimes.world import World

STACK = "name: n\ngateway: true\nmodels: [{model: ./m, engine: vllm, served_names: [m], replicas: 2}]\n"
# the value of a variable in .env that is also the name of a service
REPLICA = "vllm-m-2"
SECRET = "correct horse battery"


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stack.yaml").write_text(STACK)
    create_env(tmp_path)
    with (tmp_path / ".env").open("a") as env:
        env.write(f"OTHER_TOKEN={REPLICA}\nPASSPHRASE='{SECRET}'\n")
    return tmp_path


@pytest.fixture
def world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(folder, monkeypatch)
    write_files(compare(open_stack(str(folder)).files(), folder), folder)
    world.up()
    with world.handles:
        yield world


def show(folder: Path, mode: str, phase: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns what is shown of a phase, which may be a line of an engine's log."""
    protect(Namespace(command="up", stack=str(folder)))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with show_progress(mode, open_stack(str(folder)).plan) as progress:
        progress("vllm-m", phase)
    return terminal.getvalue()


@pytest.mark.parametrize("mode", ["auto", "plain"])
def test_a_phase_shows_no_secret(folder: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = show(folder, mode, f"failed: wrong password {SECRET}", monkeypatch)
    assert "failed: wrong password [key]" in text and SECRET not in text and "vllm-m" in text
    # as soon as the value is in .env
    with (folder / ".env").open("a") as env:
        env.write("LATER_SECRET=a-later-secret\n")
    assert "a-later-secret" not in show(folder, mode, "loading a-later-secret", monkeypatch)


@pytest.mark.parametrize("mode", ["auto", "plain"])
@pytest.mark.parametrize("phase", ["loading [/red] 1", "[bold]loading[/bold]", "loading [link=x]", "loading [0, 1]"])
def test_a_phase_with_brackets_is_shown_unchanged(
    folder: Path, mode: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert phase in show(folder, mode, phase, monkeypatch)


@pytest.mark.parametrize("command", [["update"], ["scale", "m=3"]], ids=" ".join)
def test_progress_of_a_command_shows_no_secret(
    world: World, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    path = world.folder / "stack.yaml"
    path.write_text(STACK.replace("replicas: 2", "replicas: 2, max_num_seqs: 3"))
    assert main([*command, str(world.folder), "--progress", "plain", "--yes"]) == 0
    progress = [line for line in capsys.readouterr().err.splitlines() if " s] " in line]
    assert any("] [key]  " in line for line in progress) and not any(REPLICA in line for line in progress)
