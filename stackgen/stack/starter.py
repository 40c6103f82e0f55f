"""Writes the files of `stackgen init`: a commented stack.yaml, its JSON Schema, a .env with new keys, .gitignore."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from stackgen.catalog import find_parser
from stackgen.catalog.flags import PARSER_FLAGS
from stackgen.errors import StackgenError
from stackgen.render.read import stack_file_in
from stackgen.render.write import write_atomically
from stackgen.resources import templates_dir
from stackgen.stack.envfile import create_env
from stackgen.stack.folder import build_from_flags
from stackgen.stack.gitignore import complete_gitignore
from stackgen.stack.schema import MODELINE, stack_schema
from stackgen.targets.compose import quote

__all__ = ["write_starter"]

# commented lines of the fields that users change first; each of them is valid for its engine
OPTIONS = {
    "vllm": """\
    # max_model_len: 32k            # context length, not a batch size; `auto`: the largest that fits
    # gpu_memory_utilization: 0.92  # fraction of each GPU's memory to use
    # extra_args: [--max-num-batched-tokens, "8192"]
""",
    "sglang": """\
    # max_model_len: 32k            # context length, not a batch size
    # mem_fraction_static: 0.85     # fraction of each GPU's memory for weights and KV cache
    # extra_args: [--schedule-policy, lpm]
""",
    "llamacpp": """\
    # max_model_len: 32k            # context length of each request; `auto`: the model's own
    # max_num_seqs: 4               # requests at the same time; also set max_model_len
    # gpu_layers: 40                # layers on the GPU; default: all
    # extra_args: [--flash-attn, "on"]
""",
    "fastchat": """\
    # conv_template: chat-template  # prompt format; `chat-template` is the one of the model's tokenizer
    # worker_concurrency: 5         # requests that a worker runs at the same time
    # load_8bit: true               # compress the weights to 8 bits while loading
""",
}  # fmt: skip
# these fields need a GPU, or set how the memory of one is used
GPU_FIELDS = ("gpu_memory_utilization", "mem_fraction_static", "gpu_layers")


def write_starter(folder: Path, engine: str, model: str, gpus: str, file: str | None = None) -> list[Path]:
    """Writes the files to `folder` and returns their paths. An existing .env is not changed.

    `file` is a GGUF file of the Hub repository, for llama.cpp. Raises StackgenError if stack.yaml exists, and SpecError
    if the engine, model or GPUs are wrong. After an error, nothing is written.
    """
    path = stack_file_in(folder)
    if path.exists():
        hint = f"`stackgen render {folder}` writes missing files: .env with keys, and the rendered files"
        raise StackgenError(f"{path} already exists", f"edit the file, or choose another folder. {hint}")
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:60] or "stack"
    # only validates, so that an error is raised before anything is written
    spec = build_from_flags(model, {"engine": engine, "gpus": gpus, "name": name, "file": file}, []).spec
    values = {
        "name": _yaml_scalar(name),
        "model": _yaml_scalar(model),
        "engine": engine + (f"\n    file: {_yaml_scalar(file)}" if file else ""),
        "gpus": _yaml_gpus(gpus),
        "arch": _arch_line() if engine == "vllm" and gpus == "none" else "",
        "options": _options(engine, gpus),
        "replicas": "" if gpus == "none" else ", each with its own GPUs",
        "parsers": "".join(_parser_lines(engine, model)),
        "modeline": MODELINE,
    }
    # a text with placeholders, because a YAML library would drop the comments
    template = (templates_dir() / "stack.yaml.txt").read_text("utf-8")
    text = re.sub(r"@(\w+)@", lambda match: values[match[1]], template)
    write_atomically(path, text)
    schema = folder / "stack.schema.json"
    write_atomically(schema, json.dumps(stack_schema(), indent=2) + "\n")
    env = [folder / ".env"] if create_env(folder) else []
    return [path, schema, *env, *([folder / ".gitignore"] if complete_gitignore(folder, spec) else [])]


def _arch_line() -> str:
    # Linux reports aarch64, and macOS arm64
    is_arm = platform.machine() in ("aarch64", "arm64")
    return "cpu_arch: arm64       # CPU architecture of vLLM's image\n" if is_arm else ""


def _options(engine: str, gpus: str) -> str:
    lines = OPTIONS[engine].splitlines(keepends=True)
    if gpus == "none":
        lines = [line for line in lines if not any(f"# {field}:" in line for field in GPU_FIELDS)]
        if engine == "vllm":
            lines.insert(1, "    # cpu_kv_cache_gib: 4           # memory for the KV cache, in GiB\n")
    return "".join(lines)


def _parser_lines(engine: str, model: str) -> Iterator[str]:
    """The parsers that the catalog names for the model; the names are vLLM's."""
    if engine != "vllm":
        return
    for field in PARSER_FLAGS:
        fact = find_parser(field, model)
        if fact and fact.automatic:
            yield f"    # {field}: vLLM sets {fact.value} itself for this model\n"
        elif fact:
            yield f"    {field}: {_yaml_scalar(fact.value)}   # {fact.origin} names it ({fact.date})\n"


def _yaml_scalar(text: str) -> str:
    # quoted if YAML would not read the same text: a folder may have the name 2024, and a path may contain a `#`
    return text if re.fullmatch(r"[A-Za-z./][A-Za-z0-9_./-]*", text) and yaml.safe_load(text) == text else quote(text)


def _yaml_gpus(text: str) -> str:
    # `device=0` is the syntax of `docker run --gpus`
    listed = text.removeprefix("device=")
    return text if text.isdigit() or text in ("all", "none") else f"[{listed}]"
