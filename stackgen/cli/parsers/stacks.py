"""The arguments of the commands that write, start and stop stacks."""

from __future__ import annotations

import argparse

from stackgen.cli.parsers.base import Subcommands

__all__ = ["add_schema_and_completion", "add_stack_commands"]

STACK_HELP = "stack.yaml or its folder (default: the current folder)"


def add_stack_commands(subcommands: Subcommands) -> None:
    """Adds init, render, up, down, status and logs."""
    _add_init(subcommands)
    _add_render(subcommands)
    up = subcommands.add("up", "start a stack and wait until every model has answered a real request")
    _add_runtime_argument(up, "compose")
    up.add_argument("--timeout", type=float, metavar="SECONDS", help="stop waiting after SECONDS, and fail")
    up.add_argument(
        "--fix", action="store_true", help="if the start fails: show a safe change to stack.yaml, ask, and apply it"
    )
    up.add_argument("--yes", action="store_true", help="with --fix: apply the change without asking")
    up.add_argument("--progress", choices=("auto", "plain", "none"), default="auto", help="how to show progress")
    down = subcommands.add("down", "stop a stack; keep its volumes with the weights")
    _add_runtime_argument(down)
    # weights are kept by default: other stacks may use the same volume
    down.add_argument(
        "--volumes", action="store_true", help="also remove the volumes; the next start downloads the weights again"
    )
    _add_runtime_argument(subcommands.add("status", "show the state of every service"))
    # not the stack, because the positional arguments are services
    logs = subcommands.add("logs", "show the logs of the services", stack=False)
    logs.add_argument("services", nargs="*", help="show only these services")
    logs.add_argument("--stack", default=".", help=STACK_HELP)
    logs.add_argument("-f", "--follow", action="store_true", help="keep printing new lines")
    logs.add_argument(
        "-n", "--tail", default="all", type=_parse_tail, metavar="LINES", help="show only the last LINES lines"
    )
    _add_runtime_argument(logs)


def add_schema_and_completion(subcommands: Subcommands) -> None:
    """Adds schema and completion."""
    subcommands.add("schema", "print the JSON Schema of stack.yaml", stack=False)
    completion = subcommands.add("completion", "print a shell completion script", stack=False)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that runs the script")


def _add_init(subcommands: Subcommands) -> None:
    init = subcommands.add("init", "write a commented stack.yaml and a .env with a new API key", stack=False)
    init.add_argument("folder", nargs="?", default=".", help="folder to write to (default: the current folder)")
    init.add_argument("--engine", default="vllm", help="vllm, fastchat or llamacpp (default: vllm)")
    init.add_argument(
        "--model", default="meta-llama/Llama-3.2-1B-Instruct",
        help="Hugging Face id or local folder (default: meta-llama/Llama-3.2-1B-Instruct)",
    )  # fmt: skip
    init.add_argument("--file", help="GGUF file in the Hub repository, for llamacpp")
    init.add_argument("--gpus", default="1", help="GPUs: a count, a list, all or none (default: 1)")


def _add_render(subcommands: Subcommands) -> None:
    render = subcommands.add("render", "render a stack from stack.yaml, or from a model and flags", stack=False)
    # a folder with a stack.yaml takes precedence over a model of the same name: see find_stack_file
    render.add_argument(
        "stack", nargs="?", default=".", metavar="STACK|MODEL",
        help="stack.yaml, its folder, or a model (default: the current folder)",
    )  # fmt: skip
    _add_model_flags(render.add_argument_group("options for a single model without stack.yaml"))
    output = render.add_argument_group("output")
    output.add_argument(
        "-o", "--output", metavar="DIR", help="folder to write to (default: the folder of stack.yaml, or compose/NAME)"
    )
    output.add_argument("--stdout", action="store_true", help="print compose.yaml and write nothing")
    output.add_argument("--check", action="store_true", help="write nothing; exit with 1 if files are out of date")
    output.add_argument("--diff", action="store_true", help="print what would change and write nothing")
    output.add_argument("--force", action="store_true", help="overwrite files that were edited by hand")
    output.add_argument("--no-validate", action="store_true", help="don't validate with `docker compose config`")


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
    # argparse passes None for a missing flag, so that the default stays in the spec alone
    group.add_argument("--engine", help="vllm, fastchat or llamacpp")
    group.add_argument("--name", help="name of the stack (default: from the model)")
    group.add_argument(
        "--gpus", help="GPUs: 2 (a count), 0,1 (indices), device=0 (one index), UUIDs separated by commas, all, or none"
    )
    group.add_argument("--replicas", type=int, help="number of replicas, each with its own GPUs")
    group.add_argument(
        "--served-name", action="append", dest="served_names", help="model name that clients use; repeatable"
    )
    group.add_argument("--file", help="GGUF file in the Hub repository, for llamacpp")
    group.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    group.add_argument("--max-model-len", help="context length: 8192, 32k or auto")
    group.add_argument("--tensor-parallel-size", type=int, help="number of GPUs to split each layer across")
    group.add_argument("--gpu-memory-utilization", type=float, help="fraction of each GPU's memory to use")
    group.add_argument("--port", type=int, help="port on this machine (default: 8000)")
    group.add_argument("--bind", help="IP address to bind the port to (default: 127.0.0.1)")
    group.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE",
        help="set any other field, for example dtype=bfloat16 or storage.path=/srv/models; repeatable",
    )  # fmt: skip


def _parse_tail(text: str) -> str:
    # text and not int, because `all` is passed unchanged to `docker compose logs --tail`
    if text != "all" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor `all`")
    return text


def _add_runtime_argument(command: argparse.ArgumentParser, default: str | None = None) -> None:
    suffix = f" (default: {default})" if default else " (default: the runtime that `up` used)"
    command.add_argument(
        "--runtime", choices=("compose", "process"), default=default,
        help=f"containers, or local processes on machines without a container engine{suffix}",
    )  # fmt: skip
