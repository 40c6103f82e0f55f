"""What the commands' arguments have in common: the stack, `--json`, endpoints and the timeout."""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from typing import Any

from stackgen.cli.parsers.completers import complete_with, models, providers

__all__ = [
    "EXIT_CODES", "Parser", "Subcommands", "add_context_argument", "add_endpoint_arguments", "add_lock_argument",
    "parse_seconds", "split_names",
]  # fmt: skip

EXIT_CODES = (
    "exit codes: 0 success, 1 failure (for example, an unhealthy service or files that are out of date), "
    "2 wrong input, 3 this machine is not ready"
)


class Parser(argparse.ArgumentParser):
    """A parser whose options with an optional value leave the next argument alone if it is not such a value.

    argparse would read the stack in `check --watch llama` as the value of `--watch`.

    `options_first`: arguments may follow options, as in `keys new --json ada`. argparse ends a list of arguments at the
    first option.
    """

    options_first = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See argparse."""
        given = list(sys.argv[1:] if args is None else args)
        given = self._sort(given) if self.options_first else given
        # `--` ends the options
        end = given.index("--") if "--" in given else len(given)
        for index, (option, value) in enumerate(pairwise(given[:end])):
            action = self._optional_value_action(option)
            if action and not value.startswith("-") and not _is_value(action, value):
                given[index] = f"{option}={action.const}"
        return super().parse_known_args(given, namespace)

    def _sort(self, given: list[str]) -> list[str]:
        """Returns the options with their values, then all other arguments."""
        options: list[str] = []
        others: list[str] = []
        words = iter(given)
        for word in words:
            if word == "--":
                return [*options, word, *others, *words]
            if not word.startswith("-") or word == "-":
                others.append(word)
                continue
            options.append(word)
            found = [one for name, one in self._option_string_actions.items() if name.startswith(word)]
            # an option without a value has nargs 0
            if found and found[0].nargs is None:
                options += [value for value in (next(words, None),) if value is not None]
        return options + others

    def _optional_value_action(self, option: str) -> argparse.Action | None:
        # argparse accepts unique prefixes of long options
        if not option.startswith("--") or len(option) == 2 or "=" in option:
            return None
        names = {name for name in self._option_string_actions if name.startswith(option)}
        exact = names & {option} or names
        action = self._option_string_actions[next(iter(exact))] if len(exact) == 1 else None
        return action if action and action.nargs == "?" else None


def _is_value(action: argparse.Action, value: str) -> bool:
    try:
        if callable(action.type):
            action.type(value)
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return True


class Subcommands:
    """Adds commands to the parser, each with `--json`."""

    def __init__(self, subparsers: Any) -> None:
        # Any: the type of argparse's add_subparsers() is private
        self._subparsers = subparsers

    def add(self, name: str, help: str, *, stack: bool = True) -> Parser:
        """Adds the command `name` and returns its parser. With `stack`, its first argument is an optional stack."""
        # the same text in the list of commands and in the help of the command
        command: Parser = self._subparsers.add_parser(
            name, help=help, description=help[:1].upper() + help[1:] + ".", epilog=EXIT_CODES
        )
        if stack:
            command.add_argument(
                "stack", nargs="?", default=".", help="stack.yaml or its folder (default: the current folder)"
            )
        command.add_argument("--json", action="store_true", help="print JSON")
        return command


def add_endpoint_arguments(
    command: argparse.ArgumentParser, *, timeout: str = "--timeout", default: str = "all endpoints of the stack"
) -> None:
    """Adds the options that select endpoints, and the option `timeout`, which limits each request."""
    group = command.add_argument_group(f"endpoints (default: {default})")
    # append and not nargs="+", which would parse a stack after the URL as another URL
    group.add_argument(
        "--base-url", action="append", metavar="URL", help="base URL, for example http://127.0.0.1:8000/v1; repeatable"
    )
    complete_with(group.add_argument(
        "--provider", action="append", metavar="NAME",
        help="the endpoint's name: a provider in the list of `stackgen providers`, a name in endpoints.yaml, or the"
        " name of an endpoint, service or engine in the stack. For several endpoints, repeat the option, or separate"
        " the names with commas",
    ), providers, several=True)  # fmt: skip
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help="API key (default: from the environment or .env; `stackgen providers` shows the variables)",
    )
    complete_with(group.add_argument("--model", help="name of a model that the endpoint serves"), models)
    # limits the silence and not the whole answer: a long stream is healthy as long as tokens arrive
    command.add_argument(
        timeout,
        type=float,
        # `check` needs to know whether the option was given
        default=60.0 if timeout == "--timeout" else None,
        metavar="SECONDS",
        help="how many seconds to wait for a complete response, or for each token of a stream (default: 60). A complete"
        " stream may take ten times as long",
    )


def add_lock_argument(command: argparse.ArgumentParser) -> None:
    """Adds `--wait` to a command that changes a stack."""
    command.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="if another command is changing the stack, wait up to SECONDS for it (default: fail at once)",
    )


def add_context_argument(command: argparse.ArgumentParser) -> None:
    """Adds `--context` to a command that also works on a stack in a cluster."""
    command.add_argument(
        "--context", metavar="NAME",
        help="for `target: kubernetes`: the context of kubectl (default: the current context)",
    )  # fmt: skip


def parse_seconds(text: str) -> float:
    """Parses a time limit in seconds. Raises ArgumentTypeError unless it is above 0 and at most a week."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    # also false for nan, with which every wait would be endless
    if not 0 < seconds <= 7 * 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def split_names(text: str) -> tuple[str, ...]:
    """Splits `text` into names at commas and spaces."""
    # both `--skip "chat stream"` and `--skip chat,stream` are allowed
    return tuple(name for name in text.replace(",", " ").split() if name)
