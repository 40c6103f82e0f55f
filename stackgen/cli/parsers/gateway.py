"""The arguments of the commands that change a running stack without downtime: keys, scale, update."""

from __future__ import annotations

import argparse

from stackgen.cli.parsers.base import Subcommands

__all__ = ["add_gateway_commands"]


def add_gateway_commands(subcommands: Subcommands) -> None:
    """Adds `stackgen keys`, `stackgen scale` and `stackgen update`."""
    keys = subcommands.add("keys", "list, create, rotate and remove API keys of the gateway's clients", stack=False)
    keys.add_argument(
        "action",
        choices=("list", "new", "rotate", "remove"),
        help="new: create a key for a new name. rotate: add another key to a name; the old keys stay valid. remove:"
        " remove all keys for a name",
    )
    keys.add_argument("name", nargs="?", help="name of the key; `default` is the key in .env")
    keys.add_argument("--stack", default=".", help="stack.yaml or its folder (default: the current folder)")
    keys.add_argument("--older", action="store_true", help="with remove: keep the newest key for the name")
    scale = subcommands.add("scale", "change the number of replicas of a model without losing a request", stack=False)
    # one list for models and stack: argparse can't parse an optional positional after a repeated positional
    scale.add_argument(
        "replicas", nargs="+", metavar="MODEL=N",
        help="a model and its number of replicas; repeatable. Add stack.yaml or its folder to choose a stack (default:"
        " the current folder)",
    )  # fmt: skip
    _add_rollout_arguments(scale)
    update = "recreate the services that changed, one replica at a time, and roll back if a replica fails"
    _add_rollout_arguments(subcommands.add("update", update))


def _add_rollout_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--timeout", type=float, metavar="SECONDS", help="time limit for the start of each replica")
    command.add_argument("--yes", action="store_true", help="continue without asking if downtime can't be avoided")
    # auto prints nothing if stderr is not a terminal
    command.add_argument("--progress", choices=("auto", "plain", "none"), default="auto", help="how to show progress")
