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
    """The words that name an endpoint without a stack, and the time-out."""
    group = command.add_argument_group("an endpoint of any kind, without a stack")
    group.add_argument("--base-url", metavar="URL", help="e.g. http://127.0.0.1:8000/v1")
    group.add_argument("--api-key", metavar="KEY", help="default: STACKGEN_API_KEY; TOGETHER_API_KEY for Together AI")
    group.add_argument("--model", help="served name that must be there")
    command.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="for each request (default: 60)"
    )
