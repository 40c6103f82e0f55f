"""The next command of any kind enables a replica that a killed command has left drained."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import docker.errors
import pytest

from stackgen.cli.main import build_parser, main
from stackgen.render.write import compare, write_files
from stackgen.runtimes.compose.drains import DRAINS_FILE
from stackgen.stack.envfile import create_env
from stackgen.stack.folder import open_stack
from tests.runtimes.world import World

STACK = "name: n\ngateway: true\nmodels: [{model: ./m, engine: vllm, served_names: [m], replicas: 2}]\n"
REPLICA = "vllm-m-2"
# they know no stack, or only read its files (`bundle`)
WITHOUT_STACK = {"schema", "completion", "explain", "storage", "list", "gpus", "import", "bundle", "models"}
# how the stack is given
PLACES = ("folder", "file", "current folder")
# commands whose first argument is not the stack
ARGUMENTS = {
    "init": ["init", "{}"],
    "logs": ["logs", "--stack", "{}"],
    "keys": ["keys", "list", "--stack", "{}"],
    "scale": ["scale", "m=3", "{}"],
    "connect": ["connect", "claude-code", "{}"],
    "ask": ["ask", "hi", "--stack", "{}"],
}


def commands() -> list[str]:
    (action,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    return [name for name in action.choices if name not in WITHOUT_STACK]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path, monkeypatch)
    (tmp_path / "stack.yaml").write_text(STACK)
    create_env(tmp_path)
    write_files(compare(open_stack(str(tmp_path)).files(), tmp_path), tmp_path)
    world.up()
    with world.handles:
        leave_drained(world, os.getpid())
        yield world


def leave_drained(world: World, pid: int) -> None:
    """Drains the replica and records that the process `pid` did it. This process counts as one that has ended."""
    world.containers["gateway"].drained.add(REPLICA)
    (world.folder / DRAINS_FILE).parent.mkdir(exist_ok=True)
    drain = {"replica": REPLICA, "since": 1.8e9, "command": "stackgen update", "pid": pid}
    (world.folder / DRAINS_FILE).write_text(json.dumps({REPLICA: drain}))


def drained(world: World) -> set[str]:
    return world.containers["gateway"].drained


def stop_after_the_drains(monkeypatch: pytest.MonkeyPatch, command: str) -> list[str]:
    """Replaces what `command` does, except for `status`, which reports drains itself. Returns its calls."""
    calls: list[str] = []

    def record(args: argparse.Namespace) -> int:
        calls.append(args.command)
        return 0

    if command != "status":
        monkeypatch.setattr(import_module(f"stackgen.cli.commands.{command}"), command, record)
    return calls


@pytest.mark.parametrize(
    ("command", "where"),
    # `init` has no stack file yet
    [(one, where) for one in commands() for where in PLACES if (one, where) != ("init", "file")],
)
def test_every_command_enables_a_replica_that_was_left_drained(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, where: str
) -> None:
    stop_after_the_drains(monkeypatch, command)
    arguments = ARGUMENTS.get(command, [command, "{}"])
    if where == "current folder":
        monkeypatch.chdir(world.folder)
        arguments = [one for one in arguments if one not in ("{}", "--stack")]
    path = world.folder / "stack.yaml" if where == "file" else world.folder
    main([one.format(path) for one in arguments])
    output = capsys.readouterr()
    assert drained(world) == set() and not (world.folder / DRAINS_FILE).exists()
    (line,) = (one for one in output.err.splitlines() if REPLICA in one)
    assert line.startswith(f"{REPLICA} was still drained since 20")
    assert line.endswith("gets requests from the gateway again")
    assert command == "status" or output.out == ""


@pytest.mark.parametrize("command", commands())
def test_no_command_enables_a_replica_whose_command_still_runs(
    world: World, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    leave_drained(world, os.getppid())
    stop_after_the_drains(monkeypatch, command)
    main([one.format(world.folder) for one in ARGUMENTS.get(command, [command, "{}"])])
    assert drained(world) == {REPLICA} and (world.folder / DRAINS_FILE).exists()


def no_docker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise docker.errors.DockerException("no such file or directory")

    monkeypatch.setattr("docker.from_env", fail)


def silent_docker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TimeoutError("Read timed out")

    monkeypatch.setattr(type(world.containers["gateway"]), "exec_run", fail)


def silent_haproxy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(world.containers["gateway"]), "runtime_api", lambda *_: "")


def stopped_stack(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.containers["gateway"].state = "exited"


def other_stack(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The running gateway belongs to another folder."""
    monkeypatch.setattr(type(world.containers["gateway"]), "labels", {})


@pytest.mark.parametrize(
    "obstacle", [no_docker, silent_docker, silent_haproxy, stopped_stack, other_stack], ids=lambda one: one.__name__
)
def test_a_drain_that_can_not_be_ended_neither_fails_nor_delays_the_command(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], obstacle: Any
) -> None:
    obstacle(world, monkeypatch)
    calls = stop_after_the_drains(monkeypatch, "check")
    assert main(["check", str(world.folder), "--json"]) == 0 and calls == ["check"]
    assert capsys.readouterr() == ("", "")
    # the seconds of the fake clock
    assert drained(world) == {REPLICA} and world._now <= 6
    # a later command may succeed
    assert (world.folder / DRAINS_FILE).exists()


def test_a_command_does_not_wait_for_one_that_changes_the_stack(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = stop_after_the_drains(monkeypatch, "logs")
    handle = os.open(world.folder, os.O_RDONLY)
    # another open file, as another process has it
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert main(["logs", "--stack", str(world.folder)]) == 0 and calls == ["logs"]
    finally:
        os.close(handle)
    assert capsys.readouterr() == ("", "") and drained(world) == {REPLICA}


def test_an_invalid_stack_file_does_not_keep_a_replica_drained(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (world.folder / "stack.yaml").write_text("models: 1\n")
    assert main(["render", str(world.folder), "--check"]) == 2
    assert drained(world) == set() and "gets requests from the gateway again" in capsys.readouterr().err


def test_a_drain_that_the_gateway_has_ended_itself_is_forgotten_without_a_word(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after_the_drains(monkeypatch, "doctor")
    drained(world).clear()
    assert main(["doctor", str(world.folder)]) == 0
    assert capsys.readouterr().err == "" and not (world.folder / DRAINS_FILE).exists()


def test_a_replica_that_was_drained_by_hand_stays_drained(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after_the_drains(monkeypatch, "check")
    drained(world).add("vllm-m")
    assert main(["check", str(world.folder)]) == 0
    assert drained(world) == {"vllm-m"}
