"""What a start in containers counts as a failure, with a fake Docker client and a fake `compose up`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from stackgen.errors import StartError
from stackgen.resolve.pipeline import resolve
from stackgen.runtimes.compose import child, lifecycle
from stackgen.runtimes.compose.command import compose_error
from stackgen.runtimes.compose.lifecycle import ServiceState, wait_until_healthy
from stackgen.stack.load import parse_stack
from stackgen.targets.compose import ComposeSite

SERVICE = "vllm-m"
STACK = "name: s\nmodels: [{model: acme/m, engine: vllm, gpus: none, served_names: [m], revision: main}]\n"
NEVER = "0001-01-01T00:00:00Z"


class FakeCompose:
    """`docker compose up` that exits after so many polls."""

    def __init__(self, polls: int) -> None:
        self.polls, self.returncode = polls, 0

    def poll(self) -> int | None:
        self.polls -= 1
        return None if self.polls >= 0 else self.returncode


def state(name: str, health: str = "", exit_code: int | None = None, finished: str = NEVER) -> ServiceState:
    return ServiceState(SERVICE, "engine", name, health, exit_code=exit_code, finished=finished)


def watch(monkeypatch: pytest.MonkeyPatch, polls: int, before: ServiceState, *seen: ServiceState) -> list[str]:
    """The phases that a start reports, while Docker shows the states `seen` one after the other."""
    whole = resolve(parse_stack(STACK, "stack.yaml"), ComposeSite())
    plan = replace(whole, services=tuple(service for service in whole.services if service.name == SERVICE))
    states = iter(seen)
    monkeypatch.setattr(lifecycle, "status", lambda *_: [next(states)])
    monkeypatch.setattr(lifecycle, "_read_log", lambda *_: "")
    monkeypatch.setattr(lifecycle.time, "sleep", lambda _: None)

    class Client:
        class api:  # noqa: N801
            images = staticmethod(list)

    phases: list[str] = []
    process = cast("subprocess.Popen[str]", FakeCompose(polls))
    wait_until_healthy(
        plan, Client, process, lambda _, phase: phases.append(phase), float("inf"), {before.service: before}
    )
    return phases


RUNNING = state("running", "healthy")
REPLACED = state("exited", exit_code=143, finished="2026-01-01T00:00:00Z")


def test_container_that_compose_replaces_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    phases = watch(monkeypatch, 2, RUNNING, RUNNING, REPLACED, state("running", "starting"), RUNNING)
    assert phases == ["ready", "waiting", "loading", "ready"]


def test_exit_of_an_earlier_start_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = state("exited", exit_code=1, finished="2026-01-01T00:00:00Z")
    assert watch(monkeypatch, 1, dead, dead, RUNNING) == ["waiting", "ready"]


def test_running_container_that_is_gone_after_compose_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartError, match="exited with code 143"):
        watch(monkeypatch, 1, RUNNING, RUNNING, REPLACED)


def test_new_container_that_exits_has_failed_while_compose_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartError, match="exited with code 1"):
        watch(monkeypatch, 9, state("absent"), state("running", "starting"), state("exited", exit_code=1,
              finished="2026-01-01T00:00:00Z"))  # fmt: skip


@pytest.mark.parametrize("broken", [("one", "two"), ("one",)])
def test_a_start_waits_for_the_api_server_only_while_a_worker_is_left(
    broken: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FastChat's API server starts without a broken worker. Without any worker, it never becomes healthy."""
    models = ", ".join(f"{{model: acme/{name}, engine: fastchat, served_names: [{name}]}}" for name in ("one", "two"))
    plan = resolve(parse_stack(f"name: s\ngateway: false\nmodels: [{models}]\n", "stack.yaml"), ComposeSite())
    states = [
        ServiceState(one.name, one.role, "exited", exit_code=3, finished="2026-01-01T00:00:00Z")
        if one.name.removeprefix("fastchat-") in broken
        else ServiceState(one.name, one.role, "exited", exit_code=0)
        if one.role == "download"
        else ServiceState(one.name, one.role, "running", "starting" if one.role == "api" else "healthy")
        for one in plan.services
    ]
    rounds: list[int] = []
    monkeypatch.setattr(lifecycle, "status", lambda *_: rounds.append(0) or states)
    monkeypatch.setattr(lifecycle, "_read_log", lambda *_: "")
    now = iter(range(100))
    monkeypatch.setattr(lifecycle.time, "sleep", lambda _: None)
    monkeypatch.setattr(lifecycle.time, "monotonic", lambda: next(now))

    class Client:
        class api:  # noqa: N801
            images = staticmethod(list)
            containers = staticmethod(lambda **_: [])

    with pytest.raises(StartError, match="fastchat-one exited with code 3"):
        wait_until_healthy(plan, Client, cast("subprocess.Popen[str]", FakeCompose(0)), lambda *_: None, 50, {})
    assert (len(rounds) == 1) == (len(broken) == 2)


class Script:
    """A `docker compose up` that `lifecycle.up` starts: its arguments, and when it exits."""

    def __init__(self, world: ComposeWorld, args: tuple[str, ...]) -> None:
        self.world, self.args = world, args
        self.returncode: int | None = None
        self.ended = False

    def poll(self) -> int | None:
        if self.returncode is None and next(self.world.steps, "exit") == "exit":
            self.returncode = 0
            self.world.after(self.args)
        return self.returncode

    def terminate(self) -> None:
        self.ended, self.returncode = True, -15

    def wait(self, timeout: float) -> None:
        pass


class ComposeWorld:
    """Docker with the states of one service, and Compose. `steps` are the polls until the present call exits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, current: ServiceState) -> None:
        self.current, self.has_image = current, True
        self.calls: list[Script] = []
        self.steps: Iterator[str] = iter(())
        self.starts = RUNNING
        whole = resolve(parse_stack(STACK, "stack.yaml"), ComposeSite())
        service = replace(whole.service(SERVICE), depends_on=())
        self.plan = replace(whole, services=(service,))
        world = self

        class Client:
            class api:  # noqa: N801
                @staticmethod
                def images() -> list[dict[str, Any]]:
                    return [{"RepoTags": [service.image]}] if world.has_image else []

        monkeypatch.setattr(lifecycle, "connect", lambda: Client)
        monkeypatch.setattr(lifecycle, "status", lambda *_: [self.current])
        monkeypatch.setattr(lifecycle, "_read_log", lambda *_: "")
        for module in (lifecycle, child):
            monkeypatch.setattr(module, "start_compose", self.start)
            monkeypatch.setattr(module.time, "sleep", lambda _: None)

    def start(self, folder: Path, output: object, *args: str) -> Script:
        self.calls.append(Script(self, args))
        if "--detach" in args and self.current.state in ("absent", "created", "exited"):
            self.current = self.starts
        return self.calls[-1]

    def after(self, args: tuple[str, ...]) -> None:
        if "--no-start" in args:
            self.current = state("created")

    def up(self, progress: Callable[[str, str], None] = lambda *_: None, **options: Any) -> list[tuple[str, ...]]:
        lifecycle.up(self.plan, Path(), progress, **options)
        return [one.args for one in self.calls]


def test_first_start_creates_and_starts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ComposeWorld(monkeypatch, state("absent")).up() == [("--detach", "--remove-orphans")]


def test_containers_are_replaced_before_the_new_ones_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = ComposeWorld(monkeypatch, RUNNING)

    def replace_slowly() -> Iterator[str]:
        # the old container has stopped, and the new one does not exist yet
        for _ in range(3):
            world.current = REPLACED
            yield "poll"

    world.steps = replace_slowly()
    assert world.up() == [("--no-start", "--remove-orphans"), ("--detach", "--remove-orphans", "--no-recreate")]


def test_only_the_given_services_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    start = ("--detach", "--remove-orphans", "--no-recreate")
    assert ComposeWorld(monkeypatch, RUNNING).up(recreate=("vllm-m",)) == [("--no-start", "--no-deps", "vllm-m"), start]
    assert ComposeWorld(monkeypatch, RUNNING).up(recreate=()) == [start]


def test_interrupted_replacement_is_finished_and_started(monkeypatch: pytest.MonkeyPatch) -> None:
    world = ComposeWorld(monkeypatch, RUNNING)

    def interrupt() -> Iterator[str]:
        yield "poll"
        world.current = REPLACED
        monkeypatch.setattr(child.time, "sleep", stop_once)
        yield "poll"
        yield "poll"

    def stop_once(_: float) -> None:
        monkeypatch.setattr(child.time, "sleep", lambda _: None)
        raise KeyboardInterrupt

    world.steps = interrupt()
    with pytest.raises(KeyboardInterrupt):
        world.up()
    first, second = world.calls
    assert not first.ended
    assert second.args == ("--detach", "--no-recreate")
    assert world.current == RUNNING


def test_interrupted_download_of_an_image_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    world = ComposeWorld(monkeypatch, state("absent"))
    world.current = RUNNING
    world.has_image = False
    monkeypatch.setattr(child.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    world.steps = iter(["poll"] * 9)
    with pytest.raises(KeyboardInterrupt):
        world.up()
    (call,) = world.calls
    assert call.ended


def test_compose_is_not_ended_before_it_has_started_every_service(monkeypatch: pytest.MonkeyPatch) -> None:
    world = ComposeWorld(monkeypatch, RUNNING)
    world.starts = state("exited", exit_code=1, finished="2026-01-01T00:00:00Z")
    polls = 0

    def count() -> Iterator[str]:
        nonlocal polls
        # the replacement exits at once; then the failure is seen while Compose still starts containers
        yield "exit"
        for polls in range(1, 9):
            if polls == 2:
                world.current = state("created")
            if polls == 6:
                world.current = world.starts
            yield "poll"

    world.steps = count()
    with pytest.raises(StartError) as caught:
        world.up()
    assert polls >= 6
    assert world.calls[-1].ended
    # the service has logged nothing, so there are no lines, and no empty line either
    assert caught.value.message == "vllm-m exited with code 1"


@pytest.mark.parametrize("output", ["", "\n", "Bind for 0.0.0.0:80 failed: port is already allocated\n"])
def test_errors_of_compose_have_no_empty_lines(output: str) -> None:
    assert all(line.strip() for line in compose_error(output).message.split("\n"))
