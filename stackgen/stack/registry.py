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

__all__ = ["forget_stack", "known_stacks", "remember_stack", "state_folder"]


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
    """The recorded folders that still contain a stack file, sorted. Records of other folders are removed.

    A folder that this user can't read, or on a disk that is not mounted, stays recorded and is in the result.
    """
    found = []
    with suppress(OSError):
        for path in sorted(state_folder().iterdir()):
            try:
                folder = Path(read_regular(path).decode("utf-8").strip())
            # another program's file, or one that is being replaced
            except (OSError, ValueError):
                continue
            if _is_gone(folder):
                forget_stack(folder)
            else:
                found.append(folder)
    return sorted(found)


def _is_gone(folder: Path) -> bool:
    try:
        # without its parent, the disk of the folder may not be mounted now
        return folder.parent.is_dir() and not stack_file_in(folder).exists()
    except OSError:
        return False


def _entry(folder: Path) -> Path:
    return state_folder() / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:20]
