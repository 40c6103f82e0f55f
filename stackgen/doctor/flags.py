"""`extra_args`: flags that the pinned version knows, with values it takes. The flags stand in `stackgen.flags`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from stackgen.doctor.finding import Case, Result, Results, fail, good, unknown, warn
from stackgen.flags import GONE_IN, REMOVED, Flags, dashed, known_flags, meant

__all__ = ["FIELDS", "look_at", "of_stack"]

# flags that stack.yaml has a field for: stackgen decides by the field
FIELDS: dict[str, dict[str, str]] = {
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


def of_stack(case: Case) -> Results:
    """Every flag of every model's `extra_args`."""
    for place, model in case.specs():
        if not model.extra_args:
            continue
        known, path = known_flags(model.engine), f"{place}.extra_args"
        if known is None or model.image:
            yield unknown(f"whether {model.engine} knows the flags of extra_args is unknown",
                          f"another image: {model.image}" if model.image else "", place=path)  # fmt: skip
            continue
        found = list(look_at(model.engine, model.extra_args, known, path))
        yield from found
        if not found:
            yield good(
                f"{model.engine} {known.version} knows the flags of extra_args",
                " ".join(word.partition("=")[0] for word in model.extra_args if word.startswith("-")),
                path,
            )


def look_at(engine: str, words: tuple[str, ...], known: Flags, path: str) -> Iterator[Result]:
    """What is wrong with `words`, as the engine's own parser would see them."""
    value_of: dict[str, Any] | None = None
    for index, word in enumerate(words):
        place = f"{path}[{index}]"
        if not re.match(r"--?[A-Za-z]", word):
            if value_of:
                yield from _choice(engine, value_of, word, known, place)
            value_of = None
            continue
        flag, _, value = word.partition("=")
        entry = _entry(engine, flag, known)
        value_of = entry if entry and entry.get("value") and not value else None
        if entry is None:
            yield _unknown(engine, flag, known, place)
            continue
        name = next((one for one in entry["names"] if one in FIELDS[engine]), "")
        if entry.get("removed"):
            yield fail(f"{flag} was removed", f"{engine} {known.version}", f"use {entry['removed']}", place)
        elif name:
            yield warn(
                f"{flag} overrides what stackgen sets: ports, GPUs and names were planned without it",
                f"extra_args come after all other flags of {engine}",
                f"set {FIELDS[engine][name]} instead",
                place,
            )
        if value:
            yield from _choice(engine, entry, value, known, place)


def _entry(engine: str, flag: str, known: Flags) -> dict[str, Any] | None:
    """The entry of a flag; underscores, short forms and abbreviations as each program takes them (tried)."""
    if engine in ("vllm", "llamacpp"):
        flag = flag if flag.startswith("--") is False else "--" + flag[2:].replace("_", "-")
    if engine == "vllm":
        flag = flag.partition(".")[0].rstrip("+")
        flag = "-O" if re.fullmatch(r"-O\d", flag) else flag
    if flag in known.by_name:
        return known.by_name[flag]
    if flag == "-O" and engine == "vllm":
        return {"names": ["-O"]}
    if engine == "llamacpp" or not flag.startswith("--") or flag in REMOVED[engine]:
        return None
    # argparse takes a beginning that only one flag has
    found = [entry for name, entry in known.by_name.items() if name.startswith(flag)]
    return found[0] if found and all(entry is found[0] for entry in found) else None


def _unknown(engine: str, flag: str, known: Flags, place: str) -> Result:
    plain = dashed(flag)
    instead = REMOVED[engine].get(plain)
    if instead:
        since = f" in {engine} {GONE_IN[plain]}" if engine == "vllm" and plain in GONE_IN else ""
        return fail(f"{flag} was removed{since}", f"{engine} {known.version} does not know it", instead, place)
    if engine == "fastchat" and plain in known.by_name:
        return fail(f"{flag} is unknown", "FastChat takes dashes only", f"did you mean {plain}?", place)
    return fail(
        f"{flag} is unknown",
        f"{engine} {known.version} ends with `unrecognized arguments`"
        if engine != "llamacpp"
        else f"{engine} {known.version} ends with `invalid argument`",
        meant(engine, flag) or "leave it out",
        place,
    )


def _choice(engine: str, entry: dict[str, Any], value: str, known: Flags, place: str) -> Iterator[Result]:
    choices = entry.get("choices")
    if not choices or value in choices:
        return
    close = get_close_matches(value, choices, n=1, cutoff=0.6)
    fix = f"did you mean {close[0]}?" if close else f"one of {', '.join(choices[:12])}"
    yield fail(
        f"{entry['names'][0]} does not take {value!r}",
        f"{engine} {known.version} ends with `invalid choice`",
        fix,
        place,
    )
