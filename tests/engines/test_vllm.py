"""vLLM's command line of 0.32: only current flags, and the settings of its `--help`."""

from __future__ import annotations

from typing import Any

import pytest

from stackgen.errors import SpecError
from stackgen.plan import Bind, EnvRef, Plan, Service, Volume
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite

# removed or deprecated flags
OUTDATED = {
    "--model",
    "--disable-log-requests",
    "--enable-reasoning",
    "--device",
    "--worker-use-ray",
    "--use-v2-block-manager",
    "--num-scheduler-steps",
    "--api-key",
}


def plan(*models: dict[str, Any], **fields: Any) -> Plan:
    entries = [{"model": f"org/m{index}", "engine": "vllm"} | model for index, model in enumerate(models)]
    return resolve(
        build_spec({"name": "demo", "models": entries, "gateway": False} | fields, "test"), ComposeSite(), "test"
    )


def service(_stack: dict[str, Any] | None = None, **model: Any) -> Service:
    return next(one for one in plan(model, **(_stack or {})).services if one.role == "engine")


def after(command: tuple[str, ...], flag: str) -> str | None:
    """The argument after `flag`; None if the flag is absent."""
    return command[command.index(flag) + 1] if flag in command else None


FULL: dict[str, Any] = {
    "gpus": [0, 1, 2, 3],
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 2,
    "max_model_len": "32k",
    "dtype": "bfloat16",
    "quantization": "fp8",
    "kv_cache_dtype": "fp8",
    "gpu_memory_utilization": 0.85,
    "max_num_seqs": 64,
    "enforce_eager": True,
    "chat_template": "./chat.jinja",
    "tool_call_parser": "hermes",
    "reasoning_parser": "qwen3",
    "trust_remote_code": True,
    "revision": "abc",
    "served_names": ["a", "b"],
    "lora_adapters": [{"name": "l", "path": "./lora"}],
}


def test_command_with_all_settings() -> None:
    assert service(**FULL).command == (
        "vllm",
        "serve",
        "org/m0",
        "--host",
        "0.0.0.0",
        "--port",
        "8000",
        "--revision",
        "abc",
        "--served-model-name",
        "a",
        "b",
        "--tensor-parallel-size",
        "2",
        "--pipeline-parallel-size",
        "2",
        "--max-model-len",
        "32k",
        "--dtype",
        "bfloat16",
        "--quantization",
        "fp8",
        "--kv-cache-dtype",
        "fp8",
        "--gpu-memory-utilization",
        "0.85",
        "--max-num-seqs",
        "64",
        "--enforce-eager",
        "--chat-template",
        "/srv/chat.jinja",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "hermes",
        "--reasoning-parser",
        "qwen3",
        "--enable-lora",
        "--lora-modules",
        "l=/srv/lora",
        "--trust-remote-code",
        "--shutdown-timeout",
        "30",
    )


def test_no_deprecated_flags_and_no_underscores() -> None:
    command = service(**FULL).command
    assert not OUTDATED & set(command)
    assert not [word for word in command if word.startswith("--") and "_" in word]
    # the model is positional, right after `serve`
    assert command[:3] == ("vllm", "serve", "org/m0")


def test_a_minimal_model_has_no_unneeded_flags() -> None:
    assert service().command == (
        "vllm",
        "serve",
        "org/m0",
        "--host",
        "0.0.0.0",
        "--port",
        "8000",
        "--served-model-name",
        "org/m0",
        # by default, vLLM aborts the requests in flight when it stops
        "--shutdown-timeout",
        "30",
    )


@pytest.mark.parametrize(
    ("image", "has_flag"),
    [
        ("vllm/vllm-openai:v0.32.0", True),
        ("vllm/vllm-openai:v0.18.0", True),
        ("vllm/vllm-openai:v0.17.1", False),
        ("registry:5000/vllm:0.9", False),
        ("rocm/vllm:latest", True),
        ("vllm@sha256:0123", True),
    ],
)
def test_only_versions_that_can_drain_get_the_flag(image: str, has_flag: bool) -> None:
    assert ("--shutdown-timeout" in service(image=image).command) == has_flag


@pytest.mark.parametrize(
    ("model", "tensor"),
    [
        ({}, None),
        ({"gpus": 1}, None),
        ({"gpus": 4}, "4"),
        ({"gpus": [2, 3]}, "2"),
        ({"gpus": 4, "pipeline_parallel_size": 2}, "2"),
        ({"gpus": 4, "tensor_parallel_size": 4}, "4"),
        # 4 copies of the weights, each on 2 GPUs
        ({"gpus": 8, "data_parallel_size": 4}, "2"),
        ({"gpus": 8, "data_parallel_size": 8}, None),
        # one of 4 ranks, whose other ranks are in other containers
        ({"gpus": 8, "data_parallel_size": 4, "extra_args": ["--data-parallel-rank", "0"]}, "8"),
        ({"gpus": 8, "data_parallel_size": 4, "extra_args": ["--data-parallel-size-local=2"]}, "4"),
        # with Ray, ranks may be on other machines: 4 ranks of 2 GPUs with 4 GPUs here
        (
            {
                "gpus": 4,
                "tensor_parallel_size": 2,
                "data_parallel_size": 4,
                "extra_args": ["--data-parallel-backend", "ray"],
            },
            "2",
        ),
        ({"gpus": "all", "tensor_parallel_size": 8}, "8"),
        ({"gpus": 8, "replicas": 2}, "8"),
    ],
)
def test_tensor_parallel_size_defaults_to_all_gpus_of_the_replica(model: dict[str, Any], tensor: str | None) -> None:
    assert after(service(**model).command, "--tensor-parallel-size") == tensor


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (
            {"gpus": 2, "tensor_parallel_size": 4},
            "models[0].gpus: tensor_parallel_size is 4, but each replica has 2 GPUs (set `gpus: 4`",
        ),
        ({"gpus": 1, "pipeline_parallel_size": 2}, "pipeline_parallel_size is 2, but each replica has 1 GPU"),
        ({"gpus": "all"}, "`gpus: all` needs tensor_parallel_size"),
        ({"gpus": 3, "pipeline_parallel_size": 2}, "can't be split into 2 pipeline stages"),
        ({"gpus": 8, "tensor_parallel_size": 1}, "8 GPUs: 7 GPUs would be idle (set `gpus: 1`"),
        ({"gpus": [0, 1, 2, 3], "tensor_parallel_size": 1, "replicas": 2}, "2 GPUs: 1 GPU would be idle"),
        ({"gpus": 8, "data_parallel_size": 3}, "8 GPUs can't be split into 3 groups"),
        (
            {"gpus": 8, "tensor_parallel_size": 8, "data_parallel_size": 8},
            "tensor_parallel_size x data_parallel_size is 64, but each replica has 8 GPUs",
        ),
        (
            {"tensor_parallel_size": 2},
            "tensor_parallel_size is 2, but `gpus` is not set, so the model would run on the CPU (set `gpus: 2`",
        ),
        ({"pipeline_parallel_size": 4}, "pipeline_parallel_size is 4, but `gpus` is not set"),
        ({"data_parallel_size": 2}, "models[0].data_parallel_size: "),
    ],
)
def test_parallel_sizes_that_do_not_match_the_gpus_are_rejected(model: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan({"replicas": 2 if model.get("gpus") != "all" else 1} | model)
    assert [part in str(mistake) for mistake in caught.value.mistakes] == [True]  # once, not once per replica


def test_sizes_that_count_cpus_or_several_machines_are_accepted() -> None:
    # on the CPU, the sizes count NUMA nodes
    assert after(service(gpus="none", tensor_parallel_size=2).command, "--tensor-parallel-size") == "2"
    for size in (4, 16):
        nodes = service(gpus=8, tensor_parallel_size=size, extra_args=["--nnodes", "2", "--node-rank", "0"])
        assert after(nodes.command, "--tensor-parallel-size") == str(size)


def test_a_negative_length_is_not_parsed_as_a_flag() -> None:
    assert "--max-model-len=-1" in service(max_model_len=-1).command
    assert after(service(max_model_len="auto").command, "--max-model-len") == "auto"


def test_image_and_user_depend_on_the_hardware() -> None:
    gpu, cpu = service(gpus=1), service()
    assert gpu.image.startswith("vllm/vllm-openai:v")
    assert gpu.user == "2000:0"
    assert cpu.image.startswith("vllm/vllm-openai-cpu:v")
    assert cpu.image.endswith("-x86_64")
    arm = service({"cpu_arch": "arm64"})
    assert arm.image.endswith("-arm64")
    assert arm.platform == "linux/arm64"
    assert service({"gpu_driver": "amd"}, gpus=1).image.startswith("vllm/vllm-openai-rocm:v")
    # the users of another image are unknown
    assert service(gpus=1, image="me/x:1").user == ""


def test_kv_cache_size_is_set_on_the_cpu() -> None:
    cpu = dict(service(cpu_kv_cache_gib=7).environment)
    assert cpu["VLLM_CPU_KVCACHE_SPACE"] == "7"  # a fraction is refused by vLLM
    assert "VLLM_CPU_KVCACHE_SPACE" not in dict(service(gpus=1).environment)
    assert service().gpus is None


def test_environment_has_key_cache_and_offline_mode() -> None:
    values = dict(service(gpus=1).environment)
    assert isinstance(values["VLLM_API_KEY"], EnvRef)
    assert (values["HF_HUB_OFFLINE"], values["HF_HUB_CACHE"], values["VLLM_NO_USAGE_STATS"]) == (
        "1",
        "/models/hub",
        "1",
    )
    assert "VLLM_SERVER_DEV_MODE" not in values  # it opens /sleep and /collective_rpc without a key


def test_shared_memory_grows_with_gpus() -> None:
    """Docker's 64 MB are too small to start; NCCL needs more with more GPUs."""
    sizes = [service(gpus=gpus).shm_size for gpus in ("none", 1, 2, 4)]
    assert sizes == ["1g", "1g", "4g", "12g"]


def test_compile_cache_is_a_volume_per_kind_of_image() -> None:
    made = plan({}, {})
    assert ("vllm-cpu-cache", "stackgen-vllm-cpu-cache") in made.volumes
    # images that run as different users can't share one, because the first one to start owns it
    assert ("vllm-cache", "stackgen-vllm-cache") in plan({"gpus": 1}).volumes
    for one in made.services[1:]:
        assert Volume("vllm-cpu-cache", "/home/vllm/.cache") in one.mounts
        assert str(dict(one.environment)["VLLM_CACHE_ROOT"]).startswith("/home/vllm/.cache/code/m")


def cache(**model: Any) -> str:
    return str(dict(service(**model).environment)["VLLM_CACHE_ROOT"])


@pytest.mark.parametrize(
    "change",
    [
        {"model": "org/other"}, {"revision": "abc"}, {"engine_version": "0.33.0"}, {"image": "acme/vllm:1"},
        {"image": "acme/vllm@sha256:" + "a" * 64}, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
        {"gpus": [0, 1, 2, 3, 4, 5, 6, 7]}, {"dtype": "float16"}, {"kv_cache_dtype": "fp8"}, {"max_num_seqs": 8},
        {"max_model_len": 4096}, {"enforce_eager": True}, {"extra_args": ["-O3"]},
        {"extra_args": ["--compilation-config", '{"mode": 3}']}, {"extra_env": {"VLLM_USE_AOT_COMPILE": "0"}},
        {"lora_adapters": [{"name": "l", "path": "org/lora"}]},
    ],
    ids=str,
)  # fmt: skip
def test_what_may_change_compiled_code_gets_a_folder_of_its_own(change: dict[str, Any]) -> None:
    assert cache(**{"gpus": [0, 1, 2, 3], **change}) != cache(gpus=[0, 1, 2, 3])


@pytest.mark.parametrize(
    "change",
    [
        {"served_names": ["a", "b"]}, {"gpus": [4, 5, 6, 7]}, {"gpu_memory_utilization": 0.5}, {"load_format": "auto"},
        {"tool_call_parser": "hermes"}, {"reasoning_parser": "qwen3"}, {"chat_template": "./chat.jinja"},
        {"extra_env": {"HF_ENDPOINT": "https://mirror"}}, {"extra_args": ["--seed", "-1"]}, {"replicas": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_no_compiled_code_keeps_the_folder(change: dict[str, Any]) -> None:
    assert cache(**{"gpus": [0, 1, 2, 3], **change}) == cache(gpus=[0, 1, 2, 3])


def test_replicas_share_compiled_code_and_the_users_own_folder_wins() -> None:
    engines = [one for one in plan({"gpus": [0, 1], "replicas": 2}).services if one.role == "engine"]
    assert len({dict(one.environment)["VLLM_CACHE_ROOT"] for one in engines}) == 1 and len(engines) == 2
    values = dict(service(extra_env={"VLLM_CACHE_ROOT": "/cache"}).environment)
    assert values["VLLM_CACHE_ROOT"] == "/cache" and "STACKGEN_SETUP" not in values


def test_chat_template_and_local_adapters_are_mounted_read_only() -> None:
    mounts = service(**FULL).mounts
    assert Bind("./chat.jinja", "/srv/chat.jinja", True) in mounts
    assert Bind("./lora", "/srv/lora", True) in mounts


def test_adapters_from_the_hub_are_downloaded_and_listed() -> None:
    made = plan({"lora_adapters": [{"name": "l", "path": "org/lora"}], "served_names": ["base"]})
    assert made.services[0].command == ("--model", "org/m0", "--model", "org/lora")
    assert after(made.services[1].command, "--lora-modules") == "l=org/lora"
    assert made.endpoints[0].models == ("base", "l")


def test_local_folders_get_no_revision_flag() -> None:
    assert "--revision" not in service(model="./x", revision="abc").command


def test_download_uses_the_vllm_image() -> None:
    download = plan({"gpus": 1}).services[0]
    assert download.image.startswith("vllm/vllm-openai:v")
    assert download.build is None


def test_health_check_calls_the_service_directly() -> None:
    health = service().health
    assert health
    assert health.command == ("python3", "/stackgen/vllm_health.py", "http://127.0.0.1:8000")


def test_two_models_have_two_ports_and_one_storage() -> None:
    made = plan({"gpus": 1}, {"gpus": 1})
    assert [one.ports[0].host for one in made.services[1:]] == [8000, 8001]
    assert [one.ports[0].container for one in made.services[1:]] == [8000, 8000]
    assert len(made.endpoints) == 2


def test_a_local_model_with_an_adapter_from_the_hub_waits_for_it() -> None:
    made = plan({"model": "./base", "lora_adapters": [{"name": "sql", "path": "org/sql"}]})
    download, engine = made.services
    assert download.command == ("--model", "org/sql")
    assert Volume("models", "/models", read_only=True) in engine.mounts
    assert engine.depends_on[0].service == "download"
    assert dict(engine.environment)["HF_HUB_OFFLINE"] == "1"
