"""The arguments of `stackgen fit`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stackgen.cli.parsers.base import Subcommands, add_lock_argument
from stackgen.cli.parsers.completers import complete_with

__all__ = ["add_fit"]

GPUS = Path(__file__).parents[2] / "fit" / "gpus.tsv"


def _gpu_names(_: object) -> Iterator[str]:
    for line in GPUS.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            yield line.partition("\t")[0]


def add_fit(subcommands: Subcommands) -> None:
    """Adds `stackgen fit`."""
    fit = subcommands.add(
        "fit", "estimate the GPU memory of a stack or a model before it is downloaded, and whether it fits", stack=False
    )
    fit.add_argument(
        "stack", nargs="?", default=".", metavar="STACK|MODEL",
        help="stack.yaml or its folder (default: the current folder), or a model: its id on the Hugging Face Hub, its "
        "folder, or a GGUF file",
    )  # fmt: skip
    gpu = fit.add_argument_group("GPUs (default: those of this machine)")
    complete_with(
        gpu.add_argument("--gpu", metavar="NAME", help="name of a GPU, for example H100 or RTX-4090"), _gpu_names
    )
    gpu.add_argument("--gpu-memory", metavar="SIZE", help="memory of a GPU that is not in the table, for example 24GiB")
    gpu.add_argument("--gpus", type=int, metavar="COUNT", help="number of GPUs that a model is split across")
    gpu.add_argument("--list-gpus", action="store_true", help="print the table of GPUs")
    one = fit.add_argument_group("a model without a stack")
    one.add_argument("--engine", choices=("vllm", "llamacpp", "fastchat"), help="default: llamacpp for GGUF, else vllm")
    one.add_argument("--engine-version", metavar="VERSION", help="version of vLLM (default: the pinned version)")
    one.add_argument(
        "--max-model-len", metavar="TOKENS", help="context length in tokens, for example 32k (default: the model's)"
    )
    one.add_argument("--max-num-seqs", type=int, metavar="COUNT", help="maximum number of concurrent requests")
    one.add_argument("--kv-cache-dtype", metavar="DTYPE", help="data type of the KV cache, for example fp8")
    one.add_argument(
        "--quantization",
        metavar="METHOD",
        help="method by which the weights are quantized while they are loaded, for example fp8",
    )
    one.add_argument(
        "--gpu-memory-utilization", type=float, metavar="SHARE",
        help="fraction of each GPU's memory that vLLM uses, for example 0.9",
    )  # fmt: skip
    one.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the Hub")
    one.add_argument("--file", metavar="FILE.gguf", help="GGUF file in the Hub repository")
    fit.add_argument("--offline", action="store_true", help="don't contact the Hugging Face Hub")
    fit.add_argument(
        "--observe", action="store_true",
        help="compare the estimate with what the running engines printed when they started, and store both",
    )  # fmt: skip
    fit.add_argument(
        "--pin", action="store_true",
        help="with --observe: write the measured size of the KV cache into stack.yaml, so that the next start "
        "uses the same size",
    )  # fmt: skip
    fit.add_argument(
        "--runtime", choices=("compose", "process"),
        help="with --observe: compose: containers. process: local processes (default: the runtime that `up` used)",
    )  # fmt: skip
    add_lock_argument(fit)
