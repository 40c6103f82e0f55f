"""Refuse to change or to show what belongs to another folder's stack of the same name: containers and volumes."""

from __future__ import annotations

from pathlib import Path

from stackgen.cli.commands.output import note
from stackgen.errors import MachineError, StackgenError
from stackgen.render.read import stack_file_in
from stackgen.runtimes.compose.project import read_project_name, require_own_project
from stackgen.stack.registry import known_stacks

__all__ = ["check_ownership", "check_volume_ownership"]


def check_ownership(name: str, folder: Path, *, changes: bool = True, timeout: float = 30.0) -> None:
    """Raises StackgenError if the containers of the stack `name` belong to another folder that still has a stack.

    If that folder is gone and the command `changes` the containers, prints that this folder takes its place.
    """
    try:
        gone = require_own_project(name, folder, timeout)
    # without Docker, the command changes no container, or reports the error itself
    except MachineError:
        return
    for one in gone if changes else ():
        note(f"the stack was started in {one}, which no longer contains a stack: {folder} takes over the containers")


def check_volume_ownership(name: str, folder: Path) -> None:
    """Raises StackgenError if another recorded folder has a stack `name`: its chats may be in the volumes of that name.

    Volumes have no label of a folder, and a stack without containers shows its folder nowhere else.
    """
    others = [one for one in known_stacks() if one.resolve() != folder.resolve() and read_project_name(one) == name]
    if others:
        raise StackgenError(
            f"nothing was removed: the volumes of {name} may belong to {others[0]}, a stack of the same name",
            f"run the command in {others[0]}, or set another `name:` in {stack_file_in(folder)}",
        )
