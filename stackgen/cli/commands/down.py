"""`stackgen down`: stop and remove the stack. Volumes stay unless --volumes is given."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.output import print_data
from stackgen.cli.commands.runtime import find_runtime, stack_folder
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.process.lifecycle import down_processes

__all__ = ["down"]


def down(args: Namespace) -> int:
    """Runs `stackgen down`: stops and removes the stack, and keeps its volumes unless --volumes is given."""
    folder = stack_folder(args.stack)
    if find_runtime(args, folder) == "process":
        stopped = down_processes(folder)
        line = f"stopped {', '.join(stopped)}" if stopped else "nothing was running"
    else:
        compose.down(folder, args.volumes)
        # Compose does not report what it stopped
        stopped = []
        line = "stopped" + ("" if args.volumes else "; the volumes with the weights are kept (--volumes removes them)")
    print_data(args, {"stopped": True, "processes": stopped, "volumes_removed": args.volumes}, [line])
    return 0
