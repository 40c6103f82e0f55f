"""What `stackgen plan` offers if there is no room for all: each offer is written into stack.yaml and planned again.

The models have the configs of public models and files of their size, without data.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.fit_rows import DATA, read_rows
from stackgen.cli.main import main

GIB = 2**30
BIG, MIDDLE, OTHER, SMALL = (
    "Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-0.6B",
)  # fmt: skip


def write_public_model(folder: Path, name: str) -> Path:
    """A folder with the config of the public model, and one file of the size of its weights; it takes no disk space."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(json.loads((DATA / "models.json").read_text())[name]))
    gib = max(row.number("checkpoint_gib") or 0 for row in read_rows() if row.fields["model"] == name)
    rows = int(gib * GIB) // 2048
    # a name that --quantization counts as a layer's weight
    header = json.dumps(
        {
            "model.layers.0.mlp.up_proj.weight": {
                "dtype": "BF16",
                "shape": [rows, 1024],
                "data_offsets": [0, rows * 2048],
            }
        }
    ).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + rows * 2048)
    return folder


class Planner:
    """Plans a stack of public models in a folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def write(self, machine: str, *models: str, **fields: Any) -> dict[str, Any]:
        kind, count = machine.split(" x ")
        rows = [{"uuid": f"GPU-{number}", "name": kind, "island": "x"} for number in range(int(count))]
        (self.folder / "machine.yaml").write_text(yaml.safe_dump({"gpus": rows}))
        entries = []
        for name in models:
            place = self.folder / name.rpartition("/")[2]
            if not place.exists():
                write_public_model(place, name)
            entries.append({"model": f"./{place.name}", "engine": "vllm", "gpus": "auto", **fields})
        return {"name": "s", "gateway": True, "models": entries}

    def plan(self, stack: dict[str, Any], *arguments: str) -> tuple[int, str]:
        (self.folder / "stack.yaml").write_text(yaml.safe_dump(stack))
        code = main(["plan", str(self.folder), "--machine", str(self.folder / "machine.yaml"), "--offline", *arguments])
        return code, self._capsys.readouterr().out

    def offers(self, stack: dict[str, Any]) -> list[list[dict[str, Any]]]:
        code, text = self.plan(stack, "--json")
        assert code == 1
        return [offer["settings"] for offer in json.loads(text)["offers"]]


@pytest.fixture
def planner(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Planner:
    monkeypatch.setenv("PATH", "/nonexistent")
    return Planner(tmp_path, capsys)


def apply(stack: dict[str, Any], settings: list[dict[str, Any]]) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(stack))
    for one in settings:
        changed["models"][one["model"]][one["field"]] = yaml.safe_load(one["value"])
    return changed


def fields(offer: list[dict[str, Any]]) -> set[tuple[int, str]]:
    return {(one["model"], one["field"]) for one in offer}


CASES = {
    "two small models on two RTX 4090": ("RTX-4090 x 2", (MIDDLE, OTHER), {}),
    "a large model next to a small one on four A100": ("A100-80GB x 4", (BIG, SMALL), {}),
    "a large model next to a small one on two H100": ("H100 x 2", (BIG, SMALL), {}),
    "two models on one RTX 4090": ("RTX-4090 x 1", (MIDDLE, SMALL), {"max_model_len": 16384}),
    "three models on one H100": ("H100 x 1", (MIDDLE, OTHER, SMALL), {"max_model_len": 16384}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_offered_setting_makes_room_for_all(planner: Planner, case: str) -> None:
    gpus, models, more = CASES[case]
    stack = planner.write(gpus, *models, **more)
    offers = planner.offers(stack)
    assert offers
    for offer in offers:
        # another variant of a model is described, and can't be written down
        if all(one["value"] for one in offer):
            code, text = planner.plan(apply(stack, offer), "--dry-run")
            assert code == 0, text


def test_two_small_models_get_one_gpu_each_with_shorter_contexts(planner: Planner) -> None:
    (offer, *_) = planner.offers(planner.write("RTX-4090 x 2", MIDDLE, OTHER))
    assert fields(offer) == {(0, "max_model_len"), (1, "max_model_len")}
    _, text = planner.plan(planner.write("RTX-4090 x 2", MIDDLE, OTHER))
    assert "1 GPU of RTX-4090 instead of 2: too close to call" in text
    assert "then: Qwen3-8B on GPU 0; Llama-3.1-8B-Instruct on GPU 1" in text


def test_a_large_model_shares_its_gpus_at_full_context(planner: Planner) -> None:
    variant, shared = planner.offers(planner.write("A100-80GB x 4", BIG, SMALL))
    assert [one["text"] for one in variant] == ["use a variant with 4-bit weights (AWQ or GPTQ): about 41.42 GiB"]
    assert fields(shared) == {(index, field) for index in (0, 1) for field in ("share_gpus", "gpu_memory_utilization")}
    shares = [float(one["value"]) for one in shared if one["field"] == "gpu_memory_utilization"]
    assert 0.9 < sum(shares) <= 0.95


def test_an_offered_context_is_the_longest_that_fits(planner: Planner) -> None:
    stack = planner.write("RTX-4090 x 2", MIDDLE, OTHER)
    (offer, *_) = planner.offers(stack)
    longer = [{**one, "value": str(int(one["value"]) + 1024)} for one in offer]
    assert planner.plan(apply(stack, longer))[0] == 1


def test_without_any_change_that_helps_the_note_says_so(planner: Planner, capsys: pytest.CaptureFixture[str]) -> None:
    (planner.folder / "stack.yaml").write_text(yaml.safe_dump(planner.write("L4 x 1", BIG)))
    assert main(["plan", str(planner.folder), "--machine", str(planner.folder / "machine.yaml"), "--offline"]) == 1
    printed = capsys.readouterr()
    assert "to make room" not in printed.out and "and none of them makes room" in printed.err


def test_a_large_model_is_compressed_to_leave_a_gpu_for_the_small_one(planner: Planner) -> None:
    compressed, *_ = planner.offers(planner.write("H100 x 3", BIG, SMALL))
    assert [(one["model"], one["field"], one["value"]) for one in compressed] == [(0, "quantization", "fp8")]


def test_a_kind_of_gpu_that_is_only_held_is_no_way_out(planner: Planner) -> None:
    stack = planner.write("RTX-4090 x 1", MIDDLE, SMALL, max_model_len=16384)
    file = planner.folder / "machine.yaml"
    machine = yaml.safe_load(file.read_text())
    machine["gpus"].append({"uuid": "GPU-held", "name": "H100", "held": "training"})
    file.write_text(yaml.safe_dump(machine))
    offers = planner.offers(stack)
    assert offers and all("share_gpus" in {one["field"] for one in offer} for offer in offers)
    _, text = planner.plan(stack)
    assert "H100: all GPUs are taken" in text and "used by training" in text


def test_shares_that_models_have_are_changed_if_nothing_else_helps(planner: Planner) -> None:
    stack = planner.write("RTX-4090 x 1", MIDDLE, SMALL, share_gpus=True, gpu_memory_utilization=0.9)
    offers = planner.offers(stack)
    both = {(0, "gpu_memory_utilization"), (1, "gpu_memory_utilization")}
    assert offers and all(both <= fields(one) for one in offers)
    assert not any(field == "share_gpus" for one in offers for _, field in fields(one))
    for one in offers:
        if all(each["value"] for each in one):
            assert planner.plan(apply(stack, one))[0] == 0


def test_small_models_share_a_gpu_and_leave_the_other_to_the_large_one(planner: Planner) -> None:
    stack = planner.write("RTX-4090 x 2", MIDDLE, SMALL, SMALL)
    stack["models"][2]["served_names"] = ["second"]
    first = planner.offers(stack)[0]
    assert {(1, "share_gpus"), (2, "share_gpus"), (0, "max_model_len")} <= fields(first)
    assert (0, "share_gpus") not in fields(first)
    # longer than next to another model on the same GPU
    assert next(int(one["value"]) for one in first if (one["model"], one["field"]) == (0, "max_model_len")) > 20000
    assert planner.plan(apply(stack, first))[0] == 0


def test_a_model_on_two_gpus_shares_one_of_them(planner: Planner) -> None:
    stack = planner.write("RTX-4090 x 2", "Qwen/Qwen3-14B", SMALL, share_gpus=True, max_model_len="32K")
    for model, share in zip(stack["models"], (0.8, 0.1), strict=True):
        model["gpu_memory_utilization"] = share
    offers = planner.offers(stack)
    assert any(one["field"] == "max_num_seqs" for offer in offers for one in offer)
    for offer in offers:
        # a variant of the model is another folder
        if "model" not in {one["field"] for one in offer}:
            assert planner.plan(apply(stack, offer), "--dry-run")[0] == 0, offer
