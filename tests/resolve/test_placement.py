"""Which replica gets which GPUs. Compose would give two services with `count: 1` the same GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackgen.cli.main import main
from stackgen.plan import GpuRequest
from stackgen.resolve.pipeline import resolve
from stackgen.resolve.placement import place
from stackgen.spec import StackSpec
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite


def stack(*models: dict[str, Any], **fields: Any) -> StackSpec:
    entries = [{"model": f"org/m{index}", "engine": "vllm"} | model for index, model in enumerate(models)]
    return build_spec({"name": "demo", "models": entries} | fields, "test")


def ids(*models: dict[str, Any], **fields: Any) -> list[tuple[str, ...]]:
    """The GPU ids of each replica in file order; the placement must have no errors."""
    requests, mistakes = place(stack(*models, **fields))
    assert not mistakes
    return [request.ids if request else () for request in requests.values()]


def mistake(*models: dict[str, Any], **fields: Any) -> tuple[str, str, str]:
    """Path, message and hint of the only error."""
    _, mistakes = place(stack(*models, **fields))
    assert len(mistakes) == 1, [str(one) for one in mistakes]
    return mistakes[0].path, mistakes[0].message, mistakes[0].hint


def test_a_single_count_stays_a_count() -> None:
    requests, _ = place(stack({"gpus": 2}))
    assert requests == {(0, 0): GpuRequest("nvidia", count=2)}


def test_models_without_gpus_get_no_request() -> None:
    requests, mistakes = place(stack({"gpus": None}, {"gpus": "none"}, {}))
    assert set(requests.values()) == {None}
    assert not mistakes


def test_several_counts_become_indices_in_file_order() -> None:
    assert ids({"gpus": 2}, {"gpus": 1}, {"gpus": "none"}, {"gpus": 2}) == [("0", "1"), ("2",), (), ("3", "4")]


def test_explicit_placement_turns_a_single_count_into_indices() -> None:
    requests, _ = place(stack({"gpus": 2}), explicit=True)
    assert requests == {(0, 0): GpuRequest("nvidia", ids=("0", "1"))}
    requests, mistakes = place(stack({"gpus": "all"}, {}), explicit=True)
    assert (requests, mistakes) == ({(0, 0): GpuRequest("nvidia", count=-1), (1, 0): None}, [])


def test_adding_a_replica_moves_no_first_replica() -> None:
    assert ids({"gpus": 1, "replicas": 2}, {"gpus": 2}, {"gpus": 1}) == [("0",), ("4",), ("1", "2"), ("3",)]
    before = [{"gpus": 1}, {"gpus": 2}, {"gpus": 1}]
    first = [request.ids for request in place(stack(*before), explicit=True)[0].values() if request]
    for scaled in range(3):
        models = [one | ({"replicas": 3} if index == scaled else {}) for index, one in enumerate(before)]
        requests, _ = place(stack(*models), explicit=True)
        assert [requests[index, 0].ids for index in range(3)] == first  # type: ignore[union-attr]


def test_counts_skip_indices_that_any_model_claims() -> None:
    assert ids({"gpus": 2}, {"gpus": [1, 3]}, {"gpus": 1}) == [("0", "2"), ("1", "3"), ("4",)]


def test_replicas_get_separate_gpus() -> None:
    assert ids({"gpus": 1, "replicas": 3}) == [("0",), ("1",), ("2",)]
    assert ids({"gpus": [4, 5, 6, 7], "replicas": 2}) == [("4", "5"), ("6", "7")]
    assert ids({"gpus": ["GPU-a", "GPU-b"], "replicas": 2}) == [("GPU-a",), ("GPU-b",)]


def test_an_uneven_gpu_list_is_rejected() -> None:
    path, message, hint = mistake({"gpus": [0, 1, 2], "replicas": 2})
    assert path == "models[0].gpus"
    assert "the number of GPUs (3) can't be divided evenly among 2 replicas" in message
    assert hint == "use 2, 4, … GPUs"


def test_many_replicas_get_enough_indices() -> None:
    given_ = ids({"gpus": 16, "replicas": 64})
    assert given_[-1][-1] == "1023"


def test_more_gpus_than_a_machine_has_are_rejected() -> None:
    path, message, hint = mistake({"gpus": 24})
    assert path == "models[0].gpus" and message.startswith("24 GPUs for each replica are more than one machine has")
    assert "set `gpus` to the number of GPUs on one machine" in hint and "`target: kubernetes`" in hint
    # 16 replicas with two GPUs each may be on a machine that only its owner knows
    assert len(ids({"gpus": 2, "replicas": 16})) == 16


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"])
@pytest.mark.parametrize("gpus", [2, [2, 3], "none"])
def test_variables_that_choose_gpus_are_rejected_with_the_field(name: str, gpus: Any) -> None:
    path, message, hint = mistake({"gpus": gpus, "extra_env": {name: "2,3"}})
    assert path == f"models[0].extra_env.{name}" and "contradicts `gpus`" in message
    assert hint == "remove the variable, and set for example `gpus: [2,3]`"
    # these values hide all GPUs, which a model on the CPU may want
    assert ids({"gpus": gpus, "extra_env": {name: ""}})


def test_an_overlap_names_both_models() -> None:
    path, message, hint = mistake({"gpus": [0, 1]}, {"gpus": [2]}, {"gpus": [1]})
    assert (path, message) == ("models[2].gpus", "GPU 1 is used by models[0] and models[2]")
    assert "share_gpus" in hint


def test_overlapping_uuids_are_rejected() -> None:
    assert "GPU GPU-a is used by" in mistake({"gpus": ["GPU-a"]}, {"gpus": ["GPU-a"]})[1]


SHARE = {"gpus": [0], "share_gpus": True, "gpu_memory_utilization": 0.45}


def test_sharing_needs_consent_and_memory_of_all_models() -> None:
    assert ids(SHARE, SHARE) == [("0",), ("0",)]
    assert "is used by" in mistake(SHARE, SHARE | {"share_gpus": False})[1]
    assert (
        "each of these models needs gpu_memory_utilization"
        in mistake(SHARE, SHARE | {"gpu_memory_utilization": None})[1]
    )
    assert "adds up to 0.96" in mistake(SHARE, SHARE | {"gpu_memory_utilization": 0.51})[1]
    # at the limit, with a sum that binary floats can't represent exactly
    assert ids(SHARE, SHARE | {"gpu_memory_utilization": 0.5}) == [("0",), ("0",)]
    assert "models[0] and models[1] and models[2]" in mistake(SHARE, SHARE, SHARE)[1]


@pytest.mark.parametrize(
    ("models", "silent"),
    [
        (({"gpus": 1}, {"gpus": 1}), [0, 1]),
        (({"gpus": [0]}, {"gpus": [0]}), []),
        (({"gpus": [0]}, {"gpus": [0]}, {"gpus": [1]}), [2]),
        (({"gpus": "none"}, {"gpus": 1, "share_gpus": False}), [0]),
    ],
)
def test_models_that_share_no_gpu_in_spite_of_share_gpus_get_a_warning(
    models: tuple[dict[str, Any], ...], silent: list[int]
) -> None:
    made = resolve(stack(*(SHARE | model for model in models)), ComposeSite(), "test")
    found = [one for one in made.warnings if "share_gpus" in one]
    assert [one.partition(".")[0] for one in found] == [f"models[{index}]" for index in silent]
    assert all("`gpus: [0]` for both" in one for one in found)


def test_engines_without_a_limit_of_their_memory_get_a_warning_if_they_share_a_gpu() -> None:
    gguf = {"engine": "llamacpp", "model": "./a.gguf"}
    made = resolve(stack(SHARE, SHARE | {"engine": "fastchat"}, gguf | SHARE | {"gpus": [1]}), ComposeSite(), "test")
    (found,) = [one for one in made.warnings if "does not limit" in one]
    assert found.startswith("models[1].gpu_memory_utilization does not limit FastChat") and "`stackgen fit`" in found
    made = resolve(stack(SHARE, gguf | SHARE), ComposeSite(), "test")
    assert [one for one in made.warnings if "gpu_memory_utilization does not limit llama.cpp" in one]


def test_shared_memory_is_summed_per_gpu() -> None:
    assert ids(SHARE | {"gpus": [0, 1]}, SHARE, SHARE | {"gpus": [1]}) == [("0", "1"), ("0",), ("1",)]


def test_all_gpus_go_to_a_single_replica() -> None:
    requests, mistakes = place(stack({"gpus": "all"}))
    assert (requests, mistakes) == ({(0, 0): GpuRequest("nvidia", count=-1)}, [])
    assert "can't be divided among 2 replicas" in mistake({"gpus": "all", "replicas": 2})[1]
    assert mistake({"gpus": "all"}, {"gpus": 1})[:2] == ("models[0].gpus", "`all` leaves no GPU for other models")
    # a model on the CPU needs none
    assert ids({"gpus": "all"}, {}) == [(), ()]


def test_a_count_next_to_a_uuid_is_rejected() -> None:
    path, message, _ = mistake({"gpus": ["GPU-a"]}, {"gpus": 1})
    assert path == "models[1].gpus"
    assert "can't be combined with GPU-a" in message


def test_cdi_ids_are_full_device_names() -> None:
    assert ids({"gpus": 2}, gpu_driver="cdi") == [("nvidia.com/gpu=0", "nvidia.com/gpu=1")]
    assert ids({"gpus": "all"}, gpu_driver="cdi") == [("nvidia.com/gpu=all",)]
    assert ids({"gpus": ["amd.com/gpu=3", 1]}, gpu_driver="cdi") == [("amd.com/gpu=3", "nvidia.com/gpu=1")]


@pytest.mark.parametrize("driver", ["nvidia", "amd", "cdi"])
def test_requests_use_the_gpu_driver_of_the_stack(driver: str) -> None:
    requests, _ = place(stack({"gpus": [0]}, gpu_driver=driver))
    assert requests[0, 0] is not None
    assert requests[0, 0].driver == driver


gpus = (
    st.integers(1, 5)
    | st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True)
    | st.sampled_from(["all", "none", ["GPU-a"], ["GPU-b", 1]])
)
entry = st.fixed_dictionaries(
    {"gpus": gpus, "replicas": st.integers(1, 3)},
    optional={"share_gpus": st.booleans(), "gpu_memory_utilization": st.sampled_from([0.3, 0.45, 0.9])},
)


@settings(max_examples=400, deadline=None)
@given(models=st.lists(entry, min_size=1, max_size=4))
def test_valid_placements_match_the_request_and_share_only_by_consent(models: list[dict[str, Any]]) -> None:
    spec = stack(*models)
    requests, mistakes = place(spec)
    if mistakes:
        assert all(one.path.startswith("models[") and one.message for one in mistakes)
        return
    assert set(requests) == {(m, r) for m, model in enumerate(models) for r in range(model["replicas"])}
    users: dict[str, list[int]] = {}
    with_gpus = [request for request in requests.values() if request]
    for (index, _), request in requests.items():
        expected = spec.models[index].gpus
        replicas = spec.models[index].replicas
        if expected == 0:
            assert request is None
            continue
        assert request is not None
        assert bool(request.ids) != bool(request.count)  # Compose rejects both, and interprets neither as all
        size = len(request.ids) or request.count
        assert size == (
            -1 if expected == "all" else expected if isinstance(expected, int) else len(expected) / replicas
        )
        # a count is safe only if no other service needs a GPU
        assert request.ids or len(with_gpus) == 1
        for gpu in request.ids:
            users.setdefault(gpu, []).append(index)
    for sharing in users.values():
        if len(sharing) > 1:
            assert all(spec.models[index].share_gpus for index in sharing)
            assert sum(spec.models[index].gpu_memory_utilization for index in sharing) <= 0.951


counted = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(models=counted, data=st.data())
def test_adding_a_replica_moves_no_earlier_round(models: list[tuple[int, int]], data: Any) -> None:
    """Only replicas of the same or a later round may move, that is, those of models with more replicas."""
    which = data.draw(st.integers(0, len(models) - 1))
    entries = [{"gpus": gpus or "none", "replicas": replicas} for gpus, replicas in models]
    before, _ = place(stack(*entries), explicit=True)
    entries[which]["replicas"] += 1
    after, _ = place(stack(*entries), explicit=True)
    for (model, replica), request in before.items():
        if replica < models[which][1]:
            assert after[model, replica] == request


@settings(max_examples=100, deadline=None)
@given(models=st.lists(entry, min_size=1, max_size=4))
def test_placement_is_deterministic(models: list[dict[str, Any]]) -> None:
    assert place(stack(*models)) == place(stack(*models))


@pytest.mark.parametrize(("fields", "model", "said"), [
    ({}, {"gpus": 16}, "all 16 GPUs of a replica must be in one machine"), ({}, {"gpus": 8}, ""),
    ({"target": "kubernetes"}, {"gpus": 16, "tensor_parallel_size": 16}, "16 is more than the 8 GPUs of a node"),
    ({"target": "kubernetes"}, {"gpus": 16}, ""),
])  # fmt: skip
def test_more_gpus_than_a_machine_has_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any], model: dict[str, Any], said: str
) -> None:
    entry = {"model": "org/m", "engine": "vllm", "revision": "abc"} | model
    (tmp_path / "stack.yaml").write_text(json.dumps({"name": "n", "models": [entry]} | fields))
    assert main(["render", str(tmp_path), "--no-validate", "--json"]) == 0
    found = [one for one in json.loads(capsys.readouterr().out)["warnings"] if " GPUs of a " in one]
    assert len(found) == (said != "") and said in "".join(found)
