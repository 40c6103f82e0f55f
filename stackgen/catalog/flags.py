"""Which flags of a recipe a stack can use: those that the version of vLLM has, with a value that it accepts.

The table of a version (`stackgen/flags/`) comes from the real program. A snapshot is only data: it can set no flag that
is not in `USABLE`, which has none that loads code, opens a file or a port, or names another model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from stackgen.catalog.entry import Entry, Variant
from stackgen.flags import PINNED, REMOVED_FLAGS, load_flags, normalize_flag
from stackgen.flags.arguments import Argument, parse_arguments, suggest_value

__all__ = ["PARSER_FLAGS", "USABLE", "Parser", "Settings", "accepts", "first_version", "settle", "why_not"]

USABLE = frozenset({
    "--additional-config", "--async-scheduling", "--attention-backend", "--attention-config", "--block-size",
    "--chat-template-content-format", "--compilation-config", "--config-format", "--cpu-offload-gb",
    "--default-chat-template-kwargs", "--disable-cascade-attn", "--dtype", "--enable-chunked-prefill",
    "--enable-expert-parallel", "--enable-flashinfer-autotune", "--enable-prefix-caching", "--enforce-eager",
    "--generation-config", "--gpu-memory-utilization", "--kernel-config", "--kv-cache-dtype", "--language-model-only",
    "--limit-mm-per-prompt", "--linear-backend", "--load-format", "--mamba-backend", "--mamba-cache-mode",
    "--mamba-ssm-cache-dtype", "--max-model-len", "--max-num-batched-tokens", "--max-num-seqs", "--media-io-kwargs",
    "--mm-encoder-tp-mode", "--mm-processor-cache-gb", "--mm-processor-cache-type", "--moe-backend",
    "--quantization", "--reasoning-config", "--runner", "--tokenizer-mode", "--video-pruning-rate",
})  # fmt: skip
Parser = Literal["tool_call_parser", "reasoning_parser"]
PARSER_FLAGS: dict[Parser, str] = {"tool_call_parser": "--tool-call-parser", "reasoning_parser": "--reasoning-parser"}
CODE = "--trust-remote-code"
# stackgen sets them from the number of GPUs
OWN = frozenset({"--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size"})
# methods that config.json of the checkpoint names, so the flag adds nothing. Older versions of vLLM take it as a choice
# of slow kernels (vllm-project/vllm issue 21376); since auto_awq.py, which 0.32.0 has, both lead to the fast ones
IN_CHECKPOINT = frozenset({"awq", "gptq"})
# flags whose value is a path: of the recipe's machine, not of a container
DEFAULTS_ONLY = {"--generation-config": ("auto", "vllm")}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a stack sets for a variant: flags that the version accepts. `left_out`: the others, each with the reason."""

    args: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


def _parts(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:4]]


def first_version(entry: Entry, variant: Variant) -> str:
    """The oldest vLLM that the recipe names for the variant; "" if it names none."""
    return max((one for one in (entry.first_version, variant.first_version) if one), key=_parts, default="")


def accepts(field: Parser, value: str, version: str = PINNED["vllm"]) -> bool:
    """Whether this version of vLLM has the parser. True without a table of the version, which says nothing."""
    known = load_flags("vllm", version)
    return known is None or suggest_value(known.by_name[PARSER_FLAGS[field]], value) is None


def why_not(entry: Entry, variant: Variant, version: str = PINNED["vllm"]) -> str:
    """Why this version of vLLM can't serve the variant; "" if nothing says so."""
    if entry.omni:
        return "the recipe needs vllm-omni, another server, for which stackgen has no engine"
    needed = first_version(entry, variant)
    if needed and _parts(version) < _parts(needed):
        return f"the recipe needs vLLM {needed} or newer, and this is {version}"
    return ""


def settle(entry: Entry, variant: Variant, version: str = PINNED["vllm"]) -> Settings:
    """The flags for a variant, each checked against the table of the version."""
    known = load_flags("vllm", version) or load_flags("vllm")
    assert known is not None  # the pinned version has a table
    words = (*entry.args, *variant.args)
    kept: dict[str, tuple[str, ...]] = {}
    left: list[tuple[str, str]] = []
    for one in parse_arguments("vllm", words, known):
        text = words[one.index : max(one.index, one.value_index) + 1]
        names = set((one.entry or {}).get("names", ()))
        if reason := _refuse(one, known.version):
            left.append((" ".join(text), reason))
        elif not OWN & names and not ("--quantization" in names and one.value in IN_CHECKPOINT):
            # a flag of the variant replaces the model's, but each key of a JSON value is a flag of its own
            key = (one.entry or {})["names"][0] + one.flag.partition(".")[1] + one.flag.partition(".")[2]
            kept.pop(key, None)
            kept[key] = text
    for field, flag in PARSER_FLAGS.items():
        value = getattr(entry, field)
        if value and not accepts(field, value, known.version):
            left.append((f"{flag} {value}", f"vLLM {known.version} has no parser of this name"))
    if entry.chat_template:
        left.append((f"--chat-template {entry.chat_template}",
                     "a file of vLLM's repository: copy it next to stack.yaml, and set `chat_template`"))  # fmt: skip
    return Settings(tuple(word for words in kept.values() for word in words), tuple(left))


def _refuse(argument: Argument, version: str) -> str:
    """Why a stack does not get this flag; "" if it does."""
    flag = normalize_flag(argument.flag.partition(".")[0])
    if argument.entry is None:
        removed = REMOVED_FLAGS["vllm"].get(flag)
        return f"vLLM {version} has no flag {flag}" + (f": {removed}" if removed else "")
    names = set(argument.entry["names"])
    if CODE in names:
        return ("the flag runs Python code from the model's repository. Most models no longer need this code: set "
                "`trust_remote_code` only if vLLM asks for it")  # fmt: skip
    if not names & (USABLE | OWN):
        return "stackgen leaves this flag out, because it loads code, or sets a file, a port or a name"
    if argument.value is not None:
        name = argument.entry["names"][0]
        if name in DEFAULTS_ONLY and argument.value not in DEFAULTS_ONLY[name]:
            return f"its value is not one of {', '.join(DEFAULTS_ONLY[name])}"
        if "." not in argument.flag and (fix := suggest_value(argument.entry, argument.value)):
            return f"vLLM {version} does not accept {argument.value!r}: {fix}"[:200]
    return ""
