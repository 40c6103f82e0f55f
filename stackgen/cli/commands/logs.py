"""`stackgen logs`: show the logs of a stack's services in this terminal."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.runtime import find_runtime, stack_folder
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.process.logs import process_logs

__all__ = ["logs"]


def logs(args: Namespace) -> int:
    """Runs `stackgen logs`. Returns the exit code of the runtime's own log command."""
    folder = stack_folder(args.stack)
    if find_runtime(args, folder) == "process":
        return process_logs(folder, tuple(args.services), args.follow, args.tail)
    return compose.logs(folder, tuple(args.services), args.follow, args.tail)
