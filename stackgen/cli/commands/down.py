"""`stackgen down`: stop and remove the stack. Its own volumes stay unless --volumes is given, shared volumes always."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from stackgen.cli.commands.confirm import confirm
from stackgen.cli.commands.locking import lock_folder
from stackgen.cli.commands.output import print_data
from stackgen.cli.commands.ownership import check_ownership, check_volume_ownership
from stackgen.cli.commands.runtime import find_cluster_stack, find_runtime, stack_folder
from stackgen.errors import StackgenError
from stackgen.runtimes.compose import command as compose
from stackgen.runtimes.compose.project import read_project_name
from stackgen.runtimes.compose.volumes import find_own_volumes, find_shared_keys
from stackgen.runtimes.process.lifecycle import down_processes

__all__ = ["down"]


def down(args: Namespace) -> int:
    """Runs `stackgen down`: stops and removes the stack, and keeps its own volumes unless --volumes is given.

    Raises StackgenError if the containers, or the volumes to remove, belong to another folder's stack of the same name,
    or if the user does not confirm that volumes are removed.
    """
    if stack := find_cluster_stack(args.stack):
        from stackgen.cli.commands.cluster import down_cluster

        with lock_folder(args, stack.folder):
            return down_cluster(args, stack)
    folder = stack_folder(args.stack)
    with lock_folder(args, folder):
        return _down(args, folder)


def _down(args: Namespace, folder: Path) -> int:
    if find_runtime(args, folder) == "process":
        stopped = down_processes(folder)
        lines = [f"stopped {', '.join(stopped)}" if stopped else "nothing was running"]
        removed, kept = list[str](), list[str]()
    else:
        # Compose does not report what it stopped
        stopped = []
        removed, kept, lines = _down_containers(args, folder)
    data = {"stopped": True, "processes": stopped, "volumes_removed": args.volumes, "removed": removed, "kept": kept}
    print_data(args, data, lines)
    return 0


def _down_containers(args: Namespace, folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Returns the volumes that were removed, those that stay although --volumes was given, and the lines to print."""
    name = read_project_name(folder)
    check_ownership(name, folder)
    if not args.volumes:
        compose.down(folder, False)
        return [], [], ["stopped; the volumes are kept"]
    shared = find_shared_keys(folder)
    before = find_own_volumes(name)
    if before:
        check_volume_ownership(name, folder)
        # scripts have always called it without --yes
        if sys.stdin.isatty() and not confirm(
            f"delete {', '.join(sorted(before))} with everything in it?", args.yes, ""
        ):
            raise StackgenError("not confirmed: nothing was stopped or removed", "without --volumes, the volumes stay")
    compose.down(folder, True, shared)
    removed = sorted(before - find_own_volumes(name))
    lines = ["stopped"] + ([f"removed: {', '.join(removed)}"] if removed else [])
    kept = sorted(shared.values())
    if kept:
        lines.append(
            f"kept, because all stacks share it: {', '.join(kept)}. `stackgen storage remove` deletes a volume"
        )
    return removed, kept, lines
