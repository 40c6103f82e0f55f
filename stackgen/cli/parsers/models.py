"""The arguments of `stackgen models`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from stackgen.cli.parsers.base import Subcommands
from stackgen.cli.parsers.completers import complete_with

__all__ = ["add_models"]

TASKS = ("text", "multimodal", "omni", "embedding")


def _names(args: argparse.Namespace) -> Iterator[str]:
    from stackgen.catalog import load_catalog

    return (entry.model for entry in load_catalog().snapshot.models if getattr(args, "action", "") == "show")


def add_models(subcommands: Subcommands) -> None:
    """Adds `stackgen models`."""
    models = subcommands.add(
        "models", "search the catalog of models, show how to serve one, and get a newer catalog", stack=False
    )
    models.options_first = True
    models.add_argument(
        "action", choices=("search", "show", "sync"),
        help="`search`: list models. `show`: print what is known about a model, and the stack.yaml that serves it. "
        "`sync`: read newer recipes of vLLM",
    )  # fmt: skip
    complete_with(
        models.add_argument(
            "words", nargs="*", metavar="WORD|MODEL|SOURCE",
            help="`search`: words in the name, provider, task or precision. `show`: a model's repository. `sync`: a "
            "checkout of github.com/vllm-project/recipes, its archive (.tar.gz), a catalog (.json), or the URL of "
            "one of these files (default: the archive of the branch main on GitHub)",
        ), _names,
    )  # fmt: skip
    search = models.add_argument_group("only for the action `search`")
    search.add_argument("--task", choices=TASKS, help="the task that the model performs")
    search.add_argument("--tools", action="store_true", help="models whose recipe names a parser for tool calls")
    search.add_argument("--reasoning", action="store_true", help="models whose recipe names a parser for reasoning")
    search.add_argument("--min-size", metavar="PARAMETERS", help="minimum number of parameters, for example 7B")
    search.add_argument("--max-size", metavar="PARAMETERS", help="maximum number of parameters, for example 32B")
    search.add_argument("--context", metavar="TOKENS", help="minimum context length in tokens, for example 128k")
    search.add_argument("--hardware", metavar="NAME", help="hardware that the recipe was verified on, such as H200")
    search.add_argument(
        "--fits", metavar="GPU", help="models whose weights and buffers may fit on this GPU, for example RTX-4090"
    )
    search.add_argument("--all", action="store_true", help="also list models for which stackgen has no engine")
    show = models.add_argument_group("only for the action `show`")
    show.add_argument(
        "--variant", metavar="NAME", help="checkpoint, for example fp8 (default: the one that MODEL names)"
    )
    show.add_argument("--gpu", metavar="NAME", help="GPU to plan for (default: the GPUs of this machine, else H200)")
    show.add_argument("--engine-version", metavar="VERSION", help="version of vLLM (default: the pinned version)")
    show.add_argument(
        "--hub", action="store_true",
        help="also read from the Hugging Face Hub: the license, whether the model is gated, and the sizes for "
            "`stackgen fit`",
    )  # fmt: skip
    models.add_argument("--gpus", type=int, metavar="COUNT", help="number of GPUs, for --fits and --gpu")
    sync = models.add_argument_group("only for the action `sync`")
    sync.add_argument("--sha256", metavar="HASH", help="fail unless the file has this SHA-256")
    sync.add_argument("--dry-run", action="store_true", help="show what would change, and store nothing")
    sync.add_argument("--remove", action="store_true", help="remove the synced catalog, and use stackgen's own")
