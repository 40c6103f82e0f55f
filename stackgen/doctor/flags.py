"""Checks `extra_args`: does the pinned engine version know the flags and accept their values? See `stackgen.flags`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from stackgen.doctor.finding import DoctorInputs, Result, Results, fail, ok, unknown, warn
from stackgen.flags import REMOVED_FLAGS, REMOVED_IN, Flags, load_flags, normalize_flag, suggest_flag

__all__ = ["FIELD_OF_FLAG", "check_extra_args", "check_flags"]

# engine -> flag -> the field of stack.yaml that sets it
FIELD_OF_FLAG: dict[str, dict[str, str]] = {
    "vllm": {
        "--model": "model", "--revision": "revision", "--served-model-name": "served_names", "--port": "port",
        "--tensor-parallel-size": "tensor_parallel_size", "--pipeline-parallel-size": "pipeline_parallel_size",
        "--max-model-len": "max_model_len", "--dtype": "dtype", "--quantization": "quantization",
        "--kv-cache-dtype": "kv_cache_dtype", "--gpu-memory-utilization": "gpu_memory_utilization",
        "--max-num-seqs": "max_num_seqs", "--trust-remote-code": "trust_remote_code", "--host": "bind",
        "--enforce-eager": "enforce_eager", "--chat-template": "chat_template", "--api-key": "STACKGEN_API_KEY in .env",
        "--tool-call-parser": "tool_call_parser", "--reasoning-parser": "reasoning_parser",
        "--lora-modules": "lora_adapters",
    },
    "fastchat": {
        "--model-path": "model", "--model-names": "served_names", "--revision": "revision", "--num-gpus": "gpus",
        "--gpus": "gpus", "--device": "gpus", "--conv-template": "conv_template", "--dtype": "dtype",
        "--limit-worker-concurrency": "worker_concurrency", "--load-8bit": "load_8bit",
        "--cpu-offloading": "cpu_offloading", "--max-gpu-memory": "max_gpu_memory",
    },
    "llamacpp": {
        "--model": "model", "--alias": "served_names", "--port": "port", "--host": "bind",
        "--ctx-size": "max_model_len", "--parallel": "max_num_seqs", "--gpu-layers": "gpu_layers",
        "--api-key": "STACKGEN_API_KEY in .env",
    },
}  # fmt: skip


def check_extra_args(inputs: DoctorInputs) -> Results:
    """Every flag in every model's `extra_args` is known, and its value accepted."""
    for place, model in inputs.model_specs():
        if not model.extra_args:
            continue
        known, path = load_flags(model.engine), f"{place}.extra_args"
        # another image may contain another version of the engine
        if known is None or model.image:
            yield unknown(
                f"can't tell whether {model.engine} knows the flags in extra_args",
                evidence=f"custom image: {model.image}" if model.image else "",
                place=path,
            )
            continue
        problems = list(check_flags(model.engine, model.extra_args, known, path))
        yield from problems
        if not problems:
            # names only: a value may be a secret
            names = " ".join(one.partition("=")[0] for one in model.extra_args if one.startswith("-"))
            yield ok(f"{model.engine} {known.version} knows the flags in extra_args", evidence=names, place=path)


def check_flags(engine: str, arguments: tuple[str, ...], known: Flags, path: str) -> Iterator[Result]:
    """The problems in `arguments`, parsed as the engine's own parser would.

    `path` is their path in stack.yaml; each result names its argument as `PATH[INDEX]`.
    """
    value_of: dict[str, Any] | None = None
    for index, argument in enumerate(arguments):
        place = f"{path}[{index}]"
        # a value, also a negative number such as -1
        if not re.match(r"--?[A-Za-z]", argument):
            if value_of:
                yield from _check_choice(engine, value_of, argument, known, place)
            value_of = None
            continue
        flag, _, value = argument.partition("=")
        entry = _find_entry(engine, flag, known)
        value_of = entry if entry and entry.get("value") and not value else None
        if entry is None:
            yield _explain_unknown_flag(engine, flag, known, place)
            continue
        name = next((one for one in entry["names"] if one in FIELD_OF_FLAG[engine]), "")
        if entry.get("removed"):
            yield fail(
                f"{flag} was removed",
                evidence=f"{engine} {known.version}",
                fix=f"use {entry['removed']}",
                place=place,
            )
        elif name:
            yield warn(
                f"{flag} overrides stackgen's own flag: stackgen planned ports, GPUs and names without {flag}",
                evidence=f"extra_args come after all other flags of {engine}",
                fix=f"set {FIELD_OF_FLAG[engine][name]} instead",
                place=place,
            )
        if value:
            yield from _check_choice(engine, entry, value, known, place)


def _find_entry(engine: str, flag: str, known: Flags) -> dict[str, Any] | None:
    """The entry of a flag. Accepts the same underscores, short forms and abbreviations as each program (tested)."""
    if engine in ("vllm", "llamacpp"):
        flag = flag if flag.startswith("--") is False else "--" + flag[2:].replace("_", "-")
    if engine == "vllm":
        # --speculative-config.method and --compilation-config.sizes+ set one key of a JSON value
        flag = flag.partition(".")[0].rstrip("+")
        flag = "-O" if re.fullmatch(r"-O\d", flag) else flag
    if flag in known.by_name:
        return known.by_name[flag]
    if flag == "-O" and engine == "vllm":
        return {"names": ["-O"]}
    # llama.cpp has a parser of its own, which accepts no abbreviations
    if engine == "llamacpp" or not flag.startswith("--") or flag in REMOVED_FLAGS[engine]:
        return None
    # argparse accepts a prefix that only one flag has
    found = [entry for name, entry in known.by_name.items() if name.startswith(flag)]
    return found[0] if found and all(entry is found[0] for entry in found) else None


def _explain_unknown_flag(engine: str, flag: str, known: Flags, place: str) -> Result:
    plain = normalize_flag(flag)
    instead = REMOVED_FLAGS[engine].get(plain)
    if instead:
        since = f" in {engine} {REMOVED_IN[plain]}" if engine == "vllm" and plain in REMOVED_IN else ""
        evidence = f"{engine} {known.version} does not know {flag}"
        return fail(f"{flag} was removed{since}", evidence=evidence, fix=instead, place=place)
    # the flag is right except for its underscores, which only vLLM and llama.cpp accept
    if engine == "fastchat" and plain in known.by_name:
        evidence = "FastChat accepts dashes only"
        return fail(f"{flag} is unknown", evidence=evidence, fix=f"did you mean {plain}?", place=place)
    error = "invalid argument" if engine == "llamacpp" else "unrecognized arguments"
    return fail(
        f"{flag} is unknown",
        evidence=f"{engine} {known.version} exits with `{error}`",
        fix=suggest_flag(engine, flag) or f"remove {flag}",
        place=place,
    )


def _check_choice(engine: str, entry: dict[str, Any], value: str, known: Flags, place: str) -> Iterator[Result]:
    choices = entry.get("choices")
    if not choices or value in choices:
        return
    close = get_close_matches(value, choices, n=1, cutoff=0.6)
    yield fail(
        f"{entry['names'][0]} does not accept {value!r}",
        evidence=f"{engine} {known.version} exits with `invalid choice`",
        # some flags have dozens of choices
        fix=f"did you mean {close[0]}?" if close else f"use one of {', '.join(choices[:12])}",
        place=place,
    )
