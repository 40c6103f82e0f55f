"""`stackgen down`: stop and remove; volumes stay unless --volumes is given."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.output import print_data
from stackgen.cli.commands.runtime import folder_of, runtime_of
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.process.lifecycle import down_processes

__all__ = ["down"]


def down(args: Namespace) -> int:
    """`stackgen down`: stop and remove, keep the volumes unless told otherwise."""
    folder = folder_of(args.stack)
    if runtime_of(args, folder) == "process":
        stopped = down_processes(folder)
        told = f"stopped {', '.join(stopped)}" if stopped else "nothing was running"
    else:
        compose.down(folder, args.volumes)
        stopped = []
        told = "stopped" + ("" if args.volumes else "; the volumes with the weights are kept (--volumes removes them)")
    print_data(args, {"stopped": True, "processes": stopped, "volumes_removed": args.volumes}, [told])
    return 0
