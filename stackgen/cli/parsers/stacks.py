"""Words of the commands for stacks."""

from __future__ import annotations

import argparse

from stackgen.cli.parsers.base import Adder

__all__ = ["add_others", "add_stacks"]


def add_stacks(add: Adder) -> None:
    """init, render, up, down, status, logs."""
    init = add("init", "write a commented stack.yaml and a .env with a new key", stack=False)
    init.add_argument("folder", nargs="?", default=".", help="where to (default: here)")
    init.add_argument("--engine", default="vllm", help="vllm, fastchat or llamacpp (default: vllm)")
    init.add_argument("--model", default="meta-llama/Llama-3.2-1B-Instruct", help="Hugging Face id or local folder")
    init.add_argument("--file", help="GGUF file of the Hub repository, for llamacpp")
    init.add_argument("--gpus", default="1", help="count, list, all or none (default: 1)")

    render = add("render", "render a stack from stack.yaml, or from a model and flags", stack=False)
    render.add_argument(
        "stack", nargs="?", default=".", metavar="STACK|MODEL", help="stack.yaml, its folder, or a model"
    )
    _add_flags(render.add_argument_group("a single model, without stack.yaml"))
    output = render.add_argument_group("output")
    output.add_argument("-o", "--output", metavar="DIR", help="folder (default: that of stack.yaml, or compose/NAME)")
    output.add_argument("--stdout", action="store_true", help="print compose.yaml and write nothing")
    output.add_argument("--check", action="store_true", help="write nothing; exit 1 when files are out of date")
    output.add_argument("--diff", action="store_true", help="print what would change and write nothing")
    output.add_argument("--force", action="store_true", help="overwrite files that were edited by hand")
    output.add_argument("--no-validate", action="store_true", help="don't ask `docker compose config`")

    up = add("up", "start a stack and wait until it has answered a real completion")
    _runtime(up, "compose")
    up.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after this long")
    up.add_argument("--fix", action="store_true", help="if it fails: show the safe change to stack.yaml, ask, make it")
    up.add_argument("--yes", action="store_true", help="with --fix: don't ask")
    up.add_argument("--progress", choices=("auto", "plain", "none"), default="auto", help="how to show phases")
    down = add("down", "stop a stack; volumes, and the weights in them, stay")
    _runtime(down)
    down.add_argument("--volumes", action="store_true", help="remove the volumes as well: weights are downloaded anew")
    _runtime(add("status", "show the state of every service"))
    logs = add("logs", "show the services' logs", stack=False)
    logs.add_argument("services", nargs="*", help="only these")
    logs.add_argument("--stack", default=".", help="stack.yaml, or the folder it is in (default: here)")
    logs.add_argument("-f", "--follow", action="store_true", help="keep printing")
    logs.add_argument("-n", "--tail", default="all", type=_lines, metavar="LINES", help="only the last lines")
    _runtime(logs)


def add_others(add: Adder) -> None:
    """schema, completion."""
    add("schema", "print the JSON Schema of stack.yaml", stack=False)
    completion = add("completion", "print a shell completion script", stack=False)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="your shell")


def _add_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--engine", help="vllm, fastchat or llamacpp")
    group.add_argument("--name", help="name of the stack (default: from the model)")
    group.add_argument("--gpus", help="2 (a count), 0,1 (indices), device=0 (one index), UUIDs, all, or none")
    group.add_argument("--replicas", type=int, help="copies, each with its own GPUs")
    group.add_argument("--served-name", action="append", dest="served_names", help="name for clients; may be repeated")
    group.add_argument("--file", help="GGUF file of the Hub repository, for llamacpp")
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
    group.add_argument("--max-model-len", help="context length: 8192, 32k or auto")
    group.add_argument("--tensor-parallel-size", type=int, help="GPUs that each layer is split over")
    group.add_argument("--gpu-memory-utilization", type=float, help="share of each GPU's memory")
    group.add_argument("--port", type=int, help="port on this machine (default: 8000)")
    group.add_argument("--bind", help="address the port binds (default: 127.0.0.1)")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="any other field, also storage.path=…; may be repeated",
    )


def _lines(text: str) -> str:
    if text != "all" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor `all`")
    return text


def _runtime(command: argparse.ArgumentParser, default: str | None = None) -> None:
    told = "" if default else " (default: the one that `up` used)"
    command.add_argument("--runtime", choices=("compose", "process"), default=default,
                         help=f"containers, or local processes where no engine can run{told}")  # fmt: skip
