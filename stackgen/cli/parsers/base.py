"""What the commands' words have in common."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["EPILOG", "Adder", "endpoint_words"]

EPILOG = "exit codes: 0 yes, 1 the answer is no (drift, unhealthy), 2 wrong input, 3 this machine is not ready"


class Adder:
    """Adds commands: each with `--json`, and with the stack as its first word where it is about one."""

    def __init__(self, commands: Any) -> None:
        self._commands = commands

    def __call__(self, name: str, help: str, stack: bool = True) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = self._commands.add_parser(
            name, help=help, description=help[:1].upper() + help[1:] + ".", epilog=EPILOG
        )
        if stack:
            command.add_argument(
                "stack", nargs="?", default=".", help="stack.yaml, or the folder it is in (default: here)"
            )
        command.add_argument("--json", action="store_true", help="print data for programs")
        return command


def endpoint_words(command: argparse.ArgumentParser) -> None:
    """The words that name endpoints beside a stack, and the time-out."""
    group = command.add_argument_group("endpoints of any kind, instead of the stack's")
    group.add_argument(
        "--base-url", action="append", metavar="URL", help="e.g. http://127.0.0.1:8000/v1; may be given several times"
    )
    group.add_argument(
        "--provider",
        action="append",
        metavar="NAME",
        help="a provider (`stackgen providers` lists them), an endpoint of endpoints.yaml, or an endpoint, service or"
        " engine of the stack; several times, or with commas",
    )
    group.add_argument(
        "--api-key", metavar="KEY", help="default: a variable or .env; `stackgen providers` tells which and where"
    )
    group.add_argument("--model", help="served name that must be there")
    command.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="the longest silence of a server: until an answer is whole, and between two tokens of a stream, which may"
        " last ten times as long (default: 60)",
    )
