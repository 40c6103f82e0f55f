"""What a check finds, and what all checks look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stackgen.doctor.facts import Host
from stackgen.errors import Mistake
from stackgen.resolve.placement import place

if TYPE_CHECKING:
    from stackgen.check.huggingface import HubAnswer
    from stackgen.doctor.model_facts import ModelFacts
    from stackgen.plan import GpuRequest, Service
    from stackgen.render.write import Change
    from stackgen.stack.folder import Stack

__all__ = [
    "Case", "Check", "EnvFacts", "Finding", "Result", "Results", "Status", "fail", "good", "size", "unknown", "warn",
]  # fmt: skip

Status = Literal["fail", "warn", "unknown", "ok"]


@dataclass(frozen=True, slots=True)
class Result:
    """What a check says: the status, one sentence, what it rests on, what to do, and the place in stack.yaml."""

    status: Status
    message: str
    evidence: str = ""
    fix: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A result with the id and the name of its check."""

    id: str
    check: str
    status: Status
    message: str
    evidence: str = ""
    fix: str = ""
    place: str = ""


Results = Iterator[Result]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that doctor looks at. `machine`: its failures are the machine's (exit code 3), not the stack's."""

    id: str
    name: str
    looks_at: str
    run: Callable[[Case], Results]
    machine: bool = False


@dataclass(frozen=True, slots=True)
class EnvFacts:
    """`.env` of a stack: whether it is there, its mode, and its variables as Compose would see them."""

    path: str
    exists: bool
    mode: int | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    missing_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """All that is known before a start. Without a stack only the machine is looked at.

    `models` and `hub` are keyed by the model as stack.yaml names it; a model that can't be looked at (it lies in a
    volume, or on the Hub) is in none of them, a key of `hub` with None was not asked. `cached` says whether a model of
    the Hub lies in the storage; None where the storage can't be read. `missing` are files that stack.yaml names and
    that aren't there, as (place, path). `compose_file` is the text of compose.yaml as it would be started.
    """

    host: Host
    stack: Stack | None = None
    mistakes: tuple[Mistake, ...] = ()
    source: str = ""
    models: Mapping[str, ModelFacts] = field(default_factory=dict)
    hub: Mapping[str, HubAnswer | None] = field(default_factory=dict)
    offline: bool = False
    cached: Mapping[str, bool | None] = field(default_factory=dict)
    env: EnvFacts | None = None
    changes: tuple[Change, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    compose_file: str = ""

    def specs(self) -> Iterator[tuple[str, Any]]:
        """The models of stack.yaml, each with its place."""
        for index, model in enumerate(self.stack.spec.models if self.stack else ()):
            yield f"models[{index}]", model

    def services(self) -> tuple[Service, ...]:
        """The services that would be started."""
        return self.stack.plan.services if self.stack else ()

    def gpu_requests(self) -> Iterator[tuple[str, Any, GpuRequest]]:
        """Each replica's GPUs, with the model's place and spec, as `placement` decided them."""
        if self.stack:
            requests, _ = place(self.stack.spec)
            for (model, _replica), request in sorted(requests.items()):
                if request:
                    yield f"models[{model}]", self.stack.spec.models[model], request


def good(message: str, evidence: str = "", place: str = "") -> Result:
    """It was looked at, and nothing is wrong."""
    return Result("ok", message, evidence, "", place)


def fail(message: str, evidence: str = "", fix: str = "", place: str = "") -> Result:
    """The start can't work."""
    return Result("fail", message, evidence, fix, place)


def warn(message: str, evidence: str = "", fix: str = "", place: str = "") -> Result:
    """The start may work, and this will be regretted."""
    return Result("warn", message, evidence, fix, place)


def unknown(message: str, evidence: str = "", fix: str = "", place: str = "") -> Result:
    """This machine can't tell."""
    return Result("unknown", message, evidence, fix, place)


def size(count: float) -> str:
    """Bytes for people: `23.6 GiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def folder_of(case: Case) -> Path:
    """The folder of the rendered files."""
    return case.stack.folder if case.stack else Path()
