"""The commands: a module each, named like the command, with a function of the same name.

A module is imported when its command runs, so that `--help` and `render` load nothing that they don't need.
"""

from __future__ import annotations

from argparse import Namespace
from importlib import import_module

__all__ = ["run"]


def run(args: Namespace) -> int:
    """Runs the command named in `args`; its exit code."""
    module = import_module(f"stackgen.cli.commands.{args.command}")
    return int(getattr(module, args.command)(args))
