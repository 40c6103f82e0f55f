"""`stackgen plan` and `gpus: auto` as users run them. nvidia-smi is a script: this machine need not have a GPU."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks.fit_starts import MODELS
from stackgen.bundle.stack_copy import copy_stack
from stackgen.cli.main import main
from stackgen.errors import StackgenError
from stackgen.stack.folder import open_stack
from tests.fit.test_models import write_model

TENSORS: dict[str, tuple[str, list[int]]] = {"model.embed_tokens.weight": ("BF16", [1024, 128])}
MACHINE = """\
gpus:
  - {uuid: GPU-a, name: H100, island: x}
  - {uuid: GPU-b, name: H100, island: x}
  - {uuid: GPU-c, name: RTX-4090}
"""
AUTO = "  - {{model: ./tiny, engine: vllm, gpus: auto, served_names: [{name}]{more}}}\n"


class Run:
    """Runs commands on the stack in a folder, in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        (folder / "machine.yaml").write_text(MACHINE)

    def write(self, *rows: str, head: str = "") -> None:
        (self.folder / "stack.yaml").write_text(f"name: s\ngateway: true\n{head}models:\n{''.join(rows)}")

    def __call__(self, command: str, *arguments: str, code: int = 0) -> str:
        found = main([command, str(self.folder), *arguments])
        printed = self._capsys.readouterr()
        assert found == code, printed.out + printed.err
        return printed.out if "--json" in arguments else printed.out + printed.err

    def plan(self, *arguments: str, code: int = 0) -> str:
        return self("plan", "--machine", str(self.folder / "machine.yaml"), *arguments, code=code)

    def ids(self) -> dict[str, tuple[str, ...]]:
        plan = open_stack(str(self.folder)).plan
        return {one.name: one.gpus.ids for one in plan.services if one.gpus}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PATH", "/nonexistent")
    write_model(tmp_path / "tiny", MODELS["gqa-untied"], TENSORS)
    return Run(tmp_path, capsys)


def auto(name: str, more: str = "") -> str:
    return AUTO.format(name=name, more=f", {more}" if more else "")


def test_without_a_plan_every_command_says_how_to_get_one(run: Run) -> None:
    run.write(auto("a"))
    assert "models[0].gpus: the GPUs of `auto` are not chosen yet (run `stackgen plan`" in run("render", code=2)


def test_a_plan_is_shown_recorded_and_rendered(run: Run) -> None:
    run.write(auto("a", "tensor_parallel_size: 2"), auto("b"))
    text = run.plan()
    assert "in the island x" in text and "WHY NOT ELSEWHERE" in text and "recorded in" in text
    assert "the stack uses 3 of 3 GPUs: 0-2" in text
    assert run.ids() == {"vllm-a": ("GPU-a", "GPU-b"), "vllm-b": ("GPU-c",)}
    run("render", "--no-validate")
    compose = (run.folder / "compose.yaml").read_text()
    assert "device_ids: [GPU-a, GPU-b]" in compose and "device_ids: [GPU-c]" in compose
    before = (run.folder / "placement.yaml").read_text()
    assert run.plan().count("recorded before") == 2
    assert (run.folder / "placement.yaml").read_text() == before
    assert "up to date" in run("render", "--no-validate")


def test_running_models_stay_when_one_is_added(run: Run) -> None:
    run.write(auto("a"))
    run.plan()
    assert run.ids() == {"vllm-a": ("GPU-c",)}
    # alone, it would get the GPU that `a` has
    run.write(auto("new"), auto("a"))
    assert "placement.yaml has no place for this model" in run("render", code=2)
    run.plan()
    assert run.ids() == {"vllm-new": ("GPU-a",), "vllm-a": ("GPU-c",)}
    run.write(auto("new"), auto("a", "replicas: 2"))
    assert "has places for 1 of 2 replicas" in run("render", code=2)
    run.plan()
    assert run.ids() == {"vllm-new": ("GPU-a",), "vllm-a": ("GPU-c",), "vllm-a-2": ("GPU-b",)}


def test_no_room_records_nothing_and_says_whether_moving_helps(run: Run) -> None:
    run.write(auto("a"), auto("b"))
    run.plan()
    before = (run.folder / "placement.yaml").read_text()
    run.write(auto("a"), auto("b"), auto("c", "tensor_parallel_size: 2"))
    text = run.plan(code=1)
    assert "no room for 1 of 3 replicas, so nothing was recorded" in text
    assert "--repack" not in text
    assert (run.folder / "placement.yaml").read_text() == before
    run.write(auto("b"), auto("c", "tensor_parallel_size: 2"))
    assert "if other replicas move: `stackgen plan --repack`" in run.plan(code=1)
    run.plan("--repack")
    assert run.ids() == {"vllm-b": ("GPU-c",), "vllm-c": ("GPU-a", "GPU-b")}


def test_models_share_a_gpu_only_with_share_gpus_and_a_margin(run: Run) -> None:
    shared = "share_gpus: true, gpu_memory_utilization: 0.45"
    run.write(auto("a", shared), auto("b", shared), auto("c", shared))
    data = json.loads(run.plan("--json"))
    assert [one["gpus"] for one in data["models"]] == [["GPU-c"], ["GPU-c"], ["GPU-a"]]
    assert "5% of a shared GPU stay free" in data["models"][0]["why"]
    assert {one["uuid"]: one["models"] for one in data["gpus"]} == {
        "GPU-a": ["c 1"], "GPU-b": [], "GPU-c": ["a 1", "b 1"],
    }  # fmt: skip
    assert data["complete"] is True and data["file"].endswith("placement.yaml")


def test_gpus_that_another_model_lists_are_taken(run: Run) -> None:
    listed = "  - {model: ./tiny, engine: vllm, gpus: [2], served_names: [own]}\n"
    run.write(listed, auto("a"))
    run.plan()
    assert run.ids() == {"vllm-own": ("2",), "vllm-a": ("GPU-a",)}
    run.write(listed.replace("[2]", "[0]"), auto("a"))
    assert "models[0].gpus: GPU 0 is already assigned to a in placement.yaml" in run("render", code=2)


def test_dry_run_and_picture(run: Run) -> None:
    run.write(auto("a&b<c>"), auto("two", "tensor_parallel_size: 2"))
    text = run.plan("--dry-run", "--svg", "-")
    assert not (run.folder / "placement.yaml").exists()
    picture = ET.fromstring(text[: text.index("</svg>") + 6])
    words = [one.text or "" for one in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "a&b<c> 1" in words and words.count("two 1") == 2 and "island x" in words


@pytest.mark.parametrize(("row", "text"), [
    (auto("a").replace("vllm", "sglang"), "stackgen does not have for sglang"),
    (auto("a", "share_gpus: true"), "needs gpu_memory_utilization"),
    (auto("a", "extra_args: [--nnodes, '2']"), "several"),
    (auto("a") + auto("b").replace("auto", "2"), "can't be combined with `gpus: auto`"),
    (auto("a").replace("auto", "1"), "no model has `gpus: auto`"),
])  # fmt: skip
def test_what_auto_cannot_do_is_refused(run: Run, row: str, text: str) -> None:
    run.write(row)
    assert text in run.plan(code=2)


def test_clusters_and_amd_are_refused(run: Run) -> None:
    run.write(auto("a"), head="target: kubernetes\n")
    assert "a cluster chooses the GPUs" in run.plan(code=2)
    assert "a cluster, which chooses the GPUs itself" in run("render", "--no-validate", code=2)
    run.write(auto("a"), head="gpu_driver: amd\n")
    assert "works only with NVIDIA GPUs" in run.plan(code=2)


def test_a_machine_without_gpus_names_both_remedies(run: Run) -> None:
    run.write(auto("a"))
    text = run("plan", code=3)
    assert "on the machine with the GPUs" in text and "--machine FILE" in text


def test_the_gpus_of_this_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # a script, because no test machine has two GPUs: the columns are those of stackgen's query
    from stackgen.runtimes.observation.gpu_tools import QUERY

    values = {"memory.total": "81559", "memory.free": "81000", "memory.used": "4", "compute_cap": "9.0"}
    rows = "\n".join(", ".join({**values, "index": str(n), "uuid": f"GPU-{n}", "name": "NVIDIA H100 80GB HBM3"}.get(
        one, "[N/A]") for one in QUERY) for n in range(2))  # fmt: skip
    topology = "\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tNV18\t0-1\nGPU1\tNV18\t X \t0-1\n"
    tool = run.folder / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ncase \"$1\" in topo) printf '%s' '{topology}';; *query-gpu*) echo '{rows}';; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    run.write(auto("a", "tensor_parallel_size: 2"))
    # whatever containers this machine runs
    assert "in the island nvlink-0" in run("plan", "--ignore-busy")
    assert run.ids() == {"vllm-a": ("GPU-0", "GPU-1")}


@pytest.mark.parametrize("text", [
    "version: 2\n", "version: 1\nmodels: 3\n", "version: 1\nmodels: [{name: a}]\n", "[", "\xff",
    "version: 1\nmodels: [{name: a, model: ./tiny, replicas: [[{uuid: 'x y', index: 0}]]}]\n",
])  # fmt: skip
def test_a_damaged_record_is_named(run: Run, text: str) -> None:
    run.write(auto("a"))
    (run.folder / "placement.yaml").write_bytes(text.encode("latin-1"))
    found = run("render", code=2)
    assert "placement.yaml" in found


def test_without_a_stack_file_auto_is_refused(run: Run) -> None:
    assert "--gpus: `auto` is only for a stack file" in run("render", "--engine", "vllm", "--gpus", "auto", code=2)


def test_a_bundle_is_for_another_machine(run: Run) -> None:
    run.write(auto("a"))
    run.plan()
    # the command itself asks for Docker first
    with pytest.raises(StackgenError, match="a bundle is for another machine"):
        copy_stack(open_stack(str(run.folder)), {})


def test_rendering_elsewhere_is_refused(run: Run, tmp_path: Path) -> None:
    run.write(auto("a"))
    run.plan()
    assert "recorded next to stack.yaml" in run("render", "-o", str(tmp_path / "other"), code=2)
