"""What a start in containers counts as a failure, with a fake Docker client and a fake `compose up`."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import cast

import pytest

from stackgen.errors import StartError
from stackgen.resolve.pipeline import resolve
from stackgen.runtimes.compose import lifecycle
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
