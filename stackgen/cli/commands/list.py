"""`stackgen list`: the stacks on this machine. The function is last, because it hides the built-in of its name."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from stackgen.cli.commands.output import note, print_data
from stackgen.cli.commands.table import format_table, size_text
from stackgen.errors import StackgenError
from stackgen.runtimes.observation.inventory import Inventory, StackEntry, describe_gpus, list_stacks, search_stacks
from stackgen.runtimes.observation.storage_use import read_disk
from stackgen.stack.registry import forget_stack, gone_stacks

__all__ = ["list"]


def _find(names: tuple[str, ...]) -> tuple[Path, ...]:
    found: tuple[Path, ...] = ()
    for name in names:
        path = Path(name)
        if not path.is_dir():
            raise StackgenError(f"{name} is not a folder", "`stackgen list` takes folders to search for stacks")
        found += tuple(search_stacks(path))
    return found


def _forget(inventory: Inventory, also_unmounted: bool) -> tuple[Path, ...]:
    """Removes the records of folders that contain no stack any more. Returns the folders."""
    # without an answer of Docker, such a stack may have containers
    if inventory.docker_error:
        return ()
    used = {one.folder for one in inventory.stacks if one.services or one.state in ("up", "starting", "unhealthy")}
    found = tuple(one for one in gone_stacks(also_unmounted) if os.path.realpath(one) not in used)
    for folder in found:
        forget_stack(folder)
    return found


def _to_json(entry: StackEntry, disk: tuple[int | None, int | None]) -> dict[str, Any]:
    services = [{"service": one.service, "state": one.state, "health": one.health} for one in entry.services]
    return {
        "name": entry.name, "folder": entry.folder, "runtime": entry.runtime or None, "state": entry.state,
        "reason": entry.reason, "urls": entry.urls, "services": services,
        "gpus": {service: describe_gpus(request) for service, request in entry.gpus},
        "disk": {"weights": disk[0], "own_volumes": disk[1]},
    }  # fmt: skip


def _to_row(entry: StackEntry, disk: tuple[int | None, int | None]) -> tuple[str, ...]:
    running = sum(one.state == "running" for one in entry.services)
    lasting = sum(one.role != "download" for one in entry.services)
    known = [one for one in disk if one is not None]
    gpus = dict.fromkeys(id for _, request in entry.gpus for id in describe_gpus(request).split(","))
    # the address of a Service works only in its cluster
    urls = " ".join(f"{one} (inside)" if ".svc" in one else one for one in entry.urls) or "-"
    return (entry.name, entry.state, f"{running}/{lasting}" if lasting else "-", urls,
            ",".join(sorted(gpus, key=lambda id: (len(id), id))) or "-", size_text(sum(known) if known else None),
            entry.folder)  # fmt: skip


def list(args: Namespace) -> int:
    """Runs `stackgen list`. Returns 0, whatever state the stacks are in."""
    inventory = list_stacks(_find((*args.folders,)))
    forgotten = _forget(inventory, args.forget)
    inventory = replace(inventory, stacks=tuple(one for one in inventory.stacks if Path(one.folder) not in forgotten))
    disk = read_disk(inventory)
    stacks = inventory.stacks
    rows = [_to_row(one, disk[one.folder]) for one in stacks]
    lines = format_table(("NAME", "STATE", "RUNNING", "URL", "GPUS", "DISK", "FOLDER"), rows)
    for one in stacks:
        if one.reason and one.state != "down":
            lines.append(f"{one.name}: {one.reason}")
    empty = "no stack was found. To search a folder, run `stackgen list FOLDER`"
    data = {"stacks": [_to_json(one, disk[one.folder]) for one in stacks], "docker_error": inventory.docker_error,
            "forgotten": [str(one) for one in forgotten]}  # fmt: skip
    print_data(args, data, lines or [empty])
    for folder in forgotten:
        note(f"forgot {folder}: it no longer contains a stack, and no containers belong to it")
    if any(not Path(one.folder).exists() and not one.services for one in stacks):
        note(
            "the folder of a stack is missing, and may be on a disk that is not mounted. So the stack stays in this "
            "list. If the folder was deleted, run `stackgen list --forget`"
        )
    if inventory.docker_error:
        note(f"stackgen: {inventory.docker_error}, so the state of stacks in containers is unknown")
    return 0
