"""What the commands' arguments have in common: the stack, `--json`, endpoints and the timeout."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["EXIT_CODES", "Subcommands", "add_endpoint_arguments", "split_names"]

EXIT_CODES = "exit codes: 0 success, 1 failure (drift, unhealthy), 2 wrong input, 3 this machine is not ready"


class Subcommands:
    """Adds commands to the parser, each with `--json`."""

    def __init__(self, subparsers: Any) -> None:
        # Any: the type of argparse's add_subparsers() is private
        self._subparsers = subparsers

    def add(self, name: str, help: str, *, stack: bool = True) -> argparse.ArgumentParser:
        """Adds the command `name` and returns its parser. With `stack`, its first argument is an optional stack."""
        # the same text in the list of commands and in the help of the command
        command: argparse.ArgumentParser = self._subparsers.add_parser(
            name, help=help, description=help[:1].upper() + help[1:] + ".", epilog=EXIT_CODES
        )
        if stack:
            command.add_argument(
                "stack", nargs="?", default=".", help="stack.yaml or its folder (default: the current folder)"
            )
        command.add_argument("--json", action="store_true", help="print JSON")
        return command


def add_endpoint_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the options that select endpoints, and `--timeout`."""
    group = command.add_argument_group("endpoints (default: all endpoints of the stack)")
    # append and not nargs="+", which would parse a stack after the URL as another URL
    group.add_argument(
        "--base-url", action="append", metavar="URL", help="base URL, for example http://127.0.0.1:8000/v1; repeatable"
    )
    group.add_argument(
        "--provider",
        action="append",
        metavar="NAME",
        help="a provider (see `stackgen providers`), a name from endpoints.yaml, or an endpoint, service or engine of"
        " the stack; repeatable, or separated by commas",
    )
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help="API key (default: from the environment or .env; `stackgen providers` shows the variables)",
    )
    group.add_argument("--model", help="served model name; the endpoint must serve it")
    # limits the silence and not the whole answer: a long stream is healthy as long as tokens arrive
    command.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for a complete response, or for each token of a stream (default: 60). A whole stream may"
        " take ten times as long",
    )


def split_names(text: str) -> tuple[str, ...]:
    """Splits `text` into names at commas and spaces."""
    # both `--skip "chat stream"` and `--skip chat,stream` are allowed
    return tuple(name for name in text.replace(",", " ").split() if name)
