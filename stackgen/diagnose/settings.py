"""The stack's own settings that an unknown failure touches: by its message, and by the modules of its traceback."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stackgen.diagnose.error_lines import CRASH_BANNER
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.messages import find_settings, name_setting, strip_quoted
from stackgen.diagnose.templates import has_field
from stackgen.spec import ModelSpec

__all__ = ["ARGUMENTS", "TOUCHED", "find_touched_settings", "read_frames"]

FRAME = re.compile(
    # a package installed from its source folder has no site-packages in its path
    r'^\s+File "(?:.*/(?:dist|site)-packages/|.*/(?=(?:vllm|sglang|fastchat)/\w+/)|.*/)?(?P<module>[^"]+)", '
    r"line \d+(?:, in (?P<function>\w+))?"
)
# what AMD's kernel library logs when it loads a module, and what llama.cpp and vLLM load beside the model
LOADED = re.compile(r"^\[aiter\] (?:import|LoadKernel)\b.{0,300}|^Loading drafter model")
# the outer frames of every traceback are the same
INNER_FRAMES = 8
# words of messages and of modules that belong to settings of every kind: fields, flags, `extra_env.` variables
TOUCHED: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(pattern, re.I), settings)
    for pattern, settings in (
        (r"reasoning.?parser|vllm/reasoning/", ("reasoning_parser", "--reasoning-parser")),
        (r"tool.?parser|tool_parsers/", ("tool_call_parser", "--tool-call-parser")),
        (r"\blora|\badapter", ("lora_adapters",)),
        (r"spec_decode|drafter|[_/]mtp\b|eagle", ("--speculative-config", "--model-draft")),
        (r"custom_all_reduce|all_reduce|parallel_state", ("tensor_parallel_size", "--tensor-parallel-size")),
        (
            r"cuda error|hip error|custom_all_reduce|\ballocator|out of memory|expandable_segments",
            tuple(f"extra_env.{name}_ALLOC_CONF" for name in ("PYTORCH_CUDA", "PYTORCH_HIP", "PYTORCH")),
        ),
        (r"tokenizers? are supported|tokenizer.?mode|mistral.?tokenizer", ("--tokenizer-mode",)),
        (r"chat.?template|jinja", ("chat_template", "--chat-template", "--chat-template-file")),
        (r"size_k|block_?size", ("tensor_parallel_size", "--tensor-parallel-size")),
        # modules of vLLM 0.33 and SGLang 0.5.23 that only a setting loads
        (
            r"kv_transfer/|kv_connector|kv_offload|lmcache|\bnixl\b|hybrid kv cache manager",
            ("--kv-transfer-config", "--kv-offloading-size", "--disable-hybrid-kv-cache-manager"),
        ),
        (r"think_(?:end|start)_token|reasoner_grammar", ("reasoning_parser", "--reasoning-parser")),
        (
            r"spec_decode/|srt/speculative/|\bspeculative|draft|eagle3?\b|dflash|ngram",
            ("speculative", "--speculative-config", "--speculative-algorithm", "--spec-type", "--model-draft"),
        ),
        (r"deep_?ep\b|all2all|fused_moe/.*prepare_finalize", ("--all2all-backend", "--moe-a2a-backend")),
        (
            r"fused_moe/|layers/moe/",
            ("--all2all-backend", "--moe-backend", "--moe-runner-backend", "--moe-a2a-backend", "expert_parallel"),
        ),
        (r"\beplb|redundant_expert", ("--enable-eplb", "--eplb-config")),
        (r"expert.?parallel|\bep_size\b", ("expert_parallel", "--enable-expert-parallel", "--ep-size")),
        (r"attention/backends/|layers/attention/|attn_backend|attention.backend", ("--attention-backend",)),
        (r"mamba|\bssm\b|radix", ("--mamba-scheduler-strategy", "--mamba-cache-mode", "--disable-radix-cache")),
        (r"\blora", ("--enable-lora", "--lora-paths", "--max-lora-rank")),
        (r"rope_(?:scaling|parameters|type)", ("--hf-overrides", "--json-model-override-args")),
        (r"aiter", ("extra_env.VLLM_ROCM_USE_AITER", "extra_env.SGLANG_USE_AITER")),
        (r"compilation/|inductor|torch\.compile|dynamo", ("--compilation-config", "--enable-torch-compile")),
        (r"pipeline.parallel|\bpp_size\b", ("pipeline_parallel_size",)),
        (r"context.parallel|\bdcp\b|\bpcp\b", ("--decode-context-parallel-size", "--prefill-context-parallel-size")),
        (r"sleep|cumem", ("sleep_mode", "--enable-sleep-mode")),
        (r"multimodal|mm_processor|limit_mm", ("limit_mm_per_prompt", "--mm-processor-kwargs", "--mm-encoder-tp-mode")),
        (r"load_format|model_loader/(?!utils|default|base)", ("load_format",)),
        # llama.cpp: modes whose code only a flag runs
        (r"split_axis|split_mode|ggml-backend-meta", ("--split-mode",)),
        (r"fattn|flash_attn", ("--flash-attn", "--cache-type-k", "--cache-type-v")),
        (r"clip\.cpp|mtmd|mmproj", ("mmproj", "--mmproj")),
        (r"dual.?batch|\bdbo\b|ubatch", ("--enable-dbo",)),
        (r"moe.?(?:runner.)?backend", ("--moe-backend", "--moe-runner-backend")),
    )
)
# parts of variables' names that say nothing about one feature
COMMON_PARTS = frozenset((
    "ALLOW", "CONF", "CUDA", "DEBUG", "DISABLE", "ENABLE", "FORCE", "GGML", "HIP", "LEVEL", "LLAMA", "MODE", "NVIDIA",
    "PATH", "PYTORCH", "ROCM", "TORCH", "USE", "VISIBLE", "VLLM", "DEVICES", "CACHE", "HOME", "LAYOUT", "SIZE", "ALLOC",
))  # fmt: skip
ARGUMENTS = re.compile(r"non-default args: \{(?P<text>.*)")


def read_frames(log: str, lines: Sequence[str]) -> str:
    """The modules and functions of the traceback above the last of `lines`, and what was loaded just before."""
    plain = [strip_prefix(line) for line in lines_since_ready(log)]
    shown = {line for line in lines if line}
    places = [index for index, line in enumerate(plain) if line.strip() in shown]
    if not places:
        return ""
    # the first error: later tracebacks are those of the processes that waited for it
    crash = next((i for i in places if CRASH_BANNER.match(plain[i].strip())), None)
    end = places[0] if crash is None else crash
    start = max(0, end - 60)
    frames = [found for line in plain[start:end] if (found := FRAME.match(line))][-INNER_FRAMES:]
    loaded = [line for line in plain[start:end] if LOADED.match(line)][-2:]
    return "\n".join((*(f"{one['module']} {one['function'] or ''}" for one in frames), *loaded))


def find_touched_settings(text: str, log: str, engine: str, model: ModelSpec | None) -> tuple[str, ...]:
    """The settings, in words of stack.yaml, that `text` is about: those that `model` sets.

    Without `model`, those that vLLM's line of its arguments in `log` names; without such a line, all that fit.
    """
    text = strip_quoted(text)
    arguments = next((found["text"] for found in ARGUMENTS.finditer(log)), "")
    found = list(find_settings(text, engine, model))
    if model is None and arguments:
        found = [one for one in found if _is_argument(one, arguments) or re.search(rf"\b{re.escape(one)}\b", text)]
    for pattern, settings in TOUCHED:
        for setting in settings if (model or arguments) and pattern.search(text) else ():
            shown = _name(setting, engine, model)
            if shown and (_is_set(setting, model) if model else _is_argument(shown, arguments)):
                found.append(shown)
    for name in getattr(model, "extra_env", None) or ():
        parts = {part for part in name.split("_") if len(part) > 3} - COMMON_PARTS
        if any(re.search(rf"(?<![A-Za-z]){re.escape(part)}(?![A-Za-z])", text, re.I) for part in parts):
            found.append(f"{name} in extra_env")
    return tuple(dict.fromkeys(found))


def _name(setting: str, engine: str, model: ModelSpec | None) -> str:
    if setting.startswith("extra_env."):
        return f"{setting.removeprefix('extra_env.')} in extra_env"
    return name_setting(setting, engine, model)


def _is_set(setting: str, model: ModelSpec) -> bool:
    return has_field(model, f"extra_args.{setting}" if setting.startswith("-") else setting)


def _is_argument(shown: str, arguments: str) -> bool:
    """Whether vLLM's line of its arguments has the setting, which is named as in stack.yaml."""
    name = shown.strip("`").partition(" in ")[0].lstrip("-").replace("-", "_")
    return f"'{name}':" in arguments
