"""GPUs that containers of other stacks have too, and GPUs that `gpus: all` leaves idle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stackgen.doctor.collect import collect_start_inputs
from stackgen.doctor.facts import Container, Host
from stackgen.doctor.table import find_start_failures
from stackgen.runtimes.observation.containers import parse_reservation
from stackgen.stack.folder import open_stack
from tests.doctor.hosts import (
    EIGHT_80,
    MIXED,
    NOTHING_KNOWN,
    ONE_24,
    findings,
    problem_ids,
    single_problem,
    write_stack,
)

# what `docker inspect` of a vLLM container of a stack contains
COMMAND = ["/stackgen/supervise.sh", "vllm", "serve", "org/m", "--port", "8000"]


def inspected(*requests: dict[str, Any], args: list[str] = COMMAND, path: str = "/bin/sh") -> dict[str, Any]:
    return {"Path": path, "Args": args, "HostConfig": {"DeviceRequests": list(requests) or None}}


def reserve(count: int = 0, ids: list[str] | None = None, driver: str = "nvidia") -> dict[str, Any]:
    return {"Driver": driver, "Count": count, "DeviceIDs": ids, "Capabilities": [["gpu"]], "Options": {}}


def vllm(*ids: str, count: int = 0, share: float | None = 0.92, project: str = "other") -> Container:
    return Container(f"{project}-vllm-1", project, (), count, ids, share)


def with_containers(host: Host, *containers: Container) -> Host:
    return replace(host, containers=containers)


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        (inspected(), (0, (), None)),
        (inspected(reserve(ids=["0", "1"])), (0, ("0", "1"), 0.92)),
        (inspected(reserve(count=1)), (1, (), 0.92)),
        # `docker run --gpus all` sets no driver
        (inspected(reserve(count=-1, driver="")), (-1, (), 0.92)),
        (inspected(reserve(ids=["nvidia.com/gpu=0"], driver="cdi")), (0, ("nvidia.com/gpu=0",), 0.92)),
        (inspected(reserve(1), args=[*COMMAND, "--gpu-memory-utilization", "0.45"]), (1, (), 0.45)),
        (inspected(reserve(1), args=[*COMMAND, "--gpu-memory-utilization", "x"]), (1, (), None)),
        (inspected(reserve(1), args=[*COMMAND, "--kv-cache-memory-bytes=4G"]), (1, (), None)),
        (inspected(reserve(1), args=[*COMMAND, "--enable-sleep-mode"]), (1, (), None)),
        (inspected(reserve(1), path="vllm", args=["serve", "org/m"]), (1, (), 0.92)),
        (inspected(reserve(1), args=["python3", "train.py"]), (1, (), None)),
        ({"HostConfig": {}}, (0, (), None)),
    ],
)
def test_reservations_of_containers_are_read(about: dict[str, Any], expected: tuple[object, ...]) -> None:
    found = parse_reservation(about)
    assert (found["gpu_count"], found["gpu_ids"], found["gpu_share"]) == expected


@pytest.mark.parametrize(
    ("other", "fields", "free"),
    [
        (vllm(count=1), {}, "[1]"),
        (vllm("0", "2"), {}, "[1]"),
        (vllm("0", "2"), {"gpus": 2}, "[1, 3]"),
        (vllm("nvidia.com/gpu=0"), {"gpus": [0]}, "[1]"),
        (vllm("GPU-00000000-0000"), {"gpus": [0]}, "[1]"),
        (vllm("3"), {"gpus": ["GPU-00000003-0000-4000-8000-000000000003"]}, "[0]"),
        (vllm("0", share=0.5), {"gpu_memory_utilization": 0.6}, "[1]"),
    ],
)
def test_a_gpu_of_another_stack_without_memory_for_both_fails(
    other: Container, fields: dict[str, Any], free: str, tmp_path: Path
) -> None:
    path = write_stack(tmp_path, **fields)
    machine = with_containers(EIGHT_80, other)
    found = single_problem(findings(machine, path), "SG-P045", "fail")
    assert found.place == "models[0].gpus"
    assert "container other-vllm-1 of the stack other" in found.evidence
    assert f"set `gpus: {free}`" in found.fix
    # two engines that need more than a GPU's memory can't start, so `up` refuses before it pulls an image
    stopping = find_start_failures(collect_start_inputs(machine, open_stack(str(path))))
    assert [one.id for one in stopping] == ["SG-P045"]


@pytest.mark.parametrize(
    ("other", "fields"),
    [
        # the memory is enough for both
        (vllm("0", share=0.45), {"gpu_memory_utilization": 0.5}),
        # unknown programs, such as an exporter of GPU metrics, which has all GPUs and uses no memory
        (vllm(count=-1, share=None), {}),
        (vllm("0", share=None, project=""), {}),
    ],
)
def test_a_gpu_that_may_be_shared_gives_a_warning(other: Container, fields: dict[str, Any], tmp_path: Path) -> None:
    path = write_stack(tmp_path, **fields)
    found = single_problem(findings(with_containers(EIGHT_80, other), path), "SG-P045", "warn")
    assert "on purpose" in found.fix
    assert not find_start_failures(collect_start_inputs(with_containers(EIGHT_80, other), open_stack(str(path))))


def test_the_fix_leaves_the_gpus_of_other_models_alone(tmp_path: Path) -> None:
    path = write_stack(tmp_path)
    second = "- {model: ./model, engine: vllm, gpus: [1], served_names: [n]}"
    path.write_text(path.read_text().replace("models:\n", f"models:\n{second}\n"))
    found = [one for one in findings(with_containers(EIGHT_80, vllm("0")), path) if one.id == "SG-P045"]
    assert [(one.status, one.place) for one in found] == [("fail", "models[1].gpus"), ("ok", "models[0]")]
    assert "`gpus: [2]`" in found[0].fix


@pytest.mark.parametrize("other", [vllm("1"), vllm("0", project="t"), Container("web", "web")])
def test_other_gpus_and_the_stack_itself_are_no_problem(other: Container, tmp_path: Path) -> None:
    found = findings(with_containers(EIGHT_80, other), write_stack(tmp_path))
    assert not problem_ids(found) and "SG-P045" in problem_ids(found, "ok")


def test_without_nvidia_smi_indices_are_compared(tmp_path: Path) -> None:
    path = write_stack(tmp_path)
    machine = replace(NOTHING_KNOWN, containers=(vllm(count=1),))
    assert "SG-P045" in problem_ids(findings(machine, path), "fail")
    assert "SG-P045" in problem_ids(findings(NOTHING_KNOWN, path), "unknown")
    # the index of a UUID is unknown
    uuid = replace(NOTHING_KNOWN, containers=(vllm("GPU-00000003-0000-4000-8000-000000000003"),))
    assert "SG-P045" in problem_ids(findings(uuid, path), "unknown")
    cpu = write_stack(tmp_path / "cpu", gpus="none")
    assert "SG-P045" not in {one.id for one in findings(machine, cpu)}


def test_all_gpus_are_compared_with_the_parallel_sizes(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus="all", tensor_parallel_size=2)
    assert not problem_ids(findings(replace(MIXED, gpus=(EIGHT_80.gpus or ())[:2]), path))
    idle = single_problem(findings(EIGHT_80, path), "SG-P044", "warn")
    assert idle.message == "GPUs that would be idle: 6" and idle.place == "models[0].tensor_parallel_size"
    missing = single_problem(findings(ONE_24, path), "SG-P044", "fail")
    assert "at most 1" in missing.fix
    data = write_stack(tmp_path / "data", gpus="all", tensor_parallel_size=2, data_parallel_size=4)
    assert not problem_ids(findings(EIGHT_80, data))
    assert "SG-P044" in problem_ids(findings(NOTHING_KNOWN, data), "unknown")


def test_an_index_and_a_uuid_of_the_same_gpu_are_found(tmp_path: Path) -> None:
    uuid = "GPU-00000003-0000-4000-8000-000000000003"

    def check(second: str) -> list[tuple[str, str]]:
        path = write_stack(tmp_path, gpus=[uuid], gpu_memory_utilization=0.5, share_gpus=True)
        path.write_text(path.read_text().replace("models:\n", f"models:\n- {second}\n"))
        found = [one for one in findings(with_containers(EIGHT_80), path) if one.id == "SG-P045" and one.status != "ok"]
        return [(one.status, one.message) for one in found]

    model = "{model: ./model, engine: vllm, served_names: [n], gpu_memory_utilization: 0.4, gpus: "
    message = "models[0] and models[1] name the same GPU 3, by its index and by its UUID"
    assert check(f"{model}[3]}}") == [("fail", message)]
    assert check(f"{model}[2]}}") == check(f"{model}[3], share_gpus: true}}") == []


def test_a_uuid_that_two_gpus_begin_with_is_not_unique(tmp_path: Path) -> None:
    def check(name: str) -> tuple[str, str]:
        found = [one for one in findings(EIGHT_80, write_stack(tmp_path, gpus=[name])) if one.id == "SG-P033"]
        return found[0].status, found[0].message

    assert check("GPU-0000000") == ("fail", "GPU-0000000 is the beginning of several UUIDs")
    assert check("GPU-00000003")[0] == "ok"
