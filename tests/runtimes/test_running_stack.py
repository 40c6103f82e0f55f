"""`stackgen up` on a running stack: it changes replicas one by one, and never interrupts a service without asking."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.check.report import Report
from stackgen.cli.commands import up as command
from stackgen.cli.main import main
from stackgen.plan import Plan
from stackgen.render.write import compare, write_files
from stackgen.stack.folder import open_stack
from tests.runtimes.world import Container, World

IMAGE = "haproxy:3.2.26"


class Stack:
    """A stack in a fake Docker engine. `recreated` are the services that `up` lets Compose replace, by call."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.recreated: list[Sequence[str] | None] = []

    def write(self, gateway: Any = None, **fields: Any) -> None:
        entry = {"model": "./m", "engine": "vllm", "served_names": ["m"], "gpus": "none"} | fields
        data = {"name": "n", "gateway": {"image": IMAGE} if gateway is None else gateway, "models": [entry]}
        (self.world.folder / "stack.yaml").write_text(yaml.safe_dump(data))

    def run(self, gateway: Any = None, **fields: Any) -> None:
        self.write(gateway, **fields)
        stack = open_stack(str(self.world.folder))
        write_files(compare(stack.files(), self.world.folder), self.world.folder)
        self.world.up()

    def up(self, *args: str) -> int:
        return main(["up", str(self.world.folder), *args])

    def compose_up(self, plan: Plan, folder: Path, progress: Any, timeout: Any, recreate: Any) -> None:
        self.recreated.append(recreate)


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    (tmp_path / "m").mkdir()
    monkeypatch.setenv("STACKGEN_API_KEY", "x")
    world = World(tmp_path, monkeypatch)
    made = Stack(world)
    monkeypatch.setattr(command.compose, "up", made.compose_up)
    monkeypatch.setattr(command, "check_plan", lambda *_: Report((), ""))
    with world.handles:
        yield made


def test_changed_replicas_are_replaced_one_by_one(stack: Stack) -> None:
    stack.run(replicas=2)
    stack.write(replicas=2, max_model_len=4096)
    stack.up()
    assert stack.world.happened_in_order(
        "drain vllm-m", "up vllm-m", "ready vllm-m", "drain vllm-m-2", "up vllm-m-2", "ready vllm-m-2"
    )
    # afterwards, Compose may replace nothing
    assert stack.recreated == [()]


def test_answers_of_the_gateway_that_lost_their_first_part_are_requested_again(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine, `docker exec` loses the first part of the output: 3 of 208 answers of 4 KB."""
    stack.run(replicas=2)
    complete, count = Container.runtime_api, itertools.count()

    def lose_every_third(container: Container, command: str) -> str:
        answer = complete(container, command)
        return answer[len(answer) // 2 :] if command.startswith("show ") and next(count) % 3 == 0 else answer

    monkeypatch.setattr(Container, "runtime_api", lose_every_third)
    stack.write(replicas=2, max_model_len=4096)
    stack.up()
    assert stack.world.happened_in_order("up vllm-m", "ready vllm-m", "up vllm-m-2", "ready vllm-m-2")
    assert stack.recreated == [()]


def test_removed_replica_is_drained(stack: Stack) -> None:
    stack.run(replicas=3)
    stack.write(replicas=2)
    stack.up()
    assert stack.world.happened_in_order("drain vllm-m-3", "stop vllm-m-3", "remove vllm-m-3")


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({}, {"max_model_len": 4096}, "vllm-m has no other replica"),
        ({"gateway": False}, {"gateway": False, "max_model_len": 4096}, "vllm-m is not behind a gateway"),
        ({"replicas": 2}, {"replicas": 2, "gateway": {"image": "haproxy:3.2.99"}}, "the gateway itself is recreated"),
        ({"gateway": False}, {"gateway": {"image": IMAGE}}, "a gateway is added"),
        ({}, {"gateway": False}, "the gateway is removed"),
    ],
    ids=["single replica", "no gateway", "gateway", "gateway added", "gateway removed"],
)
def test_interruption_needs_consent(
    stack: Stack, before: dict[str, Any], after: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stack.run(**before)
    stack.write(**after)
    running, rendered = stack.world.running(), (stack.world.folder / "compose.yaml").read_text()
    assert stack.up() == 2
    message = capsys.readouterr().err
    assert reason in message and "add --yes" in message
    assert (stack.world.running(), stack.recreated) == (running, [])
    assert (stack.world.folder / "compose.yaml").read_text() == rendered
    stack.up("--yes")
    assert len(stack.recreated) == 1
    assert (stack.world.folder / "compose.yaml").read_text() != rendered


def test_service_that_serves_nobody_is_replaced_without_a_question(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.run(gateway=False)
    # it runs, but has never become healthy
    monkeypatch.setattr(Container, "is_healthy", False)
    stack.write(gateway=False, max_model_len=4096)
    stack.up()
    assert stack.recreated == [("vllm-m",)]


def test_replicas_behind_a_stopped_gateway_are_replaced_without_a_question(stack: Stack) -> None:
    stack.run()
    stack.world.containers["gateway"].state = "exited"
    stack.write(max_model_len=4096)
    stack.up()
    (recreated,) = stack.recreated
    assert set(recreated or ()) == {"gateway", "vllm-m"}


def test_unchanged_stack_is_left_alone(stack: Stack) -> None:
    stack.run(replicas=2)
    stack.up()
    assert (stack.recreated, stack.world.actions) == ([()], [])


def test_stopped_stack_is_started_as_a_whole(stack: Stack) -> None:
    stack.write(max_model_len=4096)
    stack.up()
    assert stack.recreated == [None]


def test_failed_replacement_is_rolled_back(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    stack.run(replicas=2)
    running = stack.world.running()
    stack.world.is_broken = lambda service, definition: "4096" in str(definition["command"])
    stack.write(replicas=2, max_model_len=4096)
    assert stack.up() == 1
    assert "rolled back: the previous services run again" in capsys.readouterr().err
    assert (stack.world.running(), stack.recreated) == (running, [])
