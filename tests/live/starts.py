"""Starts of stacks in the background, a few at a time. Tests wait for the results.

Most of these starts must fail: `Start` describes a service that must, and its diagnosis.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.live.small_stacks import find_causes
from tests.live.stacks import LiveStack

__all__ = ["Start", "Starts", "no_change", "selected_names"]


def no_change(folder: Path) -> None:
    """For faults that are not in the model's files."""


@dataclass(frozen=True)
class Start:
    """A service that must fail, and its diagnosis.

    - `fields`: of its model in stack.yaml. `damage` is done to its own copy of the model.
    - `override`: changes to its Compose service.
    - `rule`: the id of its finding, with `cause` and `fix` as parts of the finding's texts.
    """

    service: str
    rule: str
    fields: dict[str, Any] = field(default_factory=dict)
    damage: Callable[[Path], None] = no_change
    override: dict[str, Any] = field(default_factory=dict)
    cause: str = ""
    fix: str = ""

    def entry(self, engine: dict[str, Any], model: Path, folder: Path) -> dict[str, Any]:
        """The service's model in stack.yaml. A model that is damaged is copied into `folder`."""
        name = self.service.partition("-")[2]
        if self.damage is not no_change:
            model = Path(shutil.copytree(model, folder / name))
            self.damage(model)
        return engine | {"model": str(model), "served_names": [name]} | self.fields

    def prove(self, findings: Sequence[dict[str, Any]]) -> None:
        """Compares the service's first finding, which is the most likely cause."""
        found = next(one for one in findings if one["service"] == self.service)
        assert found["id"] == self.rule and self.cause in found["cause"] and self.fix in found["fix"], found


def selected_names(request: pytest.FixtureRequest) -> set[str]:
    """The fixtures that the selected tests of this module use, and the services of their parameters `start`."""
    items = [one for one in request.session.items if isinstance(one, pytest.Function) and one.path == request.path]
    cases = [one.callspec.params for one in items if hasattr(one, "callspec")]
    return {name for one in items for name in one.fixturenames} | {
        one["start"].service for one in cases if "start" in one
    }


class Starts:
    """Starts at most `at_once` at a time. `selected` names the services and stacks that the selected tests use."""

    def __init__(self, at_once: int, selected: set[str]) -> None:
        self.stacks: dict[str, LiveStack] = {}
        self._selected = selected
        self._jobs: dict[str, Future[None]] = {}
        self._codes: dict[str, Future[str]] = {}
        self._findings: dict[str, list[dict[str, Any]]] = {}
        self._pool = ThreadPoolExecutor(at_once)

    def __enter__(self) -> Starts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # the starts that have begun end by themselves
        self._pool.shutdown(cancel_futures=True)
        with ThreadPoolExecutor() as pool:
            list(pool.map(LiveStack.__exit__, self.stacks.values()))

    def run(self, name: str, stack: LiveStack, job: Callable[[LiveStack], None]) -> None:
        """Runs `job` on a new stack, which exists until the end. `finish` raises what the job raises."""
        if name in self._selected:
            self.stacks[name] = stack
            self.submit(name, lambda: job(stack.__enter__()))

    def submit(self, name: str, job: Callable[[], None]) -> None:
        """Runs `job`."""
        if name in self._selected:
            self._jobs[name] = self._pool.submit(job)

    def finish(self, name: str) -> None:
        """Waits for a job, and raises what it raises."""
        self._jobs[name].result()

    def run_services(self, name: str, stack: LiveStack, starts: Sequence[Start]) -> None:
        """Runs the services of a stack without their dependencies, until each has exited."""
        starts = [start for start in starts if start.service in self._selected]
        if not starts:
            return
        self.stacks[name] = stack.__enter__()
        edited = stack.folder / "edited.yaml"
        edited.write_text(json.dumps({"services": {start.service: start.override for start in starts}}))
        services = [start.service for start in starts]
        done = stack.compose("-f", str(edited), "up", "--no-start", "--no-deps", *services)
        assert done.returncode == 0, done.stderr
        label = '{{.Label "com.docker.compose.service"}}'
        listed = subprocess.run(
            ["docker", "ps", "--all", "--filter", f"label=com.docker.compose.project={stack.data['name']}", "--format",
             f"{label} {{{{.ID}}}}"], capture_output=True, text=True, check=True,
        )  # fmt: skip
        ids = dict(line.split() for line in listed.stdout.splitlines())
        for service in services:
            self._codes[service] = self._pool.submit(_run_until_exit, ids[service])

    def diagnose(self, name: str, starts: Sequence[Start]) -> list[dict[str, Any]]:
        """Waits until the services of a stack have exited, and returns all findings about the stack."""
        if name not in self._findings:
            codes = {one.service: self._codes[one.service].result() for one in starts if one.service in self._codes}
            assert not {"", "0"} & set(codes.values()), (codes, self.stacks[name].logs())
            found = self._findings[name] = find_causes(self.stacks[name])
            # nothing is found about the stack as a whole, or about services that were not started
            assert {one["service"] for one in found} == set(codes), found
        return self._findings[name]


def _run_until_exit(container: str) -> str:
    subprocess.run(["docker", "start", container], capture_output=True, check=True)
    done = subprocess.run(["docker", "wait", container], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout.strip()
