"""Damaged files of a stack: every command repairs them, ignores them, or ends with an error that names the file."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stackgen.cli import main as cli
from stackgen.render.write import LOCK, TEMPORARY
from stackgen.stack.keys import MAP, create_key

STACK = """name: demo
port: 1
gateway: {keys: [{name: team}]}
models: [{model: org/name, engine: vllm, revision: abc, replicas: 2}]
"""
STATE = '{"version": 1, "supervisor": {"pid": 1, "start": 1}, "services": []}'
FILES = {
    "stack.yaml": STACK,
    ".env": None,
    MAP: None,
    LOCK: None,
    "compose.yaml": None,
    ".stackgen/state.json": STATE,
    ".stackgen/drained.json": "{}",
    ".stackgen.busy.json": "{}",
    ".stackgen.applied.json": '{"compose.yaml": "services: {}"}',
}
COMMANDS = [
    "render --no-validate", "up", "up --runtime process", "status", "down", "logs",
    "keys list", "keys new other", "keys rotate default", "update --yes", "scale --yes name=3", "diagnose",
    "check --quick",
]  # fmt: skip


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_text(""),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "truncated": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "a folder": replace_by(Path.mkdir),
    "a pipe": replace_by(os.mkfifo),
    # unreadable for root as well
    "a link to itself": replace_by(lambda path: path.symlink_to(path.name)),
    "a broken link": replace_by(lambda path: path.symlink_to("nowhere/x")),
    "JSON of another type": lambda path: path.write_text("[1, null]"),
    "a number": lambda path: path.write_text("7"),
    "JSON with other values": lambda path: path.write_text('{"supervisor": 1, "services": [{"pid": "x"}], "a": 1}'),
    "deep JSON": lambda path: path.write_text("[" * 100_000),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A rendered stack with keys and every file that stackgen keeps; there is no Docker, so nothing starts."""
    monkeypatch.setenv("PATH", "/nowhere")
    # not a socket file: if nobody listens on it, Docker's library leaves its own socket open
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    monkeypatch.chdir(tmp_path)
    start = tmp_path / "start"
    start.mkdir()
    (start / "stack.yaml").write_text(STACK)
    assert cli.main(["render", str(start), "--no-validate"]) == 0
    create_key(start, "team")
    (start / ".stackgen").mkdir()
    for name, text in FILES.items():
        if text and not (start / name).exists():
            (start / name).write_text(text)
    return start


def run(folder: Path, command: str) -> int:
    words = command.split()
    where = ["--stack", str(folder)] if words[0] in ("logs", "keys", "ask") else [str(folder)]
    return cli.main([*words, *where])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_no_damaged_file_is_a_bug(folder: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    if file != ".stackgen/state.json":
        # without it, the commands take the stack for one in containers
        (folder / ".stackgen/state.json").unlink()
    DAMAGES[damage](folder / file)
    # only these two are read by doctor
    doctor = ["doctor --offline"] if file in ("stack.yaml", ".env") else []
    for number, command in enumerate([*COMMANDS, *doctor]):
        copy = folder.parent / str(number)
        shutil.copytree(folder, copy, symlinks=True, copy_function=copy_any)
        capsys.readouterr()
        code = run(copy, command)
        shown = capsys.readouterr().err
        assert code in (0, 1, 2, 3), command
        assert "a bug in stackgen" not in shown and "Traceback" not in shown, (command, shown)
        assert not list(copy.rglob(f"*{TEMPORARY}")), command
        shutil.rmtree(copy)


def copy_any(source: str, target: str) -> None:
    if Path(source).is_fifo():
        os.mkfifo(target)
    else:
        shutil.copy2(source, target)


UNREADABLE = ["a folder", "a pipe", "binary"]


@pytest.mark.parametrize("damage", UNREADABLE)
@pytest.mark.parametrize(
    ("file", "commands"),
    [
        (".env", ["render --no-validate", "up", "keys rotate default"]),
        (MAP, ["keys list", "keys new other", "keys rotate default"]),
        (".stackgen/state.json", ["status", "down", "logs", "up --runtime process"]),
        ("stack.yaml", ["render --no-validate", "up", "keys list"]),
    ],
)
def test_the_error_names_the_file_and_what_to_do(
    folder: Path, file: str, commands: list[str], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if file != ".stackgen/state.json":
        (folder / ".stackgen/state.json").unlink()
    DAMAGES[damage](folder / file)
    for command in commands:
        capsys.readouterr()
        assert run(folder, command) in (2, 3), command
        shown = capsys.readouterr().err
        assert str(folder / file) in shown and "hint: " in shown, (command, shown)


@pytest.mark.parametrize(
    "damage", ["empty", "truncated", "JSON of another type", "JSON with other values", "deep JSON"]
)
def test_a_damaged_state_of_processes_is_not_taken_for_no_processes(
    folder: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`down` must not print "nothing was running" if it does not know that."""
    path = folder / ".stackgen/state.json"
    DAMAGES[damage](path)
    before = path.read_bytes()
    for command in ("status", "down", "up --runtime process"):
        assert run(folder, command) == 2
        shown = capsys.readouterr().err
        assert f"{path} is damaged, so stackgen can't tell which processes run" in shown
        assert "--runtime compose" in shown
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["empty", "truncated", "binary", "a link to itself", "a broken link"])
def test_render_rebuilds_a_damaged_lock(folder: Path, damage: str) -> None:
    text = (folder / LOCK).read_text()
    DAMAGES[damage](folder / LOCK)
    assert run(folder, "render --no-validate") == 0
    assert (folder / LOCK).read_text() == text


@pytest.mark.parametrize(
    "args",
    [
        ["up", "--timeout=--"], ["check", "--timeout=--"], ["check", "--load=--"], ["logs", "--tail=--"],
        ["logs", "-n--"], ["keys", "list", "--stack=--"], ["check", "--base-url=--"], ["up", "--timeout", "nan"],
        ["update", "--timeout=-1"], ["up", "--timeout", "inf"], ["scale", "m=1", "--timeout", "0"],
        ["up", "--timeout", "yes"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_options_without_a_usable_value_are_refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    assert caught.value.code == 2
    assert re.search(r"is not a value|is not a number of seconds above 0", capsys.readouterr().err)
