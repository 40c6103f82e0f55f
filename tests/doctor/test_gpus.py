"""GPUs as data, each with one fault, and the parsers of nvidia-smi's output, whatever it prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stackgen.check.huggingface import HubLookup
from stackgen.doctor.facts import GIB, Container, Gpu, GpuProcess, Host
from stackgen.doctor.table import exit_code
from stackgen.runtimes.observation.gpu_tools import (
    parse_cuda_version,
    parse_gpus,
    parse_processes,
    read_cdi_kinds,
    read_nvidia_facts,
)
from tests.doctor.hosts import (
    AMD,
    CONFIG,
    EIGHT_80,
    MIXED,
    NO_GPU,
    ONE_24,
    TURING,
    findings,
    make_gpu,
    problem_ids,
    single_problem,
    write_stack,
)  # fmt: skip


def changed(host: Host, **fields: Any) -> Host:
    gpus = host.gpus or ()
    return replace(host, gpus=(replace(gpus[0], **fields), *gpus[1:]))


def quantized(method: str) -> dict[str, Any]:
    return CONFIG | {"quantization_config": {"quant_method": method}}


FULL = changed(ONE_24, memory_free=8 * GIB, processes=(GpuProcess(4242, "python3 train.py", 16 * GIB),))
OLD_DRIVER = replace(ONE_24, driver="550.127.05", cuda="12.4")
AMPERE = replace(ONE_24, gpus=(make_gpu(0, "NVIDIA A10", 24, (8, 6)),))
PASCAL = replace(ONE_24, gpus=(make_gpu(0, "Tesla P40", 24, (6, 1)),))
NO_TOOLKIT = replace(ONE_24, runtimes=("runc",), toolkit=False)
DEAD_DRIVER = replace(ONE_24, gpus=None, driver=None, gpu_error="Failed to initialize NVML: Driver/library mismatch")


@pytest.mark.parametrize(
    ("id", "status", "host", "fields"),
    [
        ("SG-P031", "fail", OLD_DRIVER, {}),
        ("SG-P032", "fail", NO_TOOLKIT, {}),
        ("SG-P033", "fail", ONE_24, {"gpus": [3]}),
        ("SG-P033", "fail", ONE_24, {"gpus": 2}),
        ("SG-P033", "fail", ONE_24, {"gpus": ["GPU-ffffffff-1111"]}),
        ("SG-P034", "fail", FULL, {}),
        ("SG-P035", "fail", changed(EIGHT_80, mig=True), {}),
        ("SG-P036", "warn", changed(EIGHT_80, ecc_errors=3), {}),
        ("SG-P043", "warn", ONE_24, {"read_only": True}),
        ("SG-P037", "warn", changed(EIGHT_80, persistence=False), {}),
        ("SG-P038", "warn", MIXED, {"gpus": 2}),
        ("SG-P040", "fail", EIGHT_80, {"gpus": 5, "config": CONFIG | {"num_key_value_heads": 5}}),
        ("SG-P041", "fail", EIGHT_80, {"gpus": 8, "config": CONFIG | {"num_key_value_heads": 6}}),
        (
            "SG-P042",
            "fail",
            EIGHT_80,
            {"gpus": 8, "pipeline_parallel_size": 8, "config": CONFIG | {"num_hidden_layers": 4}},
        ),
        ("SG-P055", "fail", ONE_24, {"max_model_len": "32k"}),
        ("SG-P056", "fail", TURING, {"dtype": "bfloat16"}),
        ("SG-P056", "warn", TURING, {}),
        ("SG-P057", "fail", ONE_24, {"quantization": "awq"}),
        (
            "SG-P057",
            "fail",
            ONE_24,
            {"quantization": "awq", "config": CONFIG | {"quantization_config": {"quant_method": "gptq"}}},
        ),
        ("SG-P057", "fail", ONE_24, {"config": quantized("bitsandbytes")}),
        ("SG-P057", "fail", TURING, {"dtype": "float16", "config": quantized("mxfp4")}),
        ("SG-P057", "warn", ONE_24, {"config": quantized("modelopt_fp4")}),
        ("SG-P057", "warn", MIXED, {"gpus": [1], "quantization": "fp8"}),
        ("SG-P047", "warn", AMPERE, {"kv_cache_dtype": "fp8"}),
        ("SG-P047", "fail", AMPERE, {"kv_cache_dtype": "fp8_per_token_head"}),
        ("SG-P047", "fail", AMPERE, {"kv_cache_dtype": "fp8", "config": CONFIG | {"kv_lora_rank": 512}}),
        ("SG-P047", "fail", TURING, {"kv_cache_dtype": "fp8_e5m2", "dtype": "float16"}),
    ],
)
def test_each_gpu_fault_is_found_by_its_own_check(
    id: str, status: str, host: Host, fields: dict[str, Any], tmp_path: Path
) -> None:
    single_problem(findings(host, write_stack(tmp_path, **fields)), id, status)


def test_an_fp8_cache_on_the_cpu_needs_avx_512_or_amx(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus="none", kv_cache_dtype="fp8")
    host = replace(ONE_24, gpus=())
    for flags, arch, status in (({"avx2", "avx512f"}, "x86_64", "ok"), ({"avx2"}, "x86_64", "fail"),
                                (None, "x86_64", "unknown"), ({"asimd"}, "aarch64", "fail")):  # fmt: skip
        found = findings(replace(host, cpu_flags=flags and frozenset(flags), cpu_arch=arch), path)
        assert [one.status for one in found if one.id == "SG-P047"] == [status]


def test_config_without_kv_heads_has_one_per_attention_head(tmp_path: Path) -> None:
    config = {name: value for name, value in CONFIG.items() if name != "num_key_value_heads"}
    found = findings(EIGHT_80, write_stack(tmp_path, gpus=8, config=config))
    finding = [(one.status, one.message) for one in found if one.id == "SG-P041"]
    assert finding == [("ok", "32 KV heads can be split across 8 GPUs")] and not problem_ids(found)
    nothing = {name: value for name, value in config.items() if name != "num_attention_heads"}
    found = findings(EIGHT_80, write_stack(tmp_path, gpus=8, config=nothing))
    assert [(one.id, one.evidence) for one in found if one.id in ("SG-P040", "SG-P041")] == [
        ("SG-P040", "config.json does not contain the number of attention heads"),
        ("SG-P041", "config.json does not contain the number of KV heads"),
    ]


def test_too_little_memory_names_the_process_and_a_utilization_that_fits(tmp_path: Path) -> None:
    found = single_problem(findings(FULL, write_stack(tmp_path)), "SG-P034", "fail")
    assert "python3 train.py (pid 4242, 16.0 GiB)" in found.evidence
    share = float(found.fix.rpartition(": ")[2].removesuffix("`"))
    path = write_stack(tmp_path / "lower", gpu_memory_utilization=share)
    assert not problem_ids(findings(FULL, path))


def gguf(tmp_path: Path, gib: int) -> None:
    with (tmp_path / "m.gguf").open("wb") as file:
        file.write(b"GGUF")
        file.truncate(gib * GIB)  # sparse: needs no disk space


def heavy(folder: Path, gib: int) -> None:
    header = b'{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,%d]}}' % (gib * GIB)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + gib * GIB)


@pytest.mark.parametrize("engine", ["fastchat", "llamacpp"])
def test_weights_of_other_engines_are_compared_with_the_free_memory(engine: str, tmp_path: Path) -> None:
    path = write_stack(tmp_path, engine=engine)
    heavy(tmp_path / "model", 10)
    if engine == "llamacpp":
        gguf(tmp_path, 10)
        path = write_stack(tmp_path, engine=engine, model="./m.gguf")
    for free, status in ((1, "fail"), (9, "fail"), (12, "ok")):
        machine = changed(ONE_24, memory_free=free * GIB, processes=FULL.gpus[0].processes)  # type: ignore[index]
        found = findings(machine, path)
        (finding,) = [one for one in found if one.id == "SG-P034"]
        assert finding.status == status, finding
        assert "10.0 GiB of weights (from the model's files), and about 1.0 GiB" in finding.evidence
        assert status == "ok" or "train.py (pid 4242" in finding.evidence
    # the weights fit, and the rest is an estimate
    (finding,) = [o for o in findings(changed(ONE_24, memory_free=10 * GIB + GIB // 2), path) if o.id == "SG-P034"]
    assert finding.status == "warn"


def test_gpu_memory_is_unknown_if_a_field_splits_the_weights_or_the_size_is_unknown(tmp_path: Path) -> None:
    gguf(tmp_path, 40)
    found = findings(ONE_24, write_stack(tmp_path, engine="llamacpp", model="./m.gguf", gpu_layers=9))
    assert not problem_ids(found) and "gpu_layers" in next(one for one in found if one.id == "SG-P034").evidence
    hub = write_stack(tmp_path / "hub", engine="fastchat", model="org/m", revision="0" * 40)
    finding = next(one for one in findings(ONE_24, hub) if one.id == "SG-P034")
    assert finding.status == "unknown" and "size" in finding.evidence


def test_fastchat_models_are_checked_for_dtype_memory_and_fit(tmp_path: Path) -> None:
    # with start_timeout, the size of the weights does not change the rendered files
    path = write_stack(tmp_path, engine="fastchat", dtype="bfloat16", start_timeout=600)
    single_problem(findings(TURING, path), "SG-P056", "warn")
    assert not problem_ids(findings(TURING, write_stack(tmp_path, engine="fastchat", start_timeout=600)))
    heavy(tmp_path / "model", 40)
    assert problem_ids(findings(ONE_24, path), "fail") == {"SG-P034", "SG-P059"}
    assert not problem_ids(findings(EIGHT_80, path))
    path = write_stack(tmp_path, engine="fastchat", load_8bit=True)
    assert not problem_ids(findings(ONE_24, path), "fail")


def test_fastchat_needs_no_memory_for_its_whole_context_but_long_prompts_do(tmp_path: Path) -> None:
    config = CONFIG | {"hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072}
    path = write_stack(tmp_path, engine="fastchat", config=config, start_timeout=600)
    heavy(tmp_path / "model", 15)
    found = single_problem(findings(ONE_24, path), "SG-P034", "warn")
    assert "131,072 tokens" in found.message
    assert "15.0 GiB of weights (from the model's files), and about 1.0 GiB" in found.evidence
    assert "tokens fit for certain" in found.evidence and "stop the processes" not in found.fix
    assert "engine: vllm" in found.fix and "worker_concurrency: 1" in found.fix
    # a context that fits needs no advice
    short = json.dumps(config | {"max_position_embeddings": 4096})
    (tmp_path / "model" / "config.json").write_text(short)
    assert not problem_ids(findings(ONE_24, path))


def test_memory_of_two_models_on_one_gpu_adds_up(tmp_path: Path) -> None:
    path = write_stack(tmp_path, share_gpus=True, gpus=[0], gpu_memory_utilization=0.45, replicas=1)
    text = path.read_text().replace("models:", "models:\n- {model: ./model, engine: vllm, gpus: [0], share_gpus: true, "
                                    "gpu_memory_utilization: 0.5, served_names: [n]}")  # fmt: skip
    path.write_text(text)
    found = [one for one in findings(changed(ONE_24, memory_free=20 * GIB), path) if one.id == "SG-P034"]
    assert [one.status for one in found] == ["fail", "ok"]
    assert "plus 12.0 GiB for other models on this GPU" in found[0].evidence
    # the share of one model alone would be more than render allows
    assert found[0].fix == ("stop the processes on this GPU, or lower `gpu_memory_utilization` of models[0] and "
                            "models[1] to at most 0.79 in total (now 0.95)")  # fmt: skip
    path.write_text(text.replace("0.45", "0.3").replace("0.5", "0.49"))
    assert "SG-P034" not in problem_ids(findings(changed(ONE_24, memory_free=20 * GIB), path))


def test_models_on_one_gpu_by_mistake_are_not_added_up(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus=[0], replicas=1)
    uuid = (ONE_24.gpus or ())[0].uuid
    path.write_text(path.read_text().replace("models:", "models:\n- {model: ./model, engine: vllm, served_names: [n], "
                                             f"gpus: [{uuid}]}}"))  # fmt: skip
    found = findings(ONE_24, path)
    assert "SG-P045" in problem_ids(found) and "SG-P034" not in problem_ids(found)


def test_counts_that_need_more_gpus_name_how_many_and_sharing(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus=1, replicas=1)
    path.write_text(path.read_text().replace("models:", "models:\n- {model: ./model, engine: vllm, served_names: [n], "
                                             "gpus: 1}"))  # fmt: skip
    (found,) = [one for one in findings(ONE_24, path) if one.id == "SG-P033" and one.status == "fail"]
    assert found.message == "the stack needs 2 GPUs, but this machine has 1 GPU"
    assert "share_gpus: true" in found.fix
    # replicas of one model can't share
    found = single_problem(findings(ONE_24, write_stack(tmp_path / "b", gpus=1, replicas=2)), "SG-P033", "fail")
    assert "2 GPUs" in found.message and found.fix == "decrease `gpus` or `replicas`"


def test_a_cluster_splits_layers_across_nodes_as_the_manifests_do(tmp_path: Path) -> None:
    config = CONFIG | {"num_attention_heads": 40, "num_key_value_heads": 8}
    path, answer = tmp_path / "stack.yaml", HubLookup("ok", "", False, GIB, "abc", ("config.json",), config)
    model = {"model": "org/forty", "engine": "vllm", "gpus": 16}
    path.write_text(yaml.safe_dump({"name": "t", "target": "kubernetes", "models": [model]}))
    every = findings(NO_GPU, path, {"org/forty": answer})
    found = [one for one in every if one.id in ("SG-P040", "SG-P041", "SG-P042")]
    # one pipeline stage for each of two nodes
    assert any("heads can be split across 8 GPUs" in one.message for one in found)
    assert {one.status for one in found} == {"ok"}


def test_silent_driver_fails_and_missing_nvidia_smi_is_unknown(tmp_path: Path) -> None:
    path = write_stack(tmp_path)
    found = findings(DEAD_DRIVER, path)
    assert problem_ids(found) == {"SG-P030"} and exit_code(found) == 3
    assert "NVML" in next(one for one in found if one.id == "SG-P030").evidence
    found = findings(replace(NO_GPU, runtimes=("runc", "nvidia")), path)
    assert not problem_ids(found) and {"SG-P030", "SG-P031", "SG-P033"} <= problem_ids(found, "unknown")
    found = findings(replace(ONE_24, gpus=(), driver=None), path)
    assert problem_ids(found, "fail") == {"SG-P030", "SG-P033"}


def test_gpu_too_old_for_the_image_fails(tmp_path: Path) -> None:
    assert problem_ids(findings(PASCAL, write_stack(tmp_path)), "fail") == {"SG-P039"}


def test_mig_instances_are_unknown(tmp_path: Path) -> None:
    found = findings(changed(EIGHT_80, mig=True), write_stack(tmp_path, gpus=["MIG-1234"]))
    assert not problem_ids(found) and "SG-P033" in problem_ids(found, "unknown")


def test_memory_is_unknown_while_the_stack_itself_runs(tmp_path: Path) -> None:
    running = replace(FULL, containers=(Container("t-vllm-m-1", "t"),))
    found = findings(running, write_stack(tmp_path))
    assert not problem_ids(found) and "SG-P034" in problem_ids(found, "unknown")


def test_amd_driver_and_cdi_devices_are_checked(tmp_path: Path) -> None:
    path = write_stack(tmp_path / "amd", stack_gpu_driver="amd")
    assert not problem_ids(findings(AMD, path))
    assert problem_ids(findings(replace(AMD, amd=False), path)) == {"SG-P030"}
    path = write_stack(tmp_path / "cdi", stack_gpu_driver="cdi")
    assert not problem_ids(findings(replace(ONE_24, cdi=("nvidia.com/gpu",)), path))
    single_problem(findings(ONE_24, path), "SG-P032", "fail")
    finding = single_problem(
        findings(replace(ONE_24, cdi=("nvidia.com/gpu",), engine="24.0.7"), path), "SG-P002", "fail"
    )
    assert "driver: cdi" in finding.message and finding.place == "gpu_driver"


def test_weights_larger_than_the_gpu_fail(tmp_path: Path) -> None:
    path = write_stack(tmp_path, start_timeout=600)
    header = b'{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,%d]}}' % (40 * GIB)
    with (tmp_path / "model" / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 40 * GIB)  # sparse: needs no disk space
    single_problem(findings(ONE_24, path), "SG-P059", "fail")
    assert not problem_ids(findings(EIGHT_80, path))


ROW = "0, GPU-0a, NVIDIA H100 80GB HBM3, 81559, 80000, 9.0, Disabled, 0, Enabled, 580.95.05"


def test_output_of_nvidia_smi_is_parsed() -> None:
    apps = parse_processes("GPU-0a, 77, /usr/bin/python3 a, b.py, 1024\nGPU-0a, 78, x, [N/A]\n")
    (gpu, other), driver = parse_gpus(
        ROW + "\n1, GPU-0b, Tesla, [N/A], ERR!, [N/A], [N/A], [N/A], [Not Supported], 580\n", apps
    )
    assert (gpu.memory_total, gpu.compute, gpu.mig, gpu.persistence, driver) == (
        81559 * 2**20,
        (9, 0),
        False,
        True,
        "580.95.05",
    )
    assert gpu.processes == (GpuProcess(77, "/usr/bin/python3 a, b.py", 2**30), GpuProcess(78, "x", None))
    assert other == Gpu(1, "GPU-0b", "Tesla")
    assert parse_cuda_version("| NVIDIA-SMI 580.95.05   Driver Version: 580.95.05   CUDA Version: 13.0 |") == "13.0"


def test_output_of_nvidia_smi_on_a_real_h100_is_parsed() -> None:
    """nvidia-smi 580.159.04 in a virtual machine, while vLLM 0.26.0 used 0.4 of the GPU."""
    answers = {
        "--query-gpu": "0, GPU-9601073a-4930-3745-eb95-7957db7c2774, NVIDIA H100 80GB HBM3, 81559, 47349, 9.0, "
        "Disabled, 0, Enabled, 580.159.04, 33730\n",
        "--query-compute-apps": "GPU-9601073a-4930-3745-eb95-7957db7c2774, 1077, VLLM::EngineCore, 33730\n",
        "nvidia-smi": "| NVIDIA-SMI 580.159.04             Driver Version: 580.159.04     CUDA Version: 13.0     |\n",
    }
    found = read_nvidia_facts(
        lambda command: (0, answers[command[-2].partition("=")[0] if len(command) > 1 else command[0]])
    )
    (gpu,) = found["gpus"]  # type: ignore[misc]
    assert (found["driver"], found["cuda"], found["gpu_tool"]) == ("580.159.04", "13.0", True)
    assert (gpu.memory_total, gpu.memory_free, gpu.compute) == (81559 * 2**20, 47349 * 2**20, (9, 0))
    assert (gpu.mig, gpu.ecc_errors, gpu.persistence) == (False, 0, True)
    assert gpu.processes == (GpuProcess(1077, "VLLM::EngineCore", 33730 * 2**20),)


@given(st.text())
def test_any_output_of_nvidia_smi_is_parsed_without_an_exception(text: str) -> None:
    gpus, driver = parse_gpus(text)
    assert all(gpu.uuid.startswith("GPU-") for gpu in gpus) and isinstance(driver, str)
    assert all(process.pid >= 0 for held in parse_processes(text).values() for process in held)
    cuda = parse_cuda_version(text)
    assert cuda is None or f"{cuda}" in text


@given(st.lists(st.sampled_from(["[N/A]", "", "ERR!", "-1", "9.0", "Enabled", "80000", "1e9", "٣"]), max_size=9))
def test_any_cells_of_a_gpu_row_are_parsed_without_an_exception(cells: list[str]) -> None:
    gpus, _ = parse_gpus(", ".join(["0", "GPU-1", "card", *cells]))
    assert len(gpus) == 1 and gpus[0].name == "card"


def test_exit_code_of_nvidia_smi_tells_no_tool_no_gpu_and_a_dead_driver_apart() -> None:
    assert read_nvidia_facts(lambda _: None)["gpu_tool"] is False
    assert read_nvidia_facts(lambda _: (6, "No devices were found"))["gpus"] == ()
    dead = read_nvidia_facts(
        lambda _: (18, "Failed to initialize NVML: Driver/library version mismatch\nNVML library version")
    )
    assert dead["gpus"] is None and "mismatch" in str(dead["gpu_error"])
    alive = read_nvidia_facts(lambda command: (0, ROW if "index" in command[1:2].__str__() else ""))
    assert alive["driver"] == "580.95.05"


def test_kinds_in_cdi_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").write_text('cdiVersion: "0.6.0"\nkind: nvidia.com/gpu\ndevices: []\n')
    (tmp_path / "other.json").write_text('{"cdiVersion": "0.6.0",\n "kind": "vendor.com/thing",\n "devices": []}')
    assert read_cdi_kinds([tmp_path, tmp_path / "none"]) == ("nvidia.com/gpu", "vendor.com/thing")
