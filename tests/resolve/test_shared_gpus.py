"""Models that share a GPU start one after another, in the Compose file and in a rollout; all others start together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stackgen.plan import Dependency, HealthCheck, Service
from stackgen.plan.startup import start_seconds, start_waves
from stackgen.render.templating import render
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from tests.runtimes.test_gateway_rolling import Stack
from tests.runtimes.world import World

HALF = {"share_gpus": True, "gpu_memory_utilization": 0.3}


def waits(*models: dict[str, Any], **fields: Any) -> dict[str, set[str]]:
    """The engines that each engine waits for until they are healthy, as rendered."""
    entries = [
        {"engine": "vllm", "model": "./w", "served_names": [f"m{index}"]} | model for index, model in enumerate(models)
    ]
    plan = resolve(build_spec({"name": "n", "models": entries, "gateway": False} | fields, "test"), ComposeSite(), "t")
    services = yaml.safe_load(render(plan, "stack.yaml")[0].text)["services"]
    return {
        name.partition("-")[2]: {
            other.partition("-")[2]
            for other, how in service.get("depends_on", {}).items()
            if how["condition"] == "service_healthy" and not other.endswith("controller")
        }
        for name, service in services.items()
        if name not in ("fastchat-controller", "fastchat-api")
    }


def test_second_model_on_a_gpu_waits_until_the_first_is_healthy() -> None:
    assert waits({"gpus": [0]} | HALF, {"gpus": [0]} | HALF, {"gpus": [0]} | HALF) == {
        "m0": set(), "m1": {"m0"}, "m2": {"m1"},
    }  # fmt: skip


def test_models_with_their_own_gpus_start_together() -> None:
    assert waits({"gpus": [0]}, {"gpus": [1]}, {"gpus": 1}, {}) == {"m0": set(), "m1": set(), "m2": set(), "m3": set()}


def test_a_model_waits_for_the_users_of_each_of_its_gpus() -> None:
    assert waits({"gpus": [0]} | HALF, {"gpus": [1]} | HALF, {"gpus": [1, 0]} | HALF)["m2"] == {"m0", "m1"}


@pytest.mark.parametrize("driver", ["nvidia", "cdi", "amd"])
def test_the_order_of_the_stack_file_counts_across_engines_and_drivers(driver: str) -> None:
    one, other = (
        {"gpus": [0]} | HALF,
        {"engine": "llamacpp", "file": "x.gguf", "image": "me/llama:1", "gpus": [0]} | HALF,
    )
    assert waits(one, other, one, gpu_driver=driver) == {"m0": set(), "m1": {"m0"}, "m2": {"m1"}}
    assert waits(other, one, gpu_driver=driver) == {"m0": set(), "m1": {"m0"}}


def test_a_fastchat_worker_waits_too() -> None:
    found = waits({"gpus": [0]} | HALF, {"engine": "fastchat", "gpus": [0]} | HALF)
    assert found == {"m0": set(), "m1": {"m0"}}


@given(st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=1, max_size=8), st.randoms())
def test_services_start_after_their_dependencies_and_none_is_forgotten(edges: list[set[int]], random: Any) -> None:
    services = [
        Service(
            name=str(index),
            role="engine",
            comment="",
            image="",
            command=(),
            health=HealthCheck((), start_period=5),
            depends_on=tuple(Dependency(str(other), "service_healthy") for other in sorted(others) if other < index),
        )
        for index, others in enumerate(edges)
    ]
    names = [one.name for one in services]
    random.shuffle(names)
    waves = start_waves(services, names)
    assert sorted(name for wave in waves for name in wave) == sorted(names)
    position = {name: index for index, wave in enumerate(waves) for name in wave}
    for one in services:
        assert all(position[other.service] < position[one.name] for other in one.depends_on)
    assert start_seconds(services) == 5 * len(waves)


def test_a_rollout_starts_added_models_on_a_shared_gpu_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=sk-a\nSTACKGEN_ENGINE_KEY=sk-b\n")
    world = World(tmp_path, monkeypatch)
    stack = Stack(world)

    def model(name: str, gpu: int) -> dict[str, Any]:
        return {"engine": "vllm", "model": "./w", "served_names": [name], "gpus": [gpu]} | HALF

    with world.handles:
        stack.run(model("a", 0))
        stack.update(model("a", 0), model("b", 0), model("c", 0), model("d", 1))
    assert [action for action in world.actions if action.startswith("up vllm")] == ["up vllm-b vllm-d", "up vllm-c"]
