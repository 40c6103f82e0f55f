"""Stacks with a model that needs whole nodes of a cluster, next to models that need parts of nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli import main as cli

REVISION = "be673f326cab4cd22ccfef76109faf68e41aa5f1"
SMALL, LARGE = "meta-llama/Llama-3.3-70B-Instruct", "meta-llama/Llama-3.1-405B-Instruct"


def render(tmp_path: Path, capsys: pytest.CaptureFixture[str], models: list[dict[str, Any]], **more: Any) -> list[str]:
    """Renders a stack with these models. Returns the warnings about whole nodes."""
    entries = [{"engine": "vllm", "revision": REVISION, **one} for one in models]
    (tmp_path / "stack.yaml").write_text(json.dumps({"name": "s", "target": "kubernetes", "models": entries, **more}))
    assert cli.main(["render", str(tmp_path), "--json"]) == 0
    return [one for one in json.loads(capsys.readouterr().out)["warnings"] if "waits forever" in one]


def pod(tmp_path: Path, name: str) -> dict[str, Any]:
    """The pod of the Deployment with this name."""
    for one in yaml.safe_load_all((tmp_path / "kubernetes" / f"{name}.yaml").read_text()):
        if one["kind"] == "Deployment":
            template: dict[str, Any] = one["spec"]["template"]
            return template
    raise AssertionError(name)


def select(value: str) -> dict[str, Any]:
    return {"node_selector": {"llm": value}}


def test_small_replicas_are_packed_next_to_a_model_on_whole_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (warning,) = render(tmp_path, capsys, [{"model": SMALL, "gpus": 4, "replicas": 2}, {"model": LARGE, "gpus": 16}])
    assert "models[1]" in warning and SMALL in warning and "8 free GPUs on each of 2 nodes" in warning
    assert "kubernetes.node_selector" in warning
    found = pod(tmp_path, "vllm-llama-3-3-70b-instruct")
    (term,) = found["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    wanted = term["podAffinityTerm"]["labelSelector"]["matchLabels"]
    # the replicas have the label that they look for, and the constraint that spreads them is gone
    assert wanted.items() <= found["metadata"]["labels"].items()
    assert "topologySpreadConstraints" not in found["spec"]
    assert "stackgen-packed" not in (tmp_path / "kubernetes" / "vllm-llama-3-1-405b-instruct.yaml").read_text()


@pytest.mark.parametrize(
    "models",
    [
        # other nodes for each model
        [{"model": SMALL, "gpus": 4, "replicas": 2, "kubernetes": select("small")},
         {"model": LARGE, "gpus": 16, "kubernetes": select("whole")}],
        # replicas that fill a node leave no parts of it
        [{"model": SMALL, "gpus": 8, "replicas": 2}, {"model": LARGE, "gpus": 16}],
        # no model needs a whole node
        [{"model": SMALL, "gpus": 4, "replicas": 2}, {"model": LARGE, "gpus": 4}],
        # each node keeps 2 GPUs beside the group
        [{"model": SMALL, "gpus": 1, "replicas": 2}, {"model": LARGE, "gpus": 12}],
        # a model on the CPU needs no GPU
        [{"model": SMALL, "gpus": "none", "replicas": 2}, {"model": LARGE, "gpus": 16}],
    ],
)  # fmt: skip
def test_replicas_are_spread_if_no_model_needs_their_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], models: list[dict[str, Any]]
) -> None:
    assert render(tmp_path, capsys, models) == []
    spec = pod(tmp_path, "vllm-llama-3-3-70b-instruct")["spec"]
    assert "topologySpreadConstraints" in spec and "affinity" not in spec


def test_a_model_that_fills_one_node_and_autoscaled_replicas_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [{"model": SMALL, "gpus": 1, "kubernetes": {"max_replicas": 3}}, {"model": LARGE, "gpus": 8}]
    scaling = {"kubernetes": {"autoscaling": {"by": "hpa"}}}
    (warning,) = render(tmp_path, capsys, models, **scaling)
    assert "8 free GPUs on one node" in warning
    # 2 GPUs remain, but an autoscaler may start a third replica
    models[1]["gpus"] = 12
    (warning,) = render(tmp_path, capsys, models, **scaling)
    assert "6 free GPUs on each of 2 nodes" in warning
