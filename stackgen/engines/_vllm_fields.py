"""Fields of vLLM whose values depend on each other: batches, memory, caches, experts and sleep.

Sources: vLLM 0.32.0, `vllm/config/scheduler.py` (`verify_max_model_len`), `config/cache.py`, `config/offload.py`,
`config/model.py` (`limit_mm_per_prompt`, `enable_sleep_mode`), `v1/worker/gpu_worker.py` (`kv_cache_memory_bytes`). On
the CPU: `v1/worker/cpu_worker.py`, `v1/attention/backends/cpu_attn.py` (`_get_attn_isa`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from stackgen.engines._parallel import parallel_sizes
from stackgen.engines.base import Replica
from stackgen.errors import Mistake
from stackgen.fit.fp8_cache import is_fp8
from stackgen.flags import load_flags
from stackgen.flags.arguments import FORCED_USAGE_EFFECT, FORCED_USAGE_REMEDY, find_forced_usage
from stackgen.flags.parallel import count_model_groups, read_flags
from stackgen.spec import parse_token_count

__all__ = ["find_field_mistakes", "find_field_warnings", "parse_size", "prefix_caching_flag", "vllm_field_flags"]

UNITS = {"k": 2**10, "m": 2**20, "g": 2**30}
# vLLM 0.33 has the second name too
WHOLE_PROMPTS = {"--no-enable-chunked-prefill", "--disable-chunked-prefill"}
DEVELOPER_MODE = "VLLM_SERVER_DEV_MODE"


def parse_size(text: str | None) -> int | None:
    """Bytes of a size such as `8g` or `512mb`, in binary units; None for None."""
    return int(text.rstrip("bkmg")) * UNITS[text.rstrip("b")[-1]] if text else None


def prefix_caching_flag(model: Any) -> str:
    """The switch for prefix caching; "" for vLLM's default, which depends on the model."""
    return {None: "", True: "--enable-prefix-caching", False: "--no-enable-prefix-caching"}[model.prefix_caching]


def vllm_field_flags(model: Any) -> tuple[tuple[str, Any], ...]:
    """Flags and values of the fields in this module, for `format_flags`."""
    limits = json.dumps(model.limit_mm_per_prompt) if model.limit_mm_per_prompt else None
    return (
        ("--data-parallel-size", model.data_parallel_size if model.data_parallel_size > 1 else None),
        ("--enable-expert-parallel", model.expert_parallel),
        ("--max-num-batched-tokens", model.max_num_batched_tokens),
        (prefix_caching_flag(model), bool(prefix_caching_flag(model))),
        ("--kv-cache-memory-bytes", parse_size(model.kv_cache_memory)),
        ("--cpu-offload-gb", model.cpu_offload_gib or None),
        ("--load-format", model.load_format),
        ("--limit-mm-per-prompt", limits),
        ("--enable-sleep-mode", model.sleep_mode),
    )


def find_field_mistakes(replica: Replica, cpu_arch: str) -> Iterator[Mistake]:
    """Combinations of fields that vLLM refuses at its start, or that have no effect. `cpu_arch`: of the machine."""
    model, path = replica.spec, replica.path
    yield from _find_batch_mistakes(model, path)
    if model.prefix_caching is False and model.cache_aware:
        yield Mistake(f"{path}.prefix_caching", "is false, which turns off the prefix cache, but cache_aware needs "
                                                "this cache",
                      hint="remove prefix_caching, or remove cache_aware")  # fmt: skip
    if replica.gpus:
        return
    # vLLM moves weights from a GPU to the host, and its sleep mode frees GPU memory
    for field, instead in (("cpu_offload_gib", "remove the field: the weights are already in the host's memory"),
                           ("sleep_mode", "remove the field: vLLM supports it only on GPUs"),
                           ("kv_cache_memory", "set cpu_kv_cache_gib")):  # fmt: skip
        if getattr(model, field):
            yield Mistake(f"{path}.{field}", "has no effect on the CPU", hint=instead)
    if model.kv_cache_dtype and is_fp8(model.kv_cache_dtype) and cpu_arch != "x86_64":
        yield Mistake(f"{path}.kv_cache_dtype", f"is {model.kv_cache_dtype}, but on the CPU, vLLM supports an FP8 KV "
                      f"cache only on x86_64 with AVX-512 or AMX, and cpu_arch is {cpu_arch}",
                      hint="remove the field. `cpu_kv_cache_gib` sets the size of the KV cache")  # fmt: skip


def _find_batch_mistakes(model: Any, path: str) -> Iterator[Mistake]:
    """A limit of tokens in one step that is too small for what one step must hold."""
    given = read_flags("vllm", model.extra_args, model.engine_version)
    batch = model.max_num_batched_tokens or _count(given.get("--max-num-batched-tokens"))
    sequences = model.max_num_seqs or _count(given.get("--max-num-seqs"))
    length = _count(model.max_model_len or given.get("--max-model-len"))
    place = f"{path}.max_num_batched_tokens" if model.max_num_batched_tokens else f"{path}.extra_args"
    if not batch:
        return
    if sequences and batch < sequences:
        yield Mistake(
            place,
            f"is {batch}, which is less than max_num_seqs ({sequences})",
            hint=f"set at least {sequences}, because each running request needs one token in each step",
        )
    tokens = model.speculative.num_speculative_tokens if model.speculative else None
    # vLLM compares these only for adapters
    if model.lora_adapters and tokens and sequences and sequences <= batch < sequences * (tokens + 1):
        yield Mistake(place, f"is {batch}, but with adapters and speculative decoding, one step needs "
                      f"{sequences * (tokens + 1)} tokens: max_num_seqs x (num_speculative_tokens + 1)",
                      hint="increase it, or decrease max_num_seqs or num_speculative_tokens")  # fmt: skip
    whole = {one.replace("_", "-") for one in model.extra_args} & WHOLE_PROMPTS
    if length and batch < length and whole:
        yield Mistake(place, f"is {batch}, but with {min(whole)}, one step must hold a whole prompt of up to "
                      f"{length} tokens (max_model_len)",
                      hint=f"remove {min(whole)} from extra_args, or set at least {length}")  # fmt: skip


def _count(text: str | None) -> int | None:
    """A number of tokens or requests; None if it is not known before the start, as for `auto`."""
    known = text and re.fullmatch(r"\d{1,12}|\d{1,9}(\.\d{1,9})?[kKmM]", text, re.ASCII)
    return parse_token_count(text) if text and known else None


def find_field_warnings(replica: Replica) -> Iterator[str]:
    """What works, but not as many people expect."""
    model, path = replica.spec, replica.path
    # None: several machines
    if model.expert_parallel and parallel_sizes(replica)[0] * (count_model_groups(model) or 2) == 1:
        yield f"{path}.expert_parallel has no effect, because the tensor and the data parallel size are 1"
    if model.sleep_mode and DEVELOPER_MODE not in model.extra_env:
        yield (
            f"{path}.sleep_mode makes the engine ready to sleep, but vLLM offers /sleep and /wake_up only with "
            f"{DEVELOPER_MODE}=1. stackgen does not set this variable, because it also opens paths that need no "
            "key and change the engine (/collective_rpc). Set it in extra_env only if only the gateway can reach "
            "the replica"
        )
    if model.load_format == "dummy":
        yield f"{path}.load_format is dummy: the weights are random, and the answers have no meaning"
    if not replica.gpus and model.kv_cache_dtype and is_fp8(model.kv_cache_dtype):
        yield (
            f"{path}.kv_cache_dtype is {model.kv_cache_dtype}: on the CPU, vLLM starts with it only if the CPU has "
            "AVX-512 or AMX. `stackgen doctor` checks this. `cpu_kv_cache_gib` sets the size of the KV cache"
        )
    if model.kv_cache_memory and model.gpu_memory_utilization and not model.share_gpus:
        yield (
            f"{path}.kv_cache_memory sets the size of the KV cache, so gpu_memory_utilization only decides how much "
            "memory must be free at the start"
        )
    known = load_flags("vllm", model.engine_version) or load_flags("vllm")
    if known and (forced := find_forced_usage(model.extra_args, known)):
        yield (
            f"{path}.extra_args[{forced.index}]: with {forced.flag}, {FORCED_USAGE_EFFECT}. To avoid this, "
            f"{FORCED_USAGE_REMEDY}"
        )
