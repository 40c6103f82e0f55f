"""`stackgen plan` and GPUs that others use. nvidia-smi is a script and Docker a stub, for four GPUs are needed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.fit_starts import MODELS
from stackgen.cli.main import main
from stackgen.runtimes.observation import gpu_holders, inventory
from stackgen.runtimes.observation.gpu_tools import QUERY
from tests.cli.test_plan import TENSORS, Run, auto
from tests.fit.test_models import write_model

COUNT = 4


class Machine(Run):
    """A stack on a machine with four GPUs, which others may use."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(folder, capsys)
        self.apps: tuple[str, ...] = ()
        self.used: dict[int, int] = {}
        self.containers: tuple[dict[str, Any], ...] = ()

    def write_tool(self) -> None:
        rows = []
        for number in range(COUNT):
            used = self.used.get(number, 4)
            values = {"index": str(number), "uuid": f"GPU-{number:08d}", "name": "NVIDIA H100 80GB HBM3",
                      "memory.total": "81559", "memory.free": str(81559 - used), "memory.used": str(used),
                      "compute_cap": "9.0"}  # fmt: skip
            rows.append(", ".join(values.get(one, "[N/A]") for one in QUERY))
        tool = self.folder / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        answers = "".join(
            f"*{word}*) printf '%s\\n' {' '.join(repr(line) for line in lines) or repr('')};;\n"
            for word, lines in (("query-gpu", rows), ("compute-apps", self.apps))
        )
        tool.write_text(f'#!/bin/sh\ncase "$1" in\n{answers}topo) exit 1;;\nesac\n')
        tool.chmod(0o755)

    def plan(self, *arguments: str, code: int = 0) -> str:
        self.write_tool()
        return self("plan", *arguments, code=code)

    def list_containers(self, **_: Any) -> list[dict[str, Any]]:
        return [{"Id": one["Id"], "Names": [f"/{one['Name']}"], "Labels": one["Labels"]} for one in self.containers]

    def inspect_container(self, id: str) -> dict[str, Any]:
        return next(one for one in self.containers if one["Id"] == id)


def container(name: str, stack: str, *ids: str, count: int = 0) -> dict[str, Any]:
    labels = {"com.docker.compose.project": stack} if stack else {}
    request = {"Driver": "nvidia", "Count": count, "DeviceIDs": list(ids) or None, "Capabilities": [["gpu"]]}
    return {
        "Id": name,
        "Name": name,
        "Labels": labels,
        "Config": {"Env": []},
        "HostConfig": {"DeviceRequests": [request]},
    }


@pytest.fixture
def machine(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(tmp_path, capsys)
    docker = SimpleNamespace(api=SimpleNamespace(containers=lambda **_: found.list_containers(),
                                                 inspect_container=found.inspect_container))  # fmt: skip
    monkeypatch.setattr(gpu_holders, "connect", lambda: docker)
    monkeypatch.setattr(inventory, "connect", lambda: SimpleNamespace(api=SimpleNamespace(containers=lambda **_: [])))
    monkeypatch.setattr(inventory, "_supervised", lambda: ())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    write_model(tmp_path / "tiny", MODELS["gqa-untied"], TENSORS)
    return found


def test_gpus_of_containers_and_processes_are_left_alone_with_the_reason(machine: Machine) -> None:
    machine.containers = (container("lab-vllm-1", "lab", "0"), container("notebook", "", "GPU-00000001"))
    machine.apps = ("GPU-00000002, 4194304, python3, 12000",)
    machine.write(auto("a"))
    text = machine.plan()
    assert machine.ids() == {"vllm-a": ("GPU-00000003",)}
    assert "GPU 0 (H100): used by the container lab-vllm-1 of the stack lab" in text
    assert "GPU 1 (H100): used by the container notebook" in text
    assert "GPU 2 (H100): used by the process python3 (pid 4194304, 11.7 GiB)" in text


def test_memory_in_use_without_a_visible_process_counts(machine: Machine) -> None:
    machine.used = {0: 30_000}
    machine.write(auto("a"))
    assert "GPU 0 (H100): used by programs that nvidia-smi does not list, with 29.3 GiB" in machine.plan()
    assert machine.ids() == {"vllm-a": ("GPU-00000001",)}


def test_what_the_stack_itself_uses_stays_its_own(machine: Machine) -> None:
    machine.write(auto("a", "tensor_parallel_size: 2"))
    machine.plan()
    machine.containers = (container("s-vllm-a-1", "s", "GPU-00000000", "GPU-00000001"),)
    # a process in the stack's container, whose container this user can't see
    machine.apps = ("GPU-00000000, 4194304, VLLM::Worker_TP0, 70000", "GPU-00000001, 4194305, VLLM::Worker_TP1, 70000")
    machine.used = {0: 70_000, 1: 70_000}
    assert "recorded before" in machine.plan()
    assert machine.ids() == {"vllm-a": ("GPU-00000000", "GPU-00000001")}


def test_a_recorded_gpu_that_another_program_took_is_replaced(machine: Machine) -> None:
    machine.write(auto("a"), auto("b"))
    machine.plan()
    machine.containers = (container("lab-vllm-1", "lab", "0"),)
    text = machine.plan()
    assert "moved, because GPU 0, recorded before, is used by the container lab-vllm-1 of the stack lab" in text
    assert machine.ids() == {"vllm-a": ("GPU-00000002",), "vllm-b": ("GPU-00000001",)}


def test_without_room_the_note_names_ignore_busy(machine: Machine) -> None:
    machine.containers = (container("lab-vllm-1", "lab", count=COUNT),)
    machine.write(auto("a"))
    text = machine.plan(code=1)
    assert "--ignore-busy" in text and "GPU 3 (H100): used by the container lab-vllm-1" in text
    machine.plan("--ignore-busy")
    assert machine.ids() == {"vllm-a": ("GPU-00000000",)}


def test_gpus_of_a_stack_that_is_down_are_taken_only_if_nothing_else_is_free(machine: Machine) -> None:
    other = machine.folder / "other"
    other.mkdir()
    (other / "stack.yaml").write_text(
        "name: other\nmodels: [{model: ../tiny, engine: vllm, gpus: [0, 1], served_names: [x]}]\n"
    )
    assert main(["render", str(other), "--no-validate"]) == 0
    machine.write(auto("a", "tensor_parallel_size: 2"))
    assert "GPU 0 (H100): listed by the stack other, which is down" in machine.plan()
    assert machine.ids() == {"vllm-a": ("GPU-00000002", "GPU-00000003")}
    machine.write(auto("a", "tensor_parallel_size: 2"), auto("b"))
    assert "GPU 0 is also in the plan of the stack other, which is down: start only one" in machine.plan()
    assert machine.ids() == {"vllm-a": ("GPU-00000002", "GPU-00000003"), "vllm-b": ("GPU-00000000",)}


def test_a_machine_file_says_who_holds_a_gpu(machine: Machine) -> None:
    file = machine.folder / "other-machine.yaml"
    file.write_text("gpus:\n- {uuid: GPU-a, name: H100, held: training}\n- {uuid: GPU-b, name: H100}\n")
    machine.write(auto("a"))
    data = json.loads(machine.plan("--machine", str(file), "--json"))
    assert [(one["uuid"], one["held"], one["models"]) for one in data["gpus"]] == [
        ("GPU-a", "training", []), ("GPU-b", "", ["a 1"]),
    ]  # fmt: skip
    machine.plan("--machine", str(file), "--ignore-busy", "--repack")
    assert machine.ids() == {"vllm-a": ("GPU-a",)}
