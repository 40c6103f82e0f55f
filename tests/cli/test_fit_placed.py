"""`stackgen fit` of models that share a GPU, and of `gpus: auto` before `stackgen plan`. The models are public ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli.main import main
from tests.cli.test_plan_offers import BIG, MIDDLE, OTHER, SMALL, Planner, write_public_model
from tests.fit.test_models import BGE, BGE_TENSORS, write_model

DOCS = Path(__file__).parents[2] / "docs"
FAQ, GUIDE = DOCS / "faq.md", DOCS / "how-to" / "fit-a-model.md"
ENCODER = "BAAI/bge-m3"


class Fitter(Planner):
    """Estimates a stack in a folder."""

    def fit(self, stack: dict[str, Any], *arguments: str, code: int = 0) -> Any:
        (self.folder / "stack.yaml").write_text(yaml.safe_dump(stack))
        found = main(["fit", str(self.folder), "--offline", *arguments])
        printed = self._capsys.readouterr()
        assert found == code, printed.out + printed.err
        return json.loads(printed.out) if "--json" in arguments else printed.out + printed.err


@pytest.fixture
def fitter(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fitter:
    monkeypatch.setenv("PATH", "/nonexistent")
    return Fitter(tmp_path, capsys)


def shared(fitter: Fitter, *shares: float, **fields: Any) -> dict[str, Any]:
    stack = fitter.write("RTX-4090 x 1", MIDDLE, SMALL, gpus=[0], share_gpus=True, **fields)
    for model, share in zip(stack["models"], shares, strict=True):
        model["gpu_memory_utilization"] = share
    return stack


def write_documented(fitter: Fitter, page: Path) -> dict[str, Any]:
    """The first stack of the page whose models share a GPU, with folders instead of models of the Hub."""
    text = next(one for one in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S) if "share_gpus" in one)
    stack: dict[str, Any] = yaml.safe_load(text)
    for model in stack["models"]:
        folder = fitter.folder / model["model"].rpartition("/")[2]
        if model["model"] == ENCODER:
            write_model(folder, BGE, BGE_TENSORS)
        else:
            write_public_model(folder, model["model"])
        model["model"] = f"./{folder.name}"
    return stack


@pytest.mark.parametrize(("page", "names"), [
    (FAQ, ["Qwen3-8B-FP8", "Qwen3-0.6B"]), (GUIDE, ["Qwen3-8B-FP8", "bge-m3"]),
], ids=["faq", "guide"])  # fmt: skip
def test_documented_stacks_that_share_a_gpu_fit_on_24_gb(fitter: Fitter, page: Path, names: list[str]) -> None:
    data = fitter.fit(write_documented(fitter, page), "--gpu", "RTX-4090", "--json")
    assert [one["verdict"] for one in data["models"]] == ["fits", "fits"]
    (group,) = data["shared"]
    assert group["verdict"] == "fits" and group["models"] == names and group["gpus"] == ["0"]


def test_the_terms_of_both_models_are_added(fitter: Fitter) -> None:
    data = fitter.fit(shared(fitter, 0.5, 0.3), "--gpu", "A100-80GB", "--json")
    (group,) = data["shared"]
    # half a GiB for each CUDA context
    assert group["taken"]["expected"] == sum(one["budget"] for one in data["models"]) + 2**30


def apply_offers(fitter: Fitter, stack: dict[str, Any], gpu: str, group: dict[str, Any]) -> int:
    """The number of offers, each of which was written into the stack, and fits."""
    offers = [one for one in group["changes"] if all(change["value"] for each in one.values() for change in each)]
    for offer in offers:
        changed = json.loads(json.dumps(stack))
        for model in changed["models"]:
            model |= {one["field"]: yaml.safe_load(one["value"]) for one in offer[model["model"][2:]]}
        assert fitter.fit(changed, "--gpu", gpu, "--json")["fits"]
    return len(offers)


def test_settings_that_are_offered_for_a_shared_gpu_fit(fitter: Fitter) -> None:
    stack = shared(fitter, 0.5, 0.4)
    data = fitter.fit(stack, "--gpu", "RTX-4090", "--json", code=1)
    (group,) = data["shared"]
    # more of the memory for one model would leave too little for the other
    assert not any(change["field"] == "gpu_memory_utilization" for one in data["models"] for change in one["changes"])
    # a number of GPUs excludes share_gpus
    assert not any(change["field"] == "gpus" for one in data["models"] for change in one["changes"])
    assert apply_offers(fitter, stack, "RTX-4090", group)


@pytest.mark.parametrize(("gpu", "name", "number"), [("RTX-4090", MIDDLE, 3), ("RTX-4080", SMALL, 1)])
def test_settings_that_are_offered_next_to_an_encoder_fit(fitter: Fitter, gpu: str, name: str, number: int) -> None:
    stack = fitter.write("RTX-4090 x 1", name, gpus=[0], share_gpus=True, max_model_len="16K")
    write_model(fitter.folder / "bge-m3", BGE, BGE_TENSORS)
    stack["models"].append({**stack["models"][0], "model": "./bge-m3", "max_model_len": None})
    for model, share in zip(stack["models"], (0.85, 0.1), strict=True):
        model["gpu_memory_utilization"] = share
    (group,) = fitter.fit(stack, "--gpu", gpu, "--json", code=1)["shared"]
    assert group["verdict"] != "fits"
    assert "kv_cache_dtype" not in {one["field"] for each in group["changes"] for one in each["bge-m3"]}
    assert apply_offers(fitter, stack, gpu, group) == number
    lines = fitter.fit(stack, "--gpu", gpu, code=1).splitlines()
    # on the smaller GPU, no room is left for the CUDA contexts either
    said = (
        "not every model fits into its own share" if gpu == "RTX-4090" else "together on GPU 0 (RTX-4080): doesn't fit"
    )
    assert any(said in one for one in lines if one.startswith(("✗", "?")))
    assert not any("together" in one for one in lines if one.startswith("✓"))


def test_fastchat_on_a_shared_gpu_has_only_its_share(fitter: Fitter) -> None:
    stack = shared(fitter, 0.5, 0.4, engine="fastchat")
    data = fitter.fit(stack, "--gpu", "A100-80GB", "--json", code=1)
    memory = data["models"][0]["gpu"]["memory"]
    assert [one["budget"] for one in data["models"]] == [int(0.5 * memory), int(0.4 * memory)]
    text = fitter.fit(stack, "--gpu", "RTX-4090", code=1)
    assert "but the model's share is only" in text and "fastchat, 0.5 of the memory" in text
    # without a way to limit the context, no shares help
    assert "FastChat limits neither its memory nor the context. Serve Qwen3-8B and Qwen3-0.6B with vLLM" in text
    # alone on the GPU, it has all of it
    stack["models"] = [{**stack["models"][0], "share_gpus": False}]
    (one,) = fitter.fit(stack, "--gpu", "A100-80GB", "--json", code=1)["models"]
    assert one["budget"] == int(0.99 * memory)


def test_models_that_fit_alone_may_not_fit_together(fitter: Fitter) -> None:
    stack = shared(fitter, 0.75, 0.2, max_model_len=2048)
    stack["models"][0]["kv_cache_memory"] = "3g"
    stack["models"][1]["kv_cache_memory"] = "3g"
    text = fitter.fit(stack, "--gpu", "RTX-4090", code=1)
    assert "Qwen3-8B fits" in text and "Qwen3-0.6B fits" in text
    assert "together on GPU 0 (RTX-4090): doesn't fit" in text and "without a fixed size of the KV cache" in text


def test_auto_without_a_place_is_placed_for_the_estimate_only(fitter: Fitter) -> None:
    text = fitter.fit(fitter.write("H100 x 1", BIG, SMALL), "--gpu", "A100-80GB")
    assert "Qwen2.5-72B-Instruct fits on 4 x A100-80GB" in text and "Qwen3-0.6B fits on A100-80GB" in text
    assert "chosen for this estimate only" in text
    assert not (fitter.folder / "placement.yaml").exists()


def test_auto_that_fits_nowhere_is_judged_on_the_most_gpus(fitter: Fitter) -> None:
    data = fitter.fit(fitter.write("L4 x 1", BIG), "--gpu-memory", "8GiB", "--json", code=1)
    assert data["models"][0]["gpu"]["count"] == 8 and data["without_room"] == ["Qwen2.5-72B-Instruct"]


def test_auto_on_this_machine_counts_its_gpus(fitter: Fitter, monkeypatch: pytest.MonkeyPatch) -> None:
    # a script, because no test machine has two GPUs
    from stackgen.runtimes.observation.gpu_tools import QUERY

    values = {"memory.total": "24564", "memory.free": "24200", "memory.used": "4", "compute_cap": "8.9"}
    rows = "\n".join(", ".join({**values, "index": str(n), "uuid": f"GPU-{n}", "name": "NVIDIA GeForce RTX 4090"}.get(
        one, "[N/A]") for one in QUERY) for n in range(2))  # fmt: skip
    tool = fitter.folder / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ncase \"$1\" in *query-gpu*) echo '{rows}';; topo) exit 1;; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    text = fitter.fit(fitter.write("RTX-4090 x 2", MIDDLE, OTHER), code=1)
    assert "✗ there is no room for Llama-3.1-8B-Instruct next to the other models" in text
    assert "models[0] (Qwen3-8B): `max_model_len: 25600`" in text
    fitter.fit(fitter.write("RTX-4090 x 2", MIDDLE, OTHER, max_model_len="16K"))


def test_a_recorded_place_counts(fitter: Fitter) -> None:
    stack = fitter.write("RTX-4090 x 2", MIDDLE, max_model_len="16K", tensor_parallel_size=2)
    assert fitter.plan(stack)[0] == 0
    text = fitter.fit(stack, "--gpu", "RTX-4090")
    assert "fits on 2 x RTX-4090" in text and "for this estimate only" not in text
