"""`stackgen status`: the state of every service. Exit code 1: a service is not healthy, or is drained."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stackgen.cli.commands.drains import report_drains
from stackgen.cli.commands.output import print_data
from stackgen.cli.commands.ownership import check_ownership
from stackgen.cli.commands.runtime import find_cluster_stack, find_runtime, stack_folder
from stackgen.errors import StartError
from stackgen.render.read import stack_file_in
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.compose.drains import Drain
from stackgen.runtimes.process.lifecycle import process_status
from stackgen.runtimes.process.local_plan import open_process_stack
from stackgen.runtimes.process.procfs import STATE_DIR
from stackgen.stack.folder import open_stack

__all__ = ["status"]


def status(args: Namespace) -> int:
    """Runs `stackgen status`: prints one line per service. Returns 1 unless all of them are healthy."""
    if stack := find_cluster_stack(args.stack):
        from stackgen.cli.commands.cluster import status_cluster

        return status_cluster(args, stack)
    folder = stack_folder(args.stack)
    drained: dict[str, Drain] = {}
    is_process = find_runtime(args, folder) == "process"
    if args.watch is not None:
        return _watch(args, folder, is_process)
    if is_process:
        states = process_status(folder)
    else:
        # the plan also has the services without a container
        plan = open_stack(args.stack).plan
        check_ownership(plan.name, folder, changes=False)
        states = compose.status(plan, with_ports=True)
        # a gateway that does not answer is unhealthy, which its state shows
        with suppress(StartError):
            drained = {drain.replica: drain for drain in report_drains(plan, folder)}
    rows = [(s.service, s.state + (f" ({s.exit_code})" if s.exit_code is not None else ""), s.health or "-",
             f"{s.restarts} restarts" if s.restarts else "", _format_ports(s)) for s in states]  # fmt: skip
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    print_data(args, {"services": [_to_json(state, drained) for state in states]}, lines)
    # health "" means that the service has no health check; a download is complete once it has exited
    healthy = (("running", "healthy"), ("running", ""))
    is_ok = all((s.state, s.health) in healthy or (s.role == "download" and s.exit_code == 0) for s in states)
    return 0 if is_ok and not drained and not any(map(_unreachable_ports, states)) else 1


def _watch(args: Namespace, folder: Path, is_process: bool) -> int:
    # not needed for a single look
    from stackgen.cli.commands.status_watch import watch_stack

    if is_process:
        path = stack_file_in(folder)
        return watch_stack(args, lambda: open_process_stack(path, STATE_DIR).plan, folder, processes=True)
    check_ownership(open_stack(args.stack).plan.name, folder, changes=False)
    return watch_stack(args, lambda: open_stack(args.stack).plan, folder, processes=False)


def _to_json(state: Any, drained: Mapping[str, Drain]) -> dict[str, Any]:
    # null for a replica that gets requests; this command may have enabled the others again
    drain = drained.get(state.service)
    return {**asdict(state), "drained": asdict(drain) if drain else None}


def _unreachable_ports(state: Any) -> tuple[str, ...]:
    # the forwarders belong to Docker, so local processes have none
    found: tuple[str, ...] = getattr(state, "unreachable_ports", ())
    return found


def _format_ports(state: Any) -> str:
    dead = _unreachable_ports(state)
    return " ".join(f"{port} (accepts no connections: see `stackgen check`)" if port in dead else port
                    for port in state.ports)  # fmt: skip
