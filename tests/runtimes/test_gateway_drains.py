"""Drained replicas: recorded, reported, and enabled again when their command is interrupted or killed."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stackgen.cli.main import main
from stackgen.cli.signals import Stopped
from stackgen.render.write import compare, write_files
from stackgen.runtimes.compose.drains import DRAINS_FILE
from stackgen.runtimes.compose.gateway import running_gateway
from stackgen.runtimes.rollout import steps
from stackgen.stack.envfile import create_env
from stackgen.stack.folder import open_stack
from tests.runtimes.world import World

STACK = "name: n\ngateway: true\nmodels: [{model: ./m, engine: vllm, served_names: [m], replicas: 2}]\n"
REPLICA = "vllm-m-2"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path, monkeypatch)
    (tmp_path / "stack.yaml").write_text(STACK)
    create_env(tmp_path)
    write_files(compare(open_stack(str(tmp_path)).files(), tmp_path), tmp_path)
    world.up()
    with world.handles:
        yield world


def drain(world: World) -> None:
    """Leaves a replica drained, as a killed update does."""
    gateway = running_gateway("n")
    assert gateway and gateway.drain(REPLICA, 1) == 0
    assert world.containers["gateway"].drained == {REPLICA}


def states(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return {one["service"]: one["drained"] for one in json.loads(capsys.readouterr().out)["services"]}


def test_drain_is_recorded_before_it_begins(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[bool] = []
    record = world.record

    def on_action(action: str, once: bool = False) -> None:
        recorded.append(REPLICA in json.loads((world.folder / DRAINS_FILE).read_text()))
        record(action, once)

    monkeypatch.setattr(world, "record", on_action)
    drain(world)
    assert recorded == [True]
    (one,) = json.loads((world.folder / DRAINS_FILE).read_text()).values()
    assert (one["replica"], one["pid"]) == (REPLICA, os.getpid())


@pytest.mark.parametrize("is_down", [False, True], ids=["up", "down"])
def test_status_reports_a_replica_that_was_left_drained_and_enables_it(
    world: World, is_down: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    drain(world)
    if is_down:
        # the command was killed while Compose recreated the container: HAProxy reports DOWN, and not DRAIN
        world.containers[REPLICA].state = "exited"
    assert main(["status", str(world.folder), "--json"]) == 1
    output = capsys.readouterr()
    found = {one["service"]: one["drained"] for one in json.loads(output.out)["services"]}
    assert found[REPLICA]["pid"] == os.getpid() and found["vllm-m"] is None
    assert f"{REPLICA} was still drained since 20" in output.err
    assert "gets requests from the gateway again" in output.err
    assert world.containers["gateway"].drained == set()
    assert not (world.folder / DRAINS_FILE).exists()
    assert main(["status", str(world.folder), "--json"]) == (1 if is_down else 0)
    assert not any(states(capsys).values())


def test_replica_stays_drained_while_its_command_runs(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    drain(world)
    # the lock of a running command, held through another open file
    handle = os.open(world.folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert main(["status", str(world.folder)]) == 1
    finally:
        os.close(handle)
    assert f"{REPLICA} gets no requests from the gateway: drained since 20" in capsys.readouterr().err
    assert world.containers["gateway"].drained == {REPLICA}


def test_replica_that_was_drained_by_hand_is_reported_and_stays_drained(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.containers["gateway"].drained.add(REPLICA)
    assert main(["status", str(world.folder)]) == 1
    assert "drained, but not by stackgen" in capsys.readouterr().err
    assert world.containers["gateway"].drained == {REPLICA}


@pytest.mark.parametrize("command", ["update", "keys"])
def test_next_command_enables_a_replica_that_was_left_drained(
    world: World, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    drain(world)
    args = {"update": ["update", str(world.folder), "--progress", "plain"],
            "keys": ["keys", "new", "team", "--stack", str(world.folder)]}  # fmt: skip
    assert main(args[command]) == 0
    assert f"{REPLICA}" in (error := capsys.readouterr().err) and "gets requests from the gateway again" in error
    assert world.containers["gateway"].drained == set()


@pytest.mark.parametrize("moment", ["Compose replaces the container", "requests end"])
def test_interrupted_update_enables_the_replica_and_lets_compose_finish(
    world: World, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[object] = []
    start = steps.subprocess.Popen

    def popen(*args: Any, **options: Any) -> Any:
        process = start(*args, **options)
        wait, process.returncode = process.wait, None

        def interrupted(timeout: float | None = None) -> int:
            if timeout is None:
                raise Stopped
            waited.append(timeout)
            return int(wait())

        process.wait, process.poll = interrupted, lambda: None
        return process

    def stop_waiting(*_: object) -> bool:
        raise Stopped

    if moment == "requests end":
        monkeypatch.setattr("stackgen.runtimes.compose.gateway.wait_for", stop_waiting)
    else:
        monkeypatch.setattr(steps.subprocess, "Popen", popen)
    path = world.folder / "stack.yaml"
    path.write_text(STACK.replace("replicas: 2", "replicas: 2, max_num_seqs: 3"))
    assert main(["update", str(world.folder)]) in (130, 143)
    assert len(waited) == (moment != "requests end")
    assert world.containers["gateway"].drained == set()
    assert not (world.folder / DRAINS_FILE).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"vllm-m-2": 1}', '{"vllm-m-2": {"since": "x"}}', "\x00"])
def test_broken_record_hides_no_drain(world: World, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    drain(world)
    (world.folder / DRAINS_FILE).write_text(text)
    assert main(["status", str(world.folder)]) == 1
    assert f"{REPLICA} gets no requests" in capsys.readouterr().err
    # an update enables everything that is drained
    assert main(["update", str(world.folder)]) == 0
    assert world.containers["gateway"].drained == set()
