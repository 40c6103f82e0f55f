"""The settings of a model in stack.yaml, as `Settings`: its fields, and the flags in `extra_args`.

Flags: `vllm serve --help` of 0.32.0 and `llama-server --help` of b11434, in stackgen/flags/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from stackgen.fit.settings import Settings
from stackgen.flags import load_flags
from stackgen.flags.arguments import parse_arguments
from stackgen.flags.parallel import count_machines, count_model_groups, count_stages
from stackgen.flags.releases import flags_of

__all__ = ["engine_version", "read_settings", "replica_parallel"]

# flags whose effect on memory is not estimated, and why
DOUBTS = {
    "--speculative-config": "the memory of the draft model of --speculative-config is not estimated",
    "--cpu-offload-gb": "--cpu-offload-gb moves weights to the machine's memory",
    "--offload-backend": "--offload-backend moves weights to the machine's memory",
    "--enable-expert-parallel": "--enable-expert-parallel distributes the experts differently",
    "--kv-transfer-config": "the buffers of --kv-transfer-config are not estimated",
    "--hf-overrides": "--hf-overrides changes the model's config",
    "--data-parallel-size": "--data-parallel-size changes the buffers of NCCL",
    "--decode-context-parallel-size": "--decode-context-parallel-size divides the KV cache",
    "--enable-sleep-mode": "--enable-sleep-mode changes how the memory is counted",
    "--num-gpu-blocks-override": "--num-gpu-blocks-override sets the size of the KV cache",
    "--override-tensor": "--override-tensor keeps weights in the machine's memory",
    "--cpu-moe": "--cpu-moe keeps experts in the machine's memory",
    "--n-cpu-moe": "--n-cpu-moe keeps experts in the machine's memory",
    "--model-draft": "the memory of a draft model is not estimated",
    "--mmproj": "the memory of the image encoder of --mmproj is not estimated",
}
# the same for fields of stack.yaml: they are no flags in extra_args, and their flag names the reason
DOUBT_FIELDS = {
    "speculative": "--speculative-config", "cpu_offload_gib": "--cpu-offload-gb",
    "expert_parallel": "--enable-expert-parallel", "sleep_mode": "--enable-sleep-mode",
}  # fmt: skip
LORA_DEFAULT = 16


def _count(text: str) -> int:
    factors = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([kmgKMG]?)", text, re.ASCII)
    return int(float(match[1]) * factors.get(match[2], 1)) if match else 0


# flag -> field of Settings, and how its value is read
FLAGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--max-num-batched-tokens": ("max_num_batched_tokens", _count), "--ubatch-size": ("max_num_batched_tokens", _count),
    "--max-num-seqs": ("max_num_seqs", _count),
    "--parallel": ("max_num_seqs", _count), "--block-size": ("block_size", _count),
    "--kv-cache-memory-bytes": ("kv_cache_bytes", _count), "--kv-cache-dtype": ("kv_cache_dtype", str),
    "--cache-type-k": ("kv_cache_dtype", str), "--quantization": ("quantization", str), "--dtype": ("dtype", str),
    "--max-loras": ("loras", _count), "--max-lora-rank": ("lora_rank", _count),
    "--max-model-len": ("max_model_len", _count),
    "--gpu-memory-utilization": ("utilization", float),
}  # fmt: skip
SWITCHES: dict[str, dict[str, Any]] = {
    "--enforce-eager": {"enforce_eager": True}, "--no-enable-prefix-caching": {"prefix_caching": False},
    "--language-model-only": {"text_only": True},
}  # fmt: skip


def read_settings(
    spec: Any, gpu_count: int, version: tuple[int, ...] = (0, 32, 0), lora_rank: int | None = None, nodes: int = 1
) -> Settings:
    """The settings of a model of stack.yaml whose replicas have `gpu_count` GPUs; 0: it runs on the CPU.

    `version` is the engine's, from its image. `lora_rank` is the highest rank that the rendered command accepts: local
    adapters decide it. None: there is no command. `nodes`: those of a cluster on which the GPUs are.
    """
    length = getattr(spec, "max_model_len", None)
    pipeline = count_stages(spec, nodes)
    # without `auto`, -1: vLLM takes the longest context that fits
    tokens = None if length is None else -1 if length in ("auto", "-1") else _count(length) or None
    found = Settings(
        engine=spec.engine, version=version, tensor_parallel=replica_parallel(spec, gpu_count, nodes),
        pipeline_parallel=pipeline,
        # the other engines have no such setting: it is only their share of a GPU with other models
        utilization=spec.gpu_memory_utilization if spec.engine == "vllm" or spec.share_gpus else None,
        max_model_len=None if spec.engine != "vllm" and tokens == -1 else tokens,
        max_num_seqs=getattr(spec, "max_num_seqs", None) or getattr(spec, "worker_concurrency", None),
        dtype=_dtype(spec.dtype), quantization=_quantization(spec), is_cpu=gpu_count == 0,
        kv_cache_dtype=getattr(spec, "kv_cache_dtype", None) or "auto",
        enforce_eager=bool(getattr(spec, "enforce_eager", False)),
        max_num_batched_tokens=getattr(spec, "max_num_batched_tokens", None),
        prefix_caching=getattr(spec, "prefix_caching", None) is not False,
        kv_cache_bytes=getattr(spec, "cpu_kv_cache_gib", 0) * 2**30 if gpu_count == 0 else _cache_bytes(spec),
        loras=(getattr(spec, "max_loras", None) or 1) if getattr(spec, "lora_adapters", ()) else 0,
        lora_rank=lora_rank or getattr(spec, "max_lora_rank", None) or LORA_DEFAULT, doubts=tuple(_field_doubts(spec)),
    )  # fmt: skip
    return _apply_arguments(found, spec)


def replica_parallel(spec: Any, gpu_count: int, nodes: int = 1) -> int:
    """The number of GPUs that each layer is split across, as the engine's file chooses it."""
    groups = count_model_groups(spec) if spec.engine == "vllm" else 1
    pipeline = count_stages(spec, nodes)
    given = getattr(spec, "tensor_parallel_size", None)
    return int(given or max(1, gpu_count * count_machines(spec) // (pipeline * (groups or 1))))


def _cache_bytes(spec: Any) -> int:
    # as Compose reads sizes: powers of 1024
    text = (getattr(spec, "kv_cache_memory", None) or "0k").removesuffix("b")
    return int(text[:-1]) * {"k": 2**10, "m": 2**20, "g": 2**30}[text[-1]]


def _field_doubts(spec: Any) -> Iterator[str]:
    yield from (DOUBTS[flag] for field, flag in DOUBT_FIELDS.items() if getattr(spec, field, None))
    if spec.engine == "vllm" and spec.data_parallel_size > 1:
        yield DOUBTS["--data-parallel-size"]


def _dtype(name: str | None) -> str:
    return (
        "" if name in (None, "auto") else {"half": "float16", "float": "float32", "bfloat": "bfloat16"}.get(name, name)
    )


def _quantization(spec: Any) -> str:
    return "8bit" if getattr(spec, "load_8bit", False) else getattr(spec, "quantization", None) or ""


def _apply_arguments(settings: Settings, spec: Any) -> Settings:
    known, doubts = flags_of(spec) or load_flags(spec.engine), list(settings.doubts)
    for one in parse_arguments(spec.engine, spec.extra_args, known) if known else ():
        if name := one.find_name(frozenset(DOUBTS)):
            doubts.append(DOUBTS[name])
        elif (name := one.find_name(frozenset(FLAGS))) and one.value:
            field, read = FLAGS[name]
            settings = replace(settings, **{field: read(one.value)})
        elif name := next((one.flag for _ in (0,) if one.flag.replace("_", "-") in SWITCHES), ""):
            settings = replace(settings, **SWITCHES[name.replace("_", "-")])
    if spec.engine == "fastchat" and getattr(spec, "max_gpu_memory", None):
        doubts.append("max_gpu_memory moves weights to the machine's memory")
    if spec.engine == "llamacpp" and getattr(spec, "gpu_layers", None) is not None:
        doubts.append("gpu_layers determines which part of the weights is loaded into GPU memory")
    if getattr(spec, "cpu_offloading", False):
        doubts.append("cpu_offloading moves weights to the machine's memory")
    return replace(settings, doubts=tuple(doubts))


def engine_version(image: str) -> tuple[int, ...]:
    """The version in the tag of an image such as `vllm/vllm-openai:v0.32.0-cu129`; () if the tag has none."""
    match = re.search(r":v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", image, re.ASCII)
    return tuple(int(part or 0) for part in match.groups()) if match else ()
