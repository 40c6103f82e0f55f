"""Healthy machines of several kinds as data, which tests add faults to, and stacks to check on them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from stackgen.check.huggingface import HubLookup
from stackgen.doctor.collect import collect_inputs, try_open_stack
from stackgen.doctor.facts import GIB, Disk, Gpu, Host
from stackgen.doctor.finding import Finding
from stackgen.doctor.table import run_checks

KEY = "sk-Zq3vT9xLw2mK8pRb5nYc7dHf4gJs6aVe"
IMAGES = ("vllm/vllm-openai:v0.32.0", "vllm/vllm-openai-cpu:v0.32.0-x86_64", "haproxy:3.2.26")
FLAGS = frozenset({"sse4_2", "avx2", "avx512f"})


def make_gpu(index: int, name: str, gib: int, compute: tuple[int, int], **fields: Any) -> Gpu:
    uuid = f"GPU-{index:08x}-0000-4000-8000-{index:012x}"
    total = gib * GIB
    return replace(Gpu(index, uuid, name, total, total - GIB // 2, compute, False, 0, True), **fields)


def make_host(gpus: tuple[Gpu, ...] | None = (), **fields: Any) -> Host:
    """A healthy machine with these GPUs."""
    disk = Disk("/var/lib/docker", 2000 * GIB, 1)
    made = Host(
        docker_cli=True, engine_state="ok", engine="28.5.2", compose="2.40.3", buildx="v0.29.1", cgroup=2,
        docker_disk=disk, images=IMAGES, runtimes=("runc", "nvidia") if gpus else ("runc",), containers=(), projects=(),
        storage_root="", memory_total=256 * GIB, memory_available=200 * GIB, shm=128 * GIB, cpu_arch="x86_64",
        cpu_flags=FLAGS, cpu_count=16, addresses=("127.0.0.1", "192.168.1.5"), listeners=(), gpu_tool=bool(gpus),
        driver="580.95.05" if gpus else None, cuda="13.0" if gpus else None, gpus=gpus, toolkit=bool(gpus), cdi=(),
        amd=False, proxies=(), daemon_proxy=False,
    )  # fmt: skip
    return replace(made, **fields)


ONE_24 = make_host((make_gpu(0, "NVIDIA GeForce RTX 4090", 24, (8, 9)),))
EIGHT_80 = make_host(tuple(make_gpu(index, "NVIDIA H100 80GB HBM3", 80, (9, 0)) for index in range(8)))
MIXED = make_host(
    (make_gpu(0, "NVIDIA GeForce RTX 4090", 24, (8, 9)), make_gpu(1, "NVIDIA GeForce RTX 3060", 12, (8, 6)))
)
TURING = make_host((make_gpu(0, "Tesla T4", 16, (7, 5)),))
NO_GPU = make_host(None, gpu_tool=False, gpu_error="there is no nvidia-smi")
AMD = make_host(None, gpu_tool=False, amd=True)
NO_DOCKER = make_host(
    (), docker_cli=False, engine_state="missing", engine=None, compose=None, compose_missing=True, buildx=None,
    buildx_missing=True, cgroup=None, docker_disk=None, images=None, runtimes=None, containers=None, projects=None,
)  # fmt: skip
NOTHING_KNOWN = Host()

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_hidden_layers": 32, "max_position_embeddings": 8192, "dtype": "bfloat16", "vocab_size": 128256,
}  # fmt: skip


def write_model(folder: Path, config: dict[str, Any] | None = None, **files: str) -> Path:
    """Writes a model folder with one complete shard of 16 zero bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    header = json.dumps({"w": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    return folder


def write_stack(folder: Path, key: str = KEY, **fields: Any) -> Path:
    """Writes and renders a stack with one local vLLM model and a key. `stack_NAME` sets the stack's field NAME."""
    from stackgen.render.write import compare, write_files
    from stackgen.stack.folder import open_stack

    if "model" not in fields:
        write_model(folder / "model", fields.pop("config", None))
    model = {"model": "./model", "engine": "vllm", "gpus": 1, "served_names": ["m"]} | fields
    stack = {name[6:]: model.pop(name) for name in list(model) if name.startswith("stack_")}
    path = folder / "stack.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"name": "t", "models": [model]} | stack))
    (folder / ".env").write_text(f"STACKGEN_API_KEY={key}\nSTACKGEN_ENGINE_KEY={KEY}\n")
    os.chmod(folder / ".env", 0o600)
    rendered = open_stack(str(path))
    write_files(compare(rendered.files(), rendered.folder), rendered.folder)
    return path


def findings(
    machine: Host, path: Path | None, hub: dict[str, HubLookup | None] | None = None, offline: bool = False
) -> tuple[Finding, ...]:
    if path is None:
        return run_checks(collect_inputs(machine))
    return run_checks(collect_inputs(machine, *try_open_stack(str(path)), hub, offline))


def problem_ids(found: tuple[Finding, ...], *statuses: str) -> set[str]:
    """The ids of the findings with one of `statuses`, by default fail and warn."""
    return {finding.id for finding in found if finding.status in (statuses or ("fail", "warn"))}


def single_problem(found: tuple[Finding, ...], id: str, status: str) -> Finding:
    """The only finding with status fail or warn; asserts that there is exactly one, with evidence or place, and fix."""
    wrong = [finding for finding in found if finding.status in ("fail", "warn")]
    assert [(one.id, one.status) for one in wrong] == [(id, status)], wrong
    assert wrong[0].message and (wrong[0].evidence or wrong[0].place) and wrong[0].fix
    return wrong[0]
