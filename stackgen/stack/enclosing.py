"""Finds folders that a stack's containers mount and that contain the stack itself, with its `.env`."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.plan import Bind, Plan

__all__ = ["find_enclosing", "refuse_enclosing"]


def find_enclosing(plan: Plan, folder: Path) -> list[str]:
    """Warnings about mounted folders that contain `folder`, the folder of the rendered files, each once."""
    return [
        f"{source} is mounted into the containers of {service}, so they can read the keys in {folder / '.env'}. Keep "
        "the stack in its own folder, outside of the model's folder"
        for source, service in _iterate(plan, folder).items()
    ]


def refuse_enclosing(plan: Plan, folder: Path, own: Set[str]) -> None:
    """Raises StackgenError if `folder`, which the user chose for the rendered files, is in a mounted folder.

    `own` are the targets of the user's own mounts, which are only a warning.
    """
    for source, service in _iterate(plan, folder, own).items():
        raise StackgenError(
            f"{folder} is in {source}, which is mounted into the containers of {service}, so they could read the "
            "keys in .env",
            "choose a folder for --output outside of the model's folder",
        )


def _iterate(plan: Plan, folder: Path, without: Set[str] = frozenset()) -> dict[str, str]:
    """Path of a mounted folder -> the first service that mounts it, except for mounts at the targets in `without`."""
    here = Path(os.path.realpath(folder))
    found: dict[str, str] = {}
    for service in plan.services:
        for mount in service.mounts:
            if isinstance(mount, Bind) and mount.target not in without:
                # as Compose does, relative to the folder of compose.yaml
                source = Path(os.path.realpath(folder / os.path.expanduser(mount.source)))
                if source == here or source in here.parents:
                    found.setdefault(str(source), service.name)
    return found
