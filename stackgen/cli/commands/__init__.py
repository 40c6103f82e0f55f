"""The commands. Each is a module with the name of the command, and has a function of the same name.

A module is imported when its command runs, so `--help` and `render` don't load what only other commands need.
"""

from __future__ import annotations

from argparse import Namespace
from importlib import import_module

__all__ = ["run"]


def run(args: Namespace) -> int:
    """Runs the command `args.command` and returns its exit code."""
    module = import_module(f"stackgen.cli.commands.{args.command}")
    return int(getattr(module, args.command)(args))
