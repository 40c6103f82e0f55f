"""`stackgen logs`: the runtime's logs in this terminal."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.runtime import folder_of, runtime_of
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.process.lifecycle import process_logs

__all__ = ["logs"]


def logs(args: Namespace) -> int:
    """`stackgen logs`: hand the terminal to the runtime's logs."""
    folder = folder_of(args.stack)
    if runtime_of(args, folder) == "process":
        return process_logs(folder, tuple(args.services), args.follow, args.tail)

    return compose.logs(folder, tuple(args.services), args.follow, args.tail)
