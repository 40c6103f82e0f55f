"""SGLang's command line of 0.5.23, its launcher that hides the key, and stacks that it can't serve."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stackgen.errors import Mistake, SpecError
from stackgen.flags import load_flags
from stackgen.plan import EnvRef, Plan, Service, Tmpfs
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from stackgen.targets.process import ProcessSite
from tests.check.fake import Answer, serve

ENGINES = Path(__file__).parents[2] / "templates/engines"


def plan(site: ComposeSite | ProcessSite | None = None, **fields: Any) -> Plan:
    model = {"model": "org/m", "engine": "sglang", "gpus": 1} | fields
    return resolve(
        build_spec({"name": "demo", "models": [model], "gateway": False}, "test"), site or ComposeSite(), "t"
    )


def service(**fields: Any) -> Service:
    return next(one for one in plan(**fields).services if one.role == "engine")


def mistakes(**fields: Any) -> list[Mistake]:
    with pytest.raises(SpecError) as caught:
        plan(**fields)
    return list(caught.value.mistakes)


FULL: dict[str, Any] = {
    "gpus": 8, "tensor_parallel_size": 2, "pipeline_parallel_size": 2, "data_parallel_size": 2, "max_model_len": "32k",
    "dtype": "bfloat16", "quantization": "fp8", "kv_cache_dtype": "fp8_e5m2", "mem_fraction_static": 0.85,
    "max_num_seqs": 64, "chunked_prefill_size": -1, "enforce_eager": True, "chat_template": "./chat.jinja",
    "tool_call_parser": "qwen25", "reasoning_parser": "qwen3", "trust_remote_code": True, "revision": "abc",
    "served_names": ["a"], "extra_args": ["--schedule-policy", "lpm"],
}  # fmt: skip


def test_command_with_all_settings() -> None:
    assert " ".join(service(**FULL).command) == (
        "python3 /stackgen/sglang_launch.py --model-path org/m --host 0.0.0.0 --port 8000 --revision abc "
        "--served-model-name a --tp-size 2 --pp-size 2 --dp-size 2 --context-length 32000 --dtype bfloat16 "
        "--quantization fp8 --kv-cache-dtype fp8_e5m2 --mem-fraction-static 0.85 --max-running-requests 64 "
        "--chunked-prefill-size=-1 --cuda-graph-backend-decode disabled --chat-template /srv/chat.jinja "
        "--tool-call-parser qwen25 --reasoning-parser qwen3 --trust-remote-code --enable-metrics --schedule-policy lpm"
    )


def test_every_flag_that_stackgen_sets_is_one_of_the_pinned_version() -> None:
    known = load_flags("sglang")
    assert known
    flags = {word.partition("=")[0] for word in service(**FULL).command if word.startswith("--")}
    assert flags <= set(known.by_name)
    assert not [flag for flag in flags if known.by_name[flag].get("deprecated")]


def test_the_shortest_command_leaves_the_choices_to_sglang() -> None:
    assert " ".join(service().command) == (
        "python3 /stackgen/sglang_launch.py --model-path org/m --host 0.0.0.0 --port 8000 --served-model-name org/m "
        "--enable-metrics"
    )
    assert "--context-length" not in service(max_model_len="auto").command


def test_all_gpus_of_a_replica_are_used() -> None:
    assert service(gpus=4).command[10:12] == ("--tp-size", "4")
    command = service(gpus=4, data_parallel_size=2).command
    assert command[10:14] == ("--tp-size", "2", "--dp-size", "2")
    # with data parallel attention, the copies are inside of the tensor parallel group
    command = service(gpus=4, data_parallel_size=2, extra_args=["--attn-dp-size", "2"]).command
    assert command[10:14] == ("--tp-size", "4", "--dp-size", "2")


def test_the_container_has_the_image_key_cache_and_shared_memory() -> None:
    one = service(gpus=2)
    assert one.image == "lmsysorg/sglang:v0.5.23"
    assert isinstance(dict(one.environment)["SGLANG_API_KEY"], EnvRef)
    assert one.shm_size == "32g" and service().shm_size == "8g" and service(ipc="host").shm_size == ""
    targets = [mount.target for mount in one.mounts if not isinstance(mount, Tmpfs)]
    assert targets == ["/stackgen", "/models", "/home/vllm/.cache"]
    assert ("sglang-cache", "stackgen-sglang-cache") in plan().volumes


def test_the_cpu_needs_an_image_and_gets_the_cpu_engine() -> None:
    one = service(gpus="none", image="me/sglang-cpu:1")
    assert dict(one.environment)["SGLANG_USE_CPU_ENGINE"] == "1"
    assert one.command[one.command.index("--device") + 1] == "cpu"
    [mistake] = mistakes(gpus="none")
    assert mistake.path == "models[0].image" and "no CPU image" in mistake.message and "engine: vllm" in mistake.hint
    # a local process has the user's own installation
    assert "SGLANG_USE_CPU_ENGINE" in dict(
        plan(ProcessSite(Path("/s"), Path("/t")), gpus="none").services[-1].environment
    )


@pytest.mark.parametrize(
    ("fields", "path", "part"),
    [
        ({"served_names": ["a", "b"]}, "served_names", "under one name"),
        ({"gpu_memory_utilization": 0.9}, "gpu_memory_utilization", "can't limit the whole memory"),
        ({"gpus": "all"}, "gpus", "needs tensor_parallel_size"),
        ({"gpus": 2, "tensor_parallel_size": 4}, "gpus", "is 4, but each replica has 2 GPUs"),
        ({"gpus": 4, "tensor_parallel_size": 2}, "tensor_parallel_size", "is 2, but each replica has 4 GPUs"),
        ({"gpus": 3, "data_parallel_size": 2}, "gpus", "can't be split into 2 groups"),
        ({"tool_call_parser": "qwen2.5"}, "tool_call_parser", "does not know the value"),
        ({"quantization": "awk"}, "quantization", "does not know the value"),
        ({"extra_args": ["--tp", "2"]}, "extra_args[0]", "repeats --tp-size"),
        ({"extra_args": ["--api-key", "x"]}, "extra_args[0]", "repeats --api-key"),
        ({"extra_args": ["--admin-api-key", "x"]}, "extra_args[0]", "writes it into its log"),
        ({"extra_args": ["--config", "x"]}, "extra_args[0]", "reads flags from a file"),
    ],
)
def test_what_sglang_can_not_do_is_a_mistake_at_its_field(fields: dict[str, Any], path: str, part: str) -> None:
    found = mistakes(**fields)
    assert [one for one in found if one.path == f"models[0].{path}" and part in one.message], found
    assert all(one.hint for one in found)


def test_several_machines_keep_their_flags_and_their_sizes() -> None:
    nodes = ("--nnodes", "2", "--node-rank", "0", "--dist-init-addr", "10.0.0.1:20000")
    command = service(gpus=8, tensor_parallel_size=16, extra_args=nodes).command
    assert command[-6:] == nodes and command[command.index("--tp-size") + 1] == "16"


SERVER = """
import logging, sys
def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.info(f"server_args={sys.argv[1:]}")
    logging.info("key %s", sys.argv[-1])
    print(open("/proc/self/cmdline").read().replace(chr(0), " "))
"""


def launch(folder: Path, key: str) -> subprocess.CompletedProcess[str]:
    """Runs the launcher with a package in place of SGLang, which logs its arguments as SGLang does."""
    package = folder / "sglang" / "cli"
    package.mkdir(parents=True)
    for path in (folder / "sglang/__init__.py", package / "__init__.py"):
        path.touch()
    (package / "main.py").write_text(SERVER)
    command = [sys.executable, str(ENGINES / "sglang_launch.py"), "--model-path", "m"]
    env = {**os.environ, "SGLANG_API_KEY": key, "PYTHONPATH": str(folder)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)


def test_the_launcher_hands_the_key_over_but_not_to_the_process_list_or_the_log(tmp_path: Path) -> None:
    done = launch(tmp_path, "secret-key")
    first, second, shown = done.stdout.splitlines()
    assert first == "server_args=['serve', '--model-path', 'm', '--api-key', '***']" and second == "key ***"
    assert "--model-path m" in shown and "secret-key" not in done.stdout + done.stderr


def test_without_a_key_the_launcher_starts_nothing(tmp_path: Path) -> None:
    done = launch(tmp_path, "")
    assert done.returncode == 1 and "SGLANG_API_KEY is empty" in done.stderr


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (500, False)])
def test_the_health_check_asks_for_a_token(status: int, healthy: bool, tmp_path: Path) -> None:
    with serve("vllm") as fake:
        fake.routes["GET /health_generate"] = Answer(status, b"")
        command = [sys.executable, str(ENGINES / "sglang_health.py"), fake.url.removesuffix("/v1")]
        env = {**os.environ, "STACKGEN_READY_FILE": str(tmp_path / "ready"), "SGLANG_API_KEY": "k"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode == 0) == healthy == (tmp_path / "ready").exists()
        assert [one.path for one in fake.seen] == ["/health_generate"]
    assert healthy or f"answered {status}" in done.stderr
