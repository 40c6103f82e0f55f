"""`stackgen plan` for a stack on several machines. nvidia-smi and ssh are scripts: no test has three machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.fit_starts import MODELS
from stackgen.cli.main import main
from stackgen.runtimes.observation.gpu_tools import QUERY
from tests.cli.test_plan import TENSORS, Run, auto
from tests.fit.test_models import write_model

HEAD = """\
hosts:
  front: {}
  box1: {address: 10.0.0.2}
  box2: {address: 10.0.0.3}
"""
MACHINES = """\
hosts:
  box1: {gpus: [{uuid: GPU-1a, name: H100, island: x}, {uuid: GPU-1b, name: H100, island: x},
                {uuid: GPU-1c, name: RTX-4090}]}
  box2: {gpus: [{uuid: GPU-2a, name: H100, island: x}, {uuid: GPU-2b, name: H100, island: x}]}
"""


class Lab(Run):
    """A stack on three machines, of which two have GPUs."""

    def write(self, *rows: str, head: str = HEAD) -> None:
        super().write(*rows, head=head)
        (self.folder / "machine.yaml").write_text(MACHINES)

    def places(self) -> dict[str, list[str]]:
        """The GPUs of each service, by `host/service`."""
        found = {}
        for host in ("front", "box1", "box2"):
            file = self.folder / host / "compose.yaml"
            services: dict[str, Any] = yaml.safe_load(file.read_text())["services"] if file.exists() else {}
            for name, one in services.items():
                if reserved := one.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices"):
                    found[f"{host}/{name}"] = reserved[0]["device_ids"]
        return found

    def render(self) -> None:
        self("render", "--no-validate")


@pytest.fixture
def lab(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("PATH", "/nonexistent")
    write_model(tmp_path / "tiny", MODELS["gqa-untied"], TENSORS)
    return Lab(tmp_path, capsys)


def test_models_are_placed_over_all_machines_and_rendered_for_each(lab: Lab) -> None:
    lab.write(auto("large", "tensor_parallel_size: 2"), auto("small"), auto("pair", "replicas: 2"))
    data = json.loads(lab.plan("--json"))
    assert [(one["name"], one["host"], one["gpus"]) for one in data["models"]] == [
        ("large", "box1", ["GPU-1a", "GPU-1b"]), ("small", "box1", ["GPU-1c"]),
        ("pair", "box2", ["GPU-2a"]), ("pair", "box2", ["GPU-2b"]),
    ]  # fmt: skip
    text = lab.plan()
    assert "HOST" in text and "recorded before" in text
    lab.render()
    assert lab.places() == {
        "box1/vllm-large": ["GPU-1a", "GPU-1b"], "box1/vllm-small": ["GPU-1c"],
        "box2/vllm-pair": ["GPU-2a"], "box2/vllm-pair-2": ["GPU-2b"],
    }  # fmt: skip
    # each folder is complete: it is copied to its machine
    for host in ("front", "box1", "box2"):
        assert main(["render", str(lab.folder / host), "--no-validate", "--check"]) == 0
    assert "server box2" in (lab.folder / "front" / "gateway" / "haproxy.cfg").read_text().replace('"', "")


def test_replicas_of_one_model_are_on_several_machines(lab: Lab) -> None:
    lab.write(auto("a", "tensor_parallel_size: 2, replicas: 2"))
    lab.plan()
    lab.render()
    assert lab.places() == {"box1/vllm-a": ["GPU-1a", "GPU-1b"], "box2/vllm-a": ["GPU-2a", "GPU-2b"]}


def test_tensor_parallel_never_crosses_machines(lab: Lab) -> None:
    lab.write(auto("a", "tensor_parallel_size: 4"))
    text = lab.plan(code=1)
    # four are free, on two machines
    assert "H100: 4 needed in one island, 2 free" in text
    assert not (lab.folder / "placement.yaml").exists()


def test_a_model_stays_on_its_hosts_and_others_stay_when_one_is_added(lab: Lab) -> None:
    lab.write(auto("a", "host: [box1, box2]"))
    lab.plan()
    lab.render()
    before = lab.places()
    assert before == {"box1/vllm-a": ["GPU-1c"], "box2/vllm-a": ["GPU-2a"]}
    lab.write(auto("new", "host: box2"), auto("a", "host: [box1, box2]"))
    assert "placement.yaml has no place for this model" in lab("render", code=2)
    assert "`host: box2`" in lab.plan()
    # the folders are written again, without a question
    lab.render()
    assert lab.places() == {**before, "box2/vllm-new": ["GPU-2b"]}
    lab.write(auto("a", "host: [box1, box2], replicas: 2"))
    assert "has places for 2 of 4 replicas" in lab("render", code=2)
    lab.plan()
    lab.render()
    assert lab.places() == {**before, "box1/vllm-a-2": ["GPU-1a"], "box2/vllm-a-2": ["GPU-2b"]}


def test_without_a_plan_render_says_how_to_get_one(lab: Lab) -> None:
    lab.write(auto("a"))
    assert "models[0].gpus: the GPUs of `auto` are not chosen yet (run `stackgen plan`" in lab("render", code=2)


def test_a_machine_without_models_is_named(lab: Lab) -> None:
    lab.write(auto("a", "host: box1"))
    assert "no model is on box2" in lab.plan()


@pytest.mark.parametrize(("text", "expected"), [
    ("gpus: [{uuid: GPU-a, name: H100}]", "lists GPUs without `hosts`"),
    ("hosts: {box9: {gpus: [{uuid: GPU-a, name: H100}]}}", "hosts.box9: is not a machine in the stack's `hosts`"),
    ("hosts: {box1: {gpus: []}}", "hosts.box1.gpus: must be a list"),
    ("hosts: 3", "must name the machines"),
    ("hosts: {box1: {gpus: [{uuid: GPU-a, name: H100}]}, box2: {gpus: [{uuid: GPU-a, name: H100}]}}",
     "hosts.box2: uuid GPU-a is also a GPU of box1"),
    ("hosts: {box1: {gpus: [{uuid: '1', name: H100}]}}", "hosts.box1.gpus[0]: uuid"),
])  # fmt: skip
def test_wrong_files_are_errors_with_their_place(lab: Lab, text: str, expected: str) -> None:
    lab.write(auto("a"))
    (lab.folder / "machine.yaml").write_text(text)
    assert expected in lab.plan(code=2)


def test_a_file_with_hosts_needs_a_stack_with_hosts(lab: Lab) -> None:
    lab.write(auto("a"), head="")
    assert "the stack runs on one machine" in lab.plan(code=2)


def write_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, **answers: str) -> None:
    """`ssh ADDRESS COMMAND` runs the command with the GPUs of that address; box1 has two GPUs, one of which is used."""
    folder.mkdir()
    rows = {}
    for name, count in (("10.0.0.2", 2), ("10.0.0.3", 1)):
        values = {"memory.total": "81559", "memory.free": "81000", "memory.used": "4", "compute_cap": "9.0"}
        rows[name] = "\n".join(", ".join({**values, "index": str(n), "uuid": f"GPU-{name}-{n}".replace(".", "-"),
                                          "name": "NVIDIA H100 80GB HBM3"}.get(one, "[N/A]") for one in QUERY)
                               for n in range(count))  # fmt: skip
    (folder / "nvidia-smi").write_text("#!/bin/sh\nexit 1\n")
    (folder / "ssh").write_text(f"""#!/bin/sh
while [ "$1" != -- ]; do shift; done
case "$2 $3" in
  {answers.get("broken", "nothing")}*) echo 'Permission denied (publickey).' >&2; exit 255;;
  *compute-apps*) case $2 in 10.0.0.2) echo 'GPU-10-0-0-2-0, 77, python3, 9000';; esac;;
  '10.0.0.2 '*query-gpu*) echo '{rows["10.0.0.2"]}';;
  '10.0.0.3 '*query-gpu*) echo '{rows["10.0.0.3"]}';;
  *topo*) exit 9;;
esac
""")
    for one in folder.iterdir():
        one.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_gpus_of_all_machines_are_read_over_ssh(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tools(lab.folder / "bin", monkeypatch)
    lab.write(auto("a"), auto("b"))
    text = lab("plan", "--ssh")
    assert "GPU 0 of box1 (H100): used by the process python3 (pid 77, 8.8 GiB)" in text
    lab.render()
    assert lab.places() == {"box1/vllm-a": ["GPU-10-0-0-2-1"], "box2/vllm-b": ["GPU-10-0-0-3-0"]}


def test_a_machine_that_ssh_can_not_reach_is_an_error_with_the_way_out(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tools(lab.folder / "bin", monkeypatch, broken="10.0.0.3")
    lab.write(auto("a"))
    text = lab("plan", "--ssh", code=3)
    assert "box2 (10.0.0.3) can't be reached over SSH: Permission denied" in text and "--machine FILE" in text
    assert "`--ssh` reads their GPUs" in lab("plan", code=2)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "no `ssh`" in lab("plan", "--ssh", code=3)


def test_the_printed_machine_is_a_file_for_another_one(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = lab.folder / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    values = {"memory.total": "30000", "memory.free": "29900", "memory.used": "4"}
    row = ", ".join(
        {**values, "index": "3", "uuid": "GPU-new", "name": "NVIDIA New"}.get(one, "[N/A]") for one in QUERY
    )
    tool.write_text(f"#!/bin/sh\ncase \"$1\" in *query-gpu*) echo '{row}';; topo) exit 1;; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    text = lab("plan", "--print-machine")
    lab.write(auto("a"), head="")
    (lab.folder / "machine.yaml").write_text(text[: text.index("warning")] if "warning" in text else text)
    monkeypatch.setenv("PATH", "/nonexistent")
    data = json.loads(lab.plan("--json"))
    assert [(one["uuid"], one["index"], one["name"]) for one in data["gpus"]] == [("GPU-new", 3, "NVIDIA New")]
    assert data["gpus"][0]["memory"] == pytest.approx(30000 * 2**20 * 0.985, rel=1e-4)
