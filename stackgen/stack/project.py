"""The folder of a running stack, as Compose wrote it on the containers, compared with the folder of a command.

Compose identifies a stack by its name alone, so a second folder with the same name would take over its containers.
The label is `com.docker.compose.project.working_dir` (docker/compose v2.40, pkg/api/labels.go).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stackgen.render.read import STACK_FILES

__all__ = ["OtherFolders", "compare_folders", "is_remote_engine"]


@dataclass(frozen=True, slots=True)
class OtherFolders:
    """Folders of the running stack other than the folder of the command.

    `present` still contain a stack. `gone` do not exist any more, or contain no stack: the stack was moved from there.
    """

    present: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


def compare_folders(labels: Iterable[str], folder: Path) -> OtherFolders:
    """Returns which of the folders in the containers' `labels` are not `folder`; an empty label is no evidence."""
    others = [label for label in dict.fromkeys(labels) if label and not _is_same(label, folder)]
    # on a remote engine, the other folder may be on another machine, so its absence here proves nothing
    present = [one for one in others if is_remote_engine() or _contains_stack(Path(one))]
    return OtherFolders(tuple(present), tuple(one for one in others if one not in present))


def is_remote_engine() -> bool:
    """Whether DOCKER_HOST names an engine on another machine."""
    return os.environ.get("DOCKER_HOST", "").startswith(("tcp:", "ssh:", "http"))


def _is_same(label: str, folder: Path) -> bool:
    if os.path.realpath(label) == os.path.realpath(folder):
        return True
    try:
        # a bind mount is another path of the same folder
        return os.path.samefile(label, folder)
    except OSError:
        return False


def _contains_stack(folder: Path) -> bool:
    try:
        return any((folder / name).exists() for name in ("compose.yaml", *STACK_FILES, "stackgen.lock"))
    # a folder of another user is no proof that the stack has moved
    except OSError:
        return True
