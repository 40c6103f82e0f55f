"""The arguments of the commands that change a running stack without downtime: keys, scale, update."""

from __future__ import annotations

import argparse

from stackgen.cli.parsers.base import Subcommands, add_lock_argument, parse_seconds
from stackgen.cli.parsers.completers import complete_with, replicas
from stackgen.cli.parsers.keys import add_keys_command

__all__ = ["add_gateway_commands"]


def add_gateway_commands(subcommands: Subcommands) -> None:
    """Adds `stackgen keys`, `stackgen scale` and `stackgen update`."""
    add_keys_command(subcommands)
    scale = subcommands.add("scale", "change the number of replicas of a model without losing a request", stack=False)
    # one list for models and stack: argparse can't parse an optional positional after a repeated positional
    complete_with(scale.add_argument(
        "replicas", nargs="+", metavar="MODEL=N",
        help="name of a model and its new number of replicas; repeatable. To choose a stack, add the path of its"
        " stack.yaml or folder as another argument (default: the current folder)",
    ), replicas)  # fmt: skip
    _add_rollout_arguments(scale)
    update = "recreate the services that changed, one replica at a time, and roll back if a replica fails"
    _add_rollout_arguments(subcommands.add("update", update))
    upgrade = subcommands.add("upgrade", "show what another version of an engine changes, and set `engine_version`")
    add_lock_argument(upgrade)
    upgrade.add_argument("--to", metavar="VERSION", help="the version (default: the newest that stackgen knows)")
    upgrade.add_argument("--yes", action="store_true", help="change stack.yaml without asking")


def _add_rollout_arguments(command: argparse.ArgumentParser) -> None:
    add_lock_argument(command)
    command.add_argument(
        "--timeout", type=parse_seconds, metavar="SECONDS", help="maximum seconds for the start of each replica"
    )
    command.add_argument("--yes", action="store_true", help="continue without asking if downtime can't be avoided")
    # auto prints nothing if stderr is not a terminal
    command.add_argument("--progress", choices=("auto", "plain", "none"), default="auto", help="how to show progress")
