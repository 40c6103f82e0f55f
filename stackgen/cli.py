"""The command line: words to one call to print. Everything else is imported by the command that needs it.

Exit codes: 0 yes, 1 the answer is no (drift, unhealthy), 2 your input is wrong, 3 your machine is not ready.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence

__all__ = ["build_parser", "main"]

EPILOG = "exit codes: 0 yes, 1 the answer is no (drift, unhealthy), 2 wrong input, 3 this machine is not ready"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, without running anything."""
    parser = argparse.ArgumentParser(
        prog="stackgen",
        description="Serve language models on your own GPUs: renders Docker Compose stacks for vLLM, FastChat and "
        "llama.cpp, starts them, and proves that they answer.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, help: str, stack: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help[:1].upper() + help[1:] + ".", epilog=EPILOG)
        if stack:
            command.add_argument(
                "stack", nargs="?", default=".", help="stack.yaml, or the folder it is in (default: here)"
            )
        command.add_argument("--json", action="store_true", help="print data for programs")
        return command

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
    _runtime(up)
    up.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after this long")
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

    check = add("check", "prove that endpoints answer: reachable, guarded, right model, right structure")
    _endpoint(check)
    check.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait that long for readiness")
    ask = add("ask", "ask a question", stack=False)
    ask.add_argument("question", help="what to ask")
    ask.add_argument("--stack", default=".", help="stack.yaml, or the folder it is in (default: here)")
    _endpoint(ask)
    ask.add_argument("--system", default="You are a helpful assistant", help="system message")
    ask.add_argument("--max-tokens", type=int, default=100, help="length of the answer, at most (default: 100)")
    ask.add_argument("--temperature", type=float, default=0.0, help="randomness (default: 0)")

    add("schema", "print the JSON Schema of stack.yaml", stack=False)
    completion = add("completion", "print a shell completion script", stack=False)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="your shell")
    return parser


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


def _runtime(command: argparse.ArgumentParser) -> None:
    command.add_argument("--runtime", choices=("compose", "process"), default="compose",
                         help="containers, or local processes where no engine can run")  # fmt: skip


def _endpoint(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("an endpoint of any kind, without a stack")
    group.add_argument("--base-url", metavar="URL", help="e.g. http://127.0.0.1:8000/v1")
    group.add_argument("--api-key", metavar="KEY", help="default: STACKGEN_API_KEY; TOGETHER_API_KEY for Together AI")
    group.add_argument("--model", help="served name that must be there")
    command.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="for each request (default: 60)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. No traceback reaches a user without --debug."""
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    words = parser.parse_args(argv)
    if words.version:
        from stackgen import __version__

        print(__version__)
        return 0
    if not words.command:
        parser.print_help()
        return 2
    from stackgen.errors import StackgenError

    if words.command in ("render", "init", "schema"):
        gc.disable()  # a short run leaves no garbage worth collecting
    # pydantic looks for plugins in the metadata of every installed package; we have none
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        from stackgen import commands

        run = getattr(commands, words.command)
        return int(run(words))
    except StackgenError as error:
        if words.debug:
            raise
        _tell(error.message, error.hint, words.json)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if words.debug:
            raise
        _tell(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), "", words.json)
        return 3
    except KeyboardInterrupt:
        print("stackgen: stopped; what was started so far is left (`stackgen status`)", file=sys.stderr)
        return 130


def _tell(message: str, hint: str, as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps({"error": message, "hint": hint}))
    print(f"stackgen: {message}" + (f"\n  hint: {hint}" if hint else ""), file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
