"""The arguments of `stackgen connect`."""

from __future__ import annotations

from argparse import SUPPRESS
from pathlib import Path

from stackgen.cli.parsers.base import Subcommands, parse_seconds
from stackgen.cli.parsers.completers import complete_with, models

__all__ = ["add_connect"]

RECIPES = Path(__file__).parents[2] / "connect" / "recipes"


def add_connect(subcommands: Subcommands) -> None:
    """Adds `stackgen connect`."""
    connect = subcommands.add(
        "connect",
        "print the settings that connect another program to the stack, and which functions will not work",
        stack=False,
    )
    client = connect.add_argument(
        "client", nargs="?", metavar="CLIENT",
        help="the program, for example claude-code. Without CLIENT, all known programs are listed",
    )  # fmt: skip
    # no `choices`: the list of recipes is read only when a shell completes a name
    complete_with(client, lambda _: (path.stem for path in RECIPES.glob("*.yaml")))
    connect.add_argument(
        "stack", nargs="?", default=SUPPRESS, help="stack.yaml or its folder (default: the current folder)"
    )
    connect.add_argument("--stack", default=".", help="another way to pass stack.yaml or its folder")
    complete_with(connect.add_argument("--model", help="name of the model, if the stack serves several"), models)
    connect.add_argument(
        "--key", metavar="NAME", help="name of a key in `stackgen keys list` (default: the key in .env)"
    )
    connect.add_argument(
        "--show-key", action="store_true", help="print the key itself instead of a command that reads it"
    )
    connect.add_argument(
        "--try", action="store_true", dest="try_requests",
        help="send the program's first requests to the running stack. Exit code 1 if one of them fails",
    )  # fmt: skip
    connect.add_argument(
        "--timeout", type=parse_seconds, default=120.0, metavar="SECONDS",
        help="with --try: how many seconds to wait for a response, or for each token of a stream (default: 120)",
    )  # fmt: skip
    connect.add_argument(
        "--runtime", choices=("compose", "process"),
        help="compose: containers. process: local processes (default: the runtime that `up` used)",
    )  # fmt: skip
