"""The arguments of the commands that write, start and stop stacks."""

from __future__ import annotations

import argparse

from stackgen.cli.parsers.base import Subcommands, add_context_argument, add_lock_argument, parse_seconds
from stackgen.cli.parsers.completers import complete_with, engines, fields, services
from stackgen.cli.parsers.machine import add_machine_commands

__all__ = ["add_schema_and_completion", "add_stack_commands"]


def add_stack_commands(subcommands: Subcommands) -> None:
    """Adds init, render, up, down, status, logs, list, storage and gpus."""
    _add_init(subcommands)
    _add_render(subcommands)
    up = subcommands.add("up", "start a stack and wait until every model has answered a real request")
    # only `up` has a default: the other commands use the runtime that `up` has chosen
    _add_runtime_argument(up, "compose")
    up.add_argument("--timeout", type=parse_seconds, metavar="SECONDS", help="stop waiting after SECONDS, and fail")
    up.add_argument(
        "--fix", action="store_true",
        help="if the start fails: show a safe change to stack.yaml, ask for confirmation, and apply the change",
    )  # fmt: skip
    up.add_argument(
        "--yes", action="store_true",
        help="don't ask before interrupting running services, or before changing a cluster; with `--fix`, also "
        "apply the change without asking",
    )  # fmt: skip
    add_context_argument(up)
    up.add_argument(
        "--url", metavar="URL",
        help="for `target: kubernetes`: request the completion at this address of the gateway, for example "
        "https://models.example.com/v1 (default: through a port that kubectl forwards)",
    )  # fmt: skip
    up.add_argument(
        "--skip-doctor", action="store_true",
        help="skip the checks of disk, ports, GPUs and files before the start",
    )  # fmt: skip
    up.add_argument(
        "--new-keys", action="store_true",
        help="write new values into .env for lost keys that are still in use: clients then need the new key",
    )  # fmt: skip
    add_lock_argument(up)
    up.add_argument("--progress", choices=("auto", "plain", "none"), default="auto", help="how to show progress")
    down = subcommands.add("down", "stop a stack, but keep its volumes")
    _add_runtime_argument(down)
    down.add_argument(
        "--volumes",
        action="store_true",
        help="also remove the stack's own volumes (metrics, dashboards, chats). The volumes that all stacks share, "
        "with the weights, stay: `stackgen storage remove` deletes them. For `target: kubernetes`: also delete the "
        "PersistentVolumeClaims, which contain the weights",
    )
    add_context_argument(down)
    down.add_argument("--yes", action="store_true", help="delete volumes, or objects in the cluster, without asking")
    add_lock_argument(down)
    status = subcommands.add("status", "show the state of every service")
    _add_runtime_argument(status)
    add_context_argument(status)
    status.add_argument(
        "--watch", type=parse_seconds, nargs="?", const=2.0, metavar="SECONDS",
        help="follow the stack until Ctrl-C, and refresh every SECONDS (default: 2): services, requests, memory, GPUs "
        "and the newest line of each log. Without a terminal, print a line for each change",
    )  # fmt: skip
    # one list for the stack and services, which argparse can't tell apart
    logs = subcommands.add("logs", "show the logs of the services", stack=False)
    complete_with(logs.add_argument(
        "services", nargs="*", metavar="STACK|SERVICE",
        help="stack.yaml or its folder (default: the current folder), and the services to show (default: all)",
    ), services)  # fmt: skip
    logs.add_argument("--stack", default=".", help="another way to pass stack.yaml or its folder")
    logs.add_argument("-f", "--follow", action="store_true", help="keep printing new lines")
    logs.add_argument(
        "-n", "--tail", default="all", type=_parse_tail, metavar="LINES", help="show only the last LINES lines"
    )
    add_context_argument(logs)
    _add_runtime_argument(logs)
    add_machine_commands(subcommands)


def add_schema_and_completion(subcommands: Subcommands) -> None:
    """Adds schema and completion."""
    subcommands.add("schema", "print the JSON Schema of stack.yaml", stack=False)
    completion = subcommands.add("completion", "print a shell completion script", stack=False)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that runs the script")


def _add_init(subcommands: Subcommands) -> None:
    init = subcommands.add("init", "write a commented stack.yaml and a .env with a new API key", stack=False)
    init.add_argument("folder", nargs="?", default=".", help="folder to write to (default: the current folder)")
    complete_with(
        init.add_argument("--engine", default="vllm", help="vllm, sglang, fastchat or llamacpp (default: vllm)"),
        engines,
    )
    init.add_argument(
        "--model", default="meta-llama/Llama-3.2-1B-Instruct",
        help="Hugging Face id or local folder (default: meta-llama/Llama-3.2-1B-Instruct)",
    )  # fmt: skip
    init.add_argument("--file", help="GGUF file in the Hub repository, for llamacpp")
    # text, because a list, `all` and `none` are allowed too
    init.add_argument("--gpus", help="GPUs: a count, a list, `all` or `none` (default: 1, also without a GPU)")


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
    output.add_argument(
        "--target", choices=("compose", "kubernetes"),
        help="`compose`: a Compose file. `kubernetes`: manifests in the folder `kubernetes`. Default: the `target` of "
        "stack.yaml, otherwise `compose`",
    )  # fmt: skip
    output.add_argument("--stdout", action="store_true", help="print compose.yaml, or all manifests; write nothing")
    output.add_argument("--check", action="store_true", help="write nothing; exit with 1 if files are out of date")
    output.add_argument("--diff", action="store_true", help="print what would change and write nothing")
    output.add_argument("--force", action="store_true", help="overwrite files that were edited by hand")
    output.add_argument(
        "--no-validate",
        action="store_true",
        help="don't validate compose.yaml with `docker compose config`, or manifests with stackgen's rules",
    )
    add_lock_argument(render)


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
    # argparse passes None for a missing flag, so that the default stays in the spec alone
    complete_with(group.add_argument("--engine", help="vllm, sglang, fastchat or llamacpp"), engines)
    group.add_argument("--name", help="name of the stack (default: derived from the model's name)")
    group.add_argument(
        "--gpus",
        help="GPUs: `2` (a count), `0,1` (indices), `device=0` (one index), UUIDs separated by commas, `all` or `none`",
    )
    group.add_argument("--replicas", type=int, help="number of replicas, each with its own GPUs")
    # dest is the name of the field, which build_from_flags looks up
    group.add_argument(
        "--served-name", action="append", dest="served_names", help="model name that clients use; repeatable"
    )
    group.add_argument("--file", help="GGUF file in the Hub repository, for llamacpp")
    group.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    group.add_argument("--max-model-len", help="context length: `8192`, `32k` or `auto`")
    group.add_argument("--tensor-parallel-size", type=int, help="each layer is split across this number of GPUs")
    group.add_argument("--gpu-memory-utilization", type=float, help="fraction of each GPU's memory to use")
    group.add_argument("--port", type=int, help="port on this machine (default: 8000)")
    group.add_argument("--bind", help="IP address to bind the port to (default: 127.0.0.1)")
    complete_with(group.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE",
        help="set any other field of stack.yaml, for example `dtype=bfloat16`, `storage.path=/srv/models`; repeatable",
    ), fields)  # fmt: skip


def _parse_tail(text: str) -> str:
    # text and not int, because `all` is passed unchanged to `docker compose logs --tail`
    if text != "all" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor `all`")
    return text


def _add_runtime_argument(command: argparse.ArgumentParser, default: str | None = None) -> None:
    suffix = f" (default: {default})" if default else " (default: the runtime that `up` used)"
    command.add_argument(
        "--runtime", choices=("compose", "process"), default=default,
        help=f"compose: containers. process: local processes, for machines without a container engine{suffix}",
    )  # fmt: skip
