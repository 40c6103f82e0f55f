"""`stackgen scale` before anything changes: arguments, models, stack.yaml with its comments, and reported downtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stackgen.errors import SpecError, StackgenError
from stackgen.resolve.pipeline import resolve
from stackgen.runtimes.rollout import downtime, scaling
from stackgen.runtimes.rollout.drift import Container
from stackgen.runtimes.rollout.scaling import parse_replica_counts, scale_stack
from stackgen.stack.load import parse_stack
from stackgen.targets.compose import ComposeSite

TEXT = """\
# ours
name: demo
gateway: true  # one way in
models:
  - model: org/Big-1B  # the first
    engine: vllm
    served_names: [big, large]
    gpus: 1
  - model: org/small
    engine: vllm
    gpus: 1
    replicas: 2  # two
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scaling, "running_gateway", lambda name: object())
    (tmp_path / "stack.yaml").write_text(TEXT)
    return tmp_path


def test_arguments_are_model_counts_and_a_stack() -> None:
    assert parse_replica_counts(["big=2"]) == ({"big": 2}, ".")
    assert parse_replica_counts(["big=2", "org/a=b=3", "folder"]) == ({"big": 2, "org/a=b": 3}, "folder")
    for args in (["folder"], ["big=two"], ["big=1", "a", "b"], ["big=-1"]):
        with pytest.raises(StackgenError):
            parse_replica_counts(args)


@pytest.mark.parametrize("name", ["big", "large", "org/Big-1B"])
def test_model_is_found_by_any_of_its_names(folder: Path, name: str) -> None:
    stack, text, lines = scale_stack(str(folder), {name: 3})
    assert stack.spec.models[0].replicas == 3
    assert "+    replicas: 3" in lines
    assert text == TEXT.replace("# the first\n", "# the first\n    replicas: 3\n")
    assert (folder / "stack.yaml").read_text() == TEXT


def test_existing_number_is_replaced_and_its_comment_kept(folder: Path) -> None:
    _, text, _ = scale_stack(str(folder), {"small": 1, "big": 2})
    assert "replicas: 1  # two" in text
    assert "replicas: 2\n" in text


def test_same_number_changes_nothing(folder: Path) -> None:
    assert scale_stack(str(folder), {"small": 2})[1:] == ("", [])


def test_scaling_one_model_moves_no_gpus_of_another(folder: Path) -> None:
    before = {one.name: one.gpus for one in scale_stack(str(folder), {"small": 2})[0].plan.services}
    after = {one.name: one.gpus for one in scale_stack(str(folder), {"small": 4})[0].plan.services}
    assert before.items() <= after.items()
    small = {one.name: one for one in scale_stack(str(folder), {"small": 2})[0].plan.services}["vllm-small"]
    assert small.gpus and small.gpus.ids == ("1",)


def test_invalid_requests_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StackgenError) as caught:
        scale_stack(str(folder), {"bigg": 2})
    assert caught.value.hint == "did you mean big?"
    with pytest.raises(SpecError, match="replicas"):
        scale_stack(str(folder), {"big": 0})
    (folder / "stack.yaml").write_text(TEXT.replace("gpus: 1\n  -", "gpus: [0]\n  -"))
    with pytest.raises(SpecError, match="can't be divided evenly among 2 replicas"):
        scale_stack(str(folder), {"big": 2})
    monkeypatch.setattr(scaling, "running_gateway", lambda name: None)
    with pytest.raises(StackgenError) as caught:
        scale_stack(str(folder), {"big": 2})
    assert "gateway: true" in caught.value.hint
    assert (folder / "stack.yaml").read_text().startswith("# ours")


def test_scaling_to_one_does_not_drop_the_gateway_by_accident(folder: Path) -> None:
    one = TEXT.partition("  - model: org/small")[0].replace("gateway: true  # one way in\n", "")
    (folder / "stack.yaml").write_text(one.replace("gpus: 1", "gpus: 1\n    replicas: 2"))
    with pytest.raises(StackgenError, match="lose its gateway"):
        scale_stack(str(folder), {"big": 1})


def container(name: str) -> Container:
    return Container(
        service=name, id="id", hash="hash", image="image", running=True, completed=False, gpus=frozenset(),
        environment=(),
    )  # fmt: skip


def downtime_of(models: str, changed: list[str], removed: list[str], monkeypatch: Any) -> list[str]:
    monkeypatch.setattr(downtime, "last_start_seconds", lambda engine, container: 41.2)
    spec = parse_stack(f"name: n\ngateway: true\nmodels: [{models}]")
    plan = resolve(spec, ComposeSite())
    running = {name: container(name) for name in (*changed, *removed, "gateway")}
    return list(downtime.find_downtime(plan, changed, removed, running))


def test_downtime_is_reported_for_services_without_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, two = "{model: ./a, engine: vllm}", "{model: ./b, engine: vllm, replicas: 2}"
    chat = "{model: ./c, engine: fastchat, replicas: 2}"
    everything = f"{alone}, {two}, {chat}"
    assert downtime_of(everything, ["vllm-b", "vllm-b-2"], ["vllm-b-3"], monkeypatch) == []
    (one,) = downtime_of(everything, ["vllm-a"], [], monkeypatch)
    assert "no other replica" in one and "took 41 s" in one
    assert "at most 30 s" in downtime_of(everything, ["gateway"], [], monkeypatch)[0]
    assert "can't drain a worker" in downtime_of(everything, ["fastchat-c"], [], monkeypatch)[0]
    assert "can't drain a worker" in downtime_of(everything, [], ["fastchat-c-2"], monkeypatch)[0]
    routed = "{model: ./b, engine: vllm, replicas: 2, cache_aware: true}"
    assert downtime_of(routed, ["vllm-b", "vllm-b-2", "router-b"], [], monkeypatch) == []
    (sole,) = downtime_of("{model: ./c, engine: fastchat}", ["fastchat-c"], [], monkeypatch)
    assert "no other replica" in sole
    assert len(downtime_of(everything, ["fastchat-api", "fastchat-controller"], [], monkeypatch)) == 2
