"""Which features of an engine the failing code belongs to, by its traceback: for logs without a stack.

A feature has the flags that turn it on, so that a user can start once without them. The modules are those of vLLM 0.33
and SGLang 0.5.23; older versions have most of them at the same places.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stackgen.flags import load_flags

__all__ = ["describe_features", "describe_test"]

# more features than these are no hint
SHOWN = 2


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature with the words of modules and messages that belong to it, and its flags in each engine."""

    name: str
    words: re.Pattern[str]
    vllm: tuple[str, ...] = ()
    sglang: tuple[str, ...] = ()


# the first ones are the most specific
FEATURES: tuple[Feature, ...] = tuple(
    Feature(name, re.compile(words, re.I), tuple(vllm.split()), tuple(sglang.split()))
    for name, words, vllm, sglang in (
        ("speculative decoding", r"spec_decode/|srt/speculative/|\bspeculative (?:decoding|model|method)|eagle3?\b|"
         r"draft model|dflash", "--speculative-config", "--speculative-algorithm"),
        ("structured outputs", r"structured_output/|srt/constrained/|xgrammar|llguidance|outlines",
         "--structured-outputs-config", "--grammar-backend"),
        ("LoRA adapters", r"(?:vllm|srt)/lora/", "--enable-lora", "--enable-lora --lora-paths"),
        ("the reasoning parser", r"vllm/reasoning/|reasoning_parser", "--reasoning-parser", "--reasoning-parser"),
        ("the tool call parser", r"tool_parsers/|srt/function_call/", "--tool-call-parser", "--tool-call-parser"),
        ("KV cache transfer", r"kv_transfer/|lmcache|\bnixl\b|mooncake|srt/disaggregation/",
         "--kv-transfer-config", "--disaggregation-mode"),
        ("KV cache offloading", r"kv_offload/|hicache|hiradix|mem_cache/storage", "--kv-offloading-size",
         "--enable-hierarchical-cache"),
        ("sleep mode", r"cumem|memory_saver", "--enable-sleep-mode", "--enable-memory-saver"),
        ("MoE expert communication", r"deep_?ep\b|all2all|a2a (?:backend|token)|token_dispatcher/", "--all2all-backend",
         "--moe-a2a-backend"),
        ("MoE expert load balancing", r"\beplb", "--enable-eplb", "--enable-eplb"),
        ("MoE kernels", r"fused_moe/|moe_runner/|runner backend|layers/moe/", "--moe-backend",
         "--moe-runner-backend"),
        ("CUDA graphs", r"cuda_?graph(?!_mode)|graph_runner", "--enforce-eager", "--disable-cuda-graph"),
        ("torch.compile", r"vllm/compilation/|inductor|_dynamo|compilation/", "--compilation-config",
         "--enable-torch-compile"),
        ("the attention backend", r"attention/backends/|layers/attention/", "--attention-backend",
         "--attention-backend"),
        ("images, audio and video", r"vllm/multimodal/|srt/multimodal/|mm_processor|image_processing",
         "--limit-mm-per-prompt", "--mm-attention-backend"),
        ("custom all-reduce", r"custom_all_reduce|device_communicators/(?!shm)", "--disable-custom-all-reduce",
         "--disable-custom-all-reduce"),
    )
)  # fmt: skip
# flags that turn a feature off
OFF = frozenset(("--enforce-eager", "--disable-cuda-graph", "--disable-custom-all-reduce"))


def describe_features(text: str, engine: str) -> str:
    """The features that `text` is about, as `speculative decoding (--speculative-config)`; "" if there are none.

    `text` is the message with the frames above it.
    """
    found = _find_features(text, engine)
    return " and ".join(f"{name} ({'off with ' if flags in OFF else ''}{flags})" for name, flags in found)


def describe_test(text: str, engine: str) -> str:
    """The features that `text` is about, and how to start without them; "" if there are none."""
    found = _find_features(text, engine)
    if not found:
        return ""
    off = " and ".join(flags for _, flags in found if flags in OFF)
    tests = [f"with {off}"] if off else []
    on = [flags for _, flags in found if flags not in OFF]
    if on:
        others = "other values" if len(on) > 1 else "another value"
        tests.append(f"without {' and '.join(on)} (if set), or with {others}")
    named = " and ".join(name for name, _ in found)
    return f"{named}: as a test, start once {' and '.join(tests)}"


def _find_features(text: str, engine: str) -> list[tuple[str, str]]:
    """Names and flags of at most `SHOWN` features."""
    known = load_flags(engine) if engine in ("vllm", "sglang") else None
    if not known:
        return []
    found = []
    for one in FEATURES:
        flags = [flag for flag in getattr(one, engine) if flag in known.by_name]
        if flags and one.words.search(text):
            found.append((one.name, " and ".join(flags)))
    return found[:SHOWN]
