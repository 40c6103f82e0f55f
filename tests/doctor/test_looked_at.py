"""Doctor says `ok` only to what it looked at: with a fact missing, no check repeats its `ok`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from stackgen.check.huggingface import HubLookup
from stackgen.doctor.collect import collect_inputs, try_open_stack
from stackgen.doctor.facts import GIB, Disk, Host
from stackgen.doctor.finding import DoctorInputs
from stackgen.doctor.table import CHECKS

from .hosts import CONFIG, EIGHT_80, ONE_24, findings, make_host, problem_ids, write_model, write_stack

QUANTIZED = CONFIG | {"quantization_config": {"quant_method": "fp8"}}
HUB = HubLookup("ok", download_bytes=GIB, commit="a" * 40, files=("config.json",), config=QUANTIZED)
CDI = replace(ONE_24, cdi=("nvidia.com/gpu",))
# stacks that together make every check look at something
STACKS: dict[str, tuple[Host, dict[str, Any]]] = {
    "two GPUs": (EIGHT_80, {"gpus": 2, "config": QUANTIZED, "max_model_len": 4096, "cpuset": "0-3",
                            "kv_cache_dtype": "fp8",
                            "extra_args": ["--max-num-batched-tokens", "4096"]}),
    "pipeline": (EIGHT_80, {"gpus": 4, "pipeline_parallel_size": 2}),
    "experts": (EIGHT_80, {"gpus": 2, "expert_parallel": True, "config": QUANTIZED | {"num_experts": 8}}),
    "all GPUs": (EIGHT_80, {"gpus": "all", "tensor_parallel_size": 8}),
    "CPU": (make_host(()), {"gpus": "none", "kv_cache_dtype": "fp8"}),
    "llama.cpp": (ONE_24, {"engine": "llamacpp", "model": "o/m-GGUF", "file": "m.gguf"}),
    "Hub": (ONE_24, {"model": "org/m", "max_model_len": 4096, "stack_bind": "192.168.1.5",
                     "lora_adapters": [{"name": "l", "path": "org/l"}]}),
    "offline": (ONE_24, {"model": "org/m", "stack_storage": {"offline": True}}),
    "CDI": (CDI, {"stack_gpu_driver": "cdi"}),
    "AMD": (make_host(None, amd=True), {"stack_gpu_driver": "amd"}),
    "shared memory": (ONE_24, {"ipc": "host"}),
    "catalog": (ONE_24, {"model": "meta-llama/Llama-3.1-8B-Instruct", "tool_call_parser": "llama3_json"}),
    "reasoning": (ONE_24, {"model": "Qwen/Qwen3-8B", "reasoning_parser": "qwen3"}),
    "no stack": (EIGHT_80, {}),
}  # fmt: skip
# facts that a check reads, but that its `ok` doesn't depend on
IRRELEVANT = {
    # only decides who reports a missing engine; the version itself was read
    ("host.engine_state", "engine-version"),
    # an image that is missing only makes an old buildx worse
    ("host.images", "buildx"),
    # the root file system is a setting of the stack
    ("host.gpus", "gpu-root"),
    # reservations by index are compared with indices
    ("host.gpus", "gpu-taken"),
    # these stacks set tensor_parallel_size or a number of GPUs
    ("host.gpus", "tensor-parallel"),
    ("host.gpus", "kv-heads"),
}


class Spy:
    """A host that records which facts a check reads."""

    def __init__(self, host: Host) -> None:
        self.host, self.read = host, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.host, name)


def lacking(inputs: DoctorInputs) -> Iterator[tuple[str, DoctorInputs]]:
    """The inputs without one fact each: facts of the machine, its GPUs, the models, the Hub and the storage."""
    host = inputs.host
    for field in fields(Host):
        if field.default is None and getattr(host, field.name) is not None:
            lost: Any = {field.name: None}
            yield f"host.{field.name}", replace(inputs, host=replace(host, **lost))
    for name in ("memory_total", "memory_free", "compute", "mig", "ecc_errors", "persistence") if host.gpus else ():
        unknown: Any = {name: None}
        gpus = tuple(replace(gpu, **unknown) for gpu in host.gpus or ())
        yield f"gpu.{name}", replace(inputs, host=replace(host, gpus=gpus))
    if inputs.models:
        yield "models", replace(inputs, models={})
        bare = {name: replace(facts, config=None) for name, facts in inputs.models.items()}
        yield "models.config", replace(inputs, models=bare)
        closed = {name: replace(facts, listed=False, problems=("m: Permission denied",), config=None)
                  for name, facts in inputs.models.items()}  # fmt: skip
        yield "models.listed", replace(inputs, models=closed)
    if any(inputs.hub.values()):
        yield "hub", replace(inputs, hub=dict.fromkeys(inputs.hub))
    if inputs.cached:
        yield "cached", replace(inputs, cached=dict.fromkeys(inputs.cached))


# which checks look at the facts that are not of the machine itself
LOOKS_AT = {
    "gpu.memory_total": {"gpu-memory", "fit"},
    "gpu.memory_free": {"gpu-memory"},
    "gpu.compute": {"gpu-age", "dtype", "quantization", "kv-cache-dtype"},
    "gpu.mig": {"mig"},
    "gpu.ecc_errors": {"ecc"},
    "gpu.persistence": {"persistence"},
    "models": {"experts", "tensor-parallel", "kv-heads", "pipeline-parallel", "model", "tokenizer", "chat-template",
               "weights", "readable", "context"},
    "models.config": {"experts", "tensor-parallel", "kv-heads", "pipeline-parallel", "model", "context"},
    "models.listed": {"experts", "tensor-parallel", "kv-heads", "pipeline-parallel", "model", "tokenizer",
                      "chat-template", "weights", "readable", "context"},
    "hub": {"hub"},
    "cached": {"cached"},
}  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
def test_no_check_says_ok_without_the_facts_that_it_looks_at(name: str, tmp_path: Path) -> None:
    host, how = STACKS[name]
    stack = try_open_stack(str(write_stack(tmp_path, **how))) if how else (None, (), "")
    hub = {} if how.get("stack_storage") else {"org/m": HUB, "o/m-GGUF": replace(HUB, files=("m.gguf",))}
    inputs = collect_inputs(host, *stack, hub)
    if how.get("stack_storage"):
        inputs = replace(inputs, cached={"org/m": True})
    wrong = []
    for fact, bare in lacking(inputs):
        for check in CHECKS:
            spy = Spy(inputs.host)
            before = list(check.run(replace(inputs, host=spy)))  # type: ignore[arg-type]
            looks = fact.removeprefix("host.") in spy.read if fact.startswith("host.") else check.name in LOOKS_AT[fact]
            if not looks or (fact, check.name) in IRRELEVANT or not any(one.status == "ok" for one in before):
                continue
            after = list(check.run(bare))
            kept = [one for one in after if one.status == "ok" and one in before]
            # without a stack, one check reports that the GPUs are unknown, for all checks of GPUs
            silent = not after and (how or fact != "host.gpus")
            if silent or kept:
                wrong.append(f"{check.name} without {fact}: {kept or 'silent'}")
    assert not wrong


def test_every_check_is_driven_by_some_stack(tmp_path: Path) -> None:
    seen = set()
    for name, (host, how) in STACKS.items():
        inputs = collect_inputs(host, *try_open_stack(str(write_stack(tmp_path / name, **how)))) if how else None
        inputs = replace(inputs or collect_inputs(host), hub={"org/m": HUB, "o/m-GGUF": HUB})
        seen |= {check.name for check in CHECKS for one in check.run(inputs)}
    # these need an error in stack.yaml or a token, and read no fact about the machine
    assert {check.name for check in CHECKS} - seen <= {"token-file"}


def test_an_unlistable_model_folder_is_not_checked_and_not_called_broken(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus=1)
    inputs = collect_inputs(ONE_24, *try_open_stack(str(path)))
    closed = {name: replace(one, listed=False, problems=("m: Permission denied",), config=None, unreadable=())
              for name, one in inputs.models.items()}  # fmt: skip
    inputs = replace(inputs, models=closed)
    by_name = {check.name: [one.status for one in check.run(inputs)] for check in CHECKS}
    for name in ("model", "tokenizer", "chat-template", "weights", "readable"):
        assert by_name[name] == ["unknown"], name


def test_an_unreadable_weight_file_is_not_called_incomplete(tmp_path: Path) -> None:
    path = write_stack(tmp_path)
    inputs = collect_inputs(ONE_24, *try_open_stack(str(path)))
    model = {name: replace(one, problems=("model.safetensors: can't be read: Permission denied",), complete=False)
             for name, one in inputs.models.items()}  # fmt: skip
    check = next(check for check in CHECKS if check.name == "weights")
    (found,) = check.run(replace(inputs, models=model))
    assert found.status == "unknown" and "again" not in found.fix


@pytest.mark.parametrize("name", ["model.gguf", "pytorch_model.bin"])
def test_weights_without_lengths_in_their_headers_are_not_called_complete(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "model")
    os.remove(folder / "model.safetensors")
    (folder / name).write_bytes(b"GGUF and more")
    found = findings(ONE_24, write_stack(tmp_path / "stack", model=str(folder)))
    (weights,) = [one for one in found if one.check == "weights"]
    assert weights.status == "ok" and "complete" not in weights.message


def test_memory_and_disk_are_not_enough_for_a_size_that_is_unknown(tmp_path: Path) -> None:
    host = make_host((), docker_disk=Disk("/var/lib/docker", 2000 * GIB, 1))
    found = findings(host, write_stack(tmp_path, model="org/strange", gpus="none"))
    assert {"SG-P006", "SG-P007"} <= problem_ids(found, "unknown")
    assert not [one for one in found if one.id in ("SG-P006", "SG-P007") and one.status == "ok"]


def test_an_image_of_unknown_size_is_named(tmp_path: Path) -> None:
    found = findings(ONE_24, write_stack(tmp_path, image="registry.example.com/own:1"))
    assert any(one.status == "unknown" and "own" in one.message for one in found if one.id == "SG-P006")
