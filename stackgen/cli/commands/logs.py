"""`stackgen logs`: show the logs of a stack's services in this terminal."""

from __future__ import annotations

import json
from argparse import Namespace

from stackgen.cli.commands.output import print_line
from stackgen.cli.commands.ownership import check_ownership
from stackgen.cli.commands.runtime import find_cluster_stack, find_runtime, stack_folder
from stackgen.cli.scrub import scrub_json
from stackgen.runtimes.compose import command as compose
from stackgen.runtimes.compose.project import read_project_name
from stackgen.runtimes.process.logs import process_logs

__all__ = ["logs"]


def logs(args: Namespace) -> int:
    """Runs `stackgen logs`. With --json, prints a line of JSON for each line. Returns the runtime's exit code."""
    if stack := find_cluster_stack(args.stack):
        # most stacks run on one machine
        from stackgen.cli.commands.cluster import logs_cluster

        return logs_cluster(args, stack)
    folder = stack_folder(args.stack)
    if find_runtime(args, folder) == "process":
        return process_logs(folder, tuple(args.services), args.follow, args.tail, _print_json if args.json else None)
    check_ownership(read_project_name(folder), folder, changes=False)
    return compose.logs(folder, tuple(args.services), args.follow, args.tail, _print_json if args.json else None)


def _print_json(service: str, text: str) -> None:
    # the replica of a service is a service of its own, so every container's number is 1
    print_line(json.dumps(scrub_json({"service": service.removesuffix("-1"), "text": text})))
