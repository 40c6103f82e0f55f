"""The stacks that this user has rendered or started, so that commands find the ones that are down as well.

Docker knows a stack only while the stack has containers. So each stack has a small file in `$XDG_STATE_HOME/stackgen/
stacks`, by default in `~/.local/state` (XDG Base Directory Specification 0.8). The file contains the stack's folder.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from stackgen.render.read import read_regular, stack_file_in
from stackgen.render.write import write_atomically

__all__ = ["forget_stack", "gone_stacks", "known_stacks", "remember_stack", "state_folder"]


def state_folder() -> Path:
    """The folder with one file for each stack of this user."""
    given = os.environ.get("XDG_STATE_HOME", "")
    # the specification says that a relative path is invalid and must be ignored
    base = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.local/state"))
    return base / "stackgen" / "stacks"


def remember_stack(folder: Path) -> None:
    """Records that `folder` contains a rendered stack. Does nothing if this user can't write to the home folder."""
    path = _entry(folder)
    text = f"{folder.resolve()}\n"
    # a stack works without the record, so a read-only home folder must not stop a start
    with suppress(OSError, ValueError):
        if not path.exists() or read_regular(path) != text.encode():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)


def forget_stack(folder: Path) -> None:
    """Removes the record of `folder`."""
    with suppress(OSError):
        _entry(folder).unlink()


def known_stacks() -> list[Path]:
    """The recorded folders that still contain a stack file, sorted.

    A folder that this user can't read, or on a disk that is not mounted, is in the result too.
    """
    return [folder for folder in _recorded() if not _is_gone(folder)]


def gone_stacks(also_unmounted: bool = False) -> list[Path]:
    """The recorded folders that contain no stack file any more, sorted.

    With `also_unmounted`, also those that may be on a disk that is not mounted.
    """
    return [folder for folder in _recorded() if _is_gone(folder) or (also_unmounted and not folder.exists())]


def _recorded() -> list[Path]:
    found = []
    with suppress(OSError):
        for path in state_folder().iterdir():
            # another program's file, or one that is being replaced
            with suppress(OSError, ValueError):
                found.append(Path(read_regular(path).decode("utf-8").strip()))
    return sorted(found)


def _is_gone(folder: Path) -> bool:
    try:
        # without its parent, the disk of the folder may not be mounted now
        return folder.parent.is_dir() and not stack_file_in(folder).exists() and not _is_unmounted(folder.parent)
    except OSError:
        return False


def _is_unmounted(folder: Path) -> bool:
    """Whether `folder` is an empty place for a disk: a mount point of /etc/fstab, or below /mnt and the like."""
    if any(folder.iterdir()):
        return False
    if any(one in folder.parents for one in map(Path, ("/mnt", "/media", "/run/media", "/Volumes"))):
        return True
    try:
        # fstab(5): the second field is the mount point
        lines = Path("/etc/fstab").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    return str(folder) in {fields[1] for line in lines if len(fields := line.split()) > 1 and fields[0][0] != "#"}


def _entry(folder: Path) -> Path:
    return state_folder() / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:20]
