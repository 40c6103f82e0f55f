"""What doctor's checks read (`DoctorInputs`) and return (`Result`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stackgen.doctor.cluster_facts import ClusterFacts
from stackgen.doctor.facts import Host
from stackgen.errors import Mistake
from stackgen.resolve.placement import place
from stackgen.stack.lost_keys import KeptKeys
from stackgen.stack.project import OtherFolders

if TYPE_CHECKING:
    from stackgen.check.huggingface import HubLookup
    from stackgen.doctor.adapter_facts import AdapterFacts
    from stackgen.doctor.model_facts import ModelFacts, Unreadable
    from stackgen.plan import GpuRequest, Service
    from stackgen.render.write import Change
    from stackgen.stack.folder import Stack

__all__ = [
    "Check", "DoctorInputs", "EnvFacts", "Finding", "Result", "Results", "Status", "fail", "format_bytes", "ok",
    "unknown", "warn",
]  # fmt: skip

Status = Literal["fail", "warn", "unknown", "ok"]


@dataclass(frozen=True, slots=True)
class Result:
    """What a check reports: status, one sentence, the evidence, the fix, and the path in stack.yaml with its place."""

    status: Status
    message: str
    evidence: str = ""
    fix: str = ""
    place: str = ""
    line: int | None = None
    column: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A result with the id and the name of its check. The fields are those of `doctor --json`."""

    id: str
    check: str
    status: Status
    message: str
    evidence: str = ""
    fix: str = ""
    place: str = ""
    line: int | None = None
    column: int | None = None


Results = Iterator[Result]


@dataclass(frozen=True, slots=True)
class Check:
    """One check of doctor. If `machine` is set, a failure means that the machine is not ready: exit code 3, not 1."""

    id: str
    name: str
    description: str
    run: Callable[[DoctorInputs], Results]
    machine: bool = False


@dataclass(frozen=True, slots=True)
class EnvFacts:
    """A stack's `.env`: whether it exists, its mode, and its variables as Compose would read them.

    `missing_files` are variables whose value is the path of a file that can't be read, and `empty_files` those whose
    file is empty. `key_refused`: the gateway's
    list of keys does not contain the key. `kept` is what is known about the values that the file lacks.
    """

    path: str
    exists: bool
    mode: int | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    missing_files: tuple[str, ...] = ()
    empty_files: tuple[str, ...] = ()
    key_refused: bool = False
    kept: KeptKeys = field(default_factory=KeptKeys)

    @property
    def has_token(self) -> bool:
        """Whether the download gets a token of the Hub."""
        return bool(self.values.get("HF_TOKEN_FILE")) and "HF_TOKEN_FILE" not in self.empty_files


@dataclass(frozen=True, slots=True)
class DoctorInputs:
    """All facts that doctor's checks read. Without a stack, only the machine is checked.

    - `models`, `hub`: keyed by `model:` in stack.yaml. `models` lacks a model whose files can't be read, because they
      are in a volume or on the Hub. None in `hub` means that the Hub was not queried.
    - `cached`: whether a model from the Hub is in the storage; None if the storage can't be read.
    - `elsewhere`: what to set for a model that the storage contains in a layout which the engine does not read.
    - `adapters`: LoRA adapters, keyed by `path:` in stack.yaml; without those whose files can't be read.
    - `vocabularies`: the same for the vocabulary of gpt-oss, keyed by its path in the container.
    - `others`: other folders whose containers have the name of this stack.
    - `named`: existing files and folders in stack.yaml that containers read, as (path in stack.yaml, file, what of it
      not everybody may read).
    - `missing`: files in stack.yaml that don't exist, as (path in stack.yaml, file).
    - `tls_problem`: the field and the message of what is wrong with the gateway's own certificate; empty if nothing is.
    - `compose_file`: the text of compose.yaml as it would be started.
    - `cluster`: the cluster of a stack with `target: kubernetes`; `host` then has no facts.
    """

    host: Host
    stack: Stack | None = None
    mistakes: tuple[Mistake, ...] = ()
    source: str = ""
    models: Mapping[str, ModelFacts] = field(default_factory=dict)
    hub: Mapping[str, HubLookup | None] = field(default_factory=dict)
    offline: bool = False
    cached: Mapping[str, bool | None] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, AdapterFacts] = field(default_factory=dict)
    vocabularies: Mapping[str, bool | None] = field(default_factory=dict)
    env: EnvFacts | None = None
    changes: tuple[Change, ...] = ()
    others: OtherFolders = field(default_factory=OtherFolders)
    missing: tuple[tuple[str, str], ...] = ()
    named: tuple[tuple[str, str, tuple[Unreadable, ...]], ...] = ()
    tls_problem: tuple[str, str] = ("", "")
    compose_file: str = ""
    cluster: ClusterFacts | None = None

    def model_specs(self) -> Iterator[tuple[str, Any]]:
        """The models of stack.yaml, each as (path in stack.yaml, spec)."""
        for index, model in enumerate(self.stack.spec.models if self.stack else ()):
            yield f"models[{index}]", model

    def services(self) -> tuple[Service, ...]:
        """The services that would be started."""
        return self.stack.plan.services if self.stack else ()

    def command_of(self, model: Any) -> tuple[str, ...]:
        """The arguments of the engine that serves `model`, without replicas; empty if there is no such service."""
        name = next(iter(model.served_names or ()), model.model)
        endpoints = self.stack.plan.endpoints if self.stack else ()
        service = next((one.service for one in endpoints if name in one.models), "")
        return next((one.command for one in self.services() if one.name == service), ())

    def gpu_requests(self) -> Iterator[tuple[str, Any, GpuRequest]]:
        """Each replica's GPUs as (path in stack.yaml, spec, request), from the same placement as the plan."""
        if self.stack:
            requests, _ = place(self.stack.spec)
            for (model, _replica), request in sorted(requests.items()):
                # None: a replica on the CPU
                if request:
                    yield f"models[{model}]", self.stack.spec.models[model], request


def ok(message: str, *, evidence: str = "", place: str = "") -> Result:
    """The check ran and found no problem."""
    return Result("ok", message, evidence, place=place)


def fail(
    message: str, *, evidence: str = "", fix: str = "", place: str = "", line: int | None = None,
    column: int | None = None,
) -> Result:  # fmt: skip
    """The stack can't start."""
    return Result("fail", message, evidence, fix, place, line, column)


def warn(message: str, *, evidence: str = "", fix: str = "", place: str = "") -> Result:
    """The stack may start, but this will cause trouble."""
    return Result("warn", message, evidence, fix, place)


def unknown(message: str, *, evidence: str = "", fix: str = "", place: str = "") -> Result:
    """This machine can't answer the question."""
    return Result("unknown", message, evidence, fix, place)


def format_bytes(count: float) -> str:
    """A number of bytes in binary units: `23.6 GiB`, `512 MiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def rendered_folder(inputs: DoctorInputs) -> Path:
    """The folder of the rendered files."""
    return inputs.stack.folder if inputs.stack else Path()
