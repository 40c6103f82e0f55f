"""Words of the commands that change a running stack without losing a request: keys, scale, update."""

from __future__ import annotations

import argparse

from stackgen.cli.parsers.base import Adder

__all__ = ["add_gateway"]


def add_gateway(add: Adder) -> None:
    """keys, scale, update."""
    keys = add("keys", "list, make, rotate and remove the keys of the gateway's clients", stack=False)
    keys.add_argument(
        "action",
        choices=("list", "new", "rotate", "remove"),
        help="new: a key for a new name; rotate: one key more, the old one stays valid; remove: all of the name",
    )
    keys.add_argument("name", nargs="?", help="whose key; `default` is the one of .env")
    keys.add_argument("--stack", default=".", help="stack.yaml, or the folder it is in (default: here)")
    keys.add_argument("--older", action="store_true", help="with remove: all but the newest key of the name")
    scale = add("scale", "change how many replicas a model has, without losing a request", stack=False)
    scale.add_argument("words", nargs="+", metavar="MODEL=N", help="a model and its replicas; one word more: the stack")
    _rolling(scale)
    _rolling(add("update", "make anew what changed, one replica at a time; back to the old one if the new one fails"))


def _rolling(command: argparse.ArgumentParser) -> None:
    command.add_argument("--timeout", type=float, metavar="SECONDS", help="for each replica's start")
    command.add_argument("--yes", action="store_true", help="don't ask where a gap can't be avoided")
    command.add_argument("--progress", choices=("auto", "plain", "none"), default="auto", help="how to show phases")
