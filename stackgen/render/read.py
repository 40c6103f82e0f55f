"""Reads files that people, editors and interrupted programs may have left in any state: bounded, and never waiting."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from stackgen.errors import StackgenError

__all__ = ["MAX_BYTES", "PLACEMENT_FILE", "STACK_FILES", "read_regular", "read_state_file", "stack_file_in"]

# far above every file of a stack: a larger file is another file by mistake
MAX_BYTES = 16 * 2**20
# what stackgen writes, and the other ending that people give YAML files
STACK_FILES = ("stack.yaml", "stack.yml")
# what `stackgen plan` writes next to it: an input of rendering, as the stack file is
PLACEMENT_FILE = "placement.yaml"


def stack_file_in(folder: Path) -> Path:
    """Returns the stack file in `folder`: stack.yaml, or stack.yml if only that one exists."""
    return next((folder / name for name in STACK_FILES if (folder / name).exists()), folder / STACK_FILES[0])


def read_regular(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Returns the bytes of a regular file.

    Raises OSError, also for a folder (EISDIR), a pipe or device (EINVAL), and more than `limit` bytes (EFBIG).
    """
    # O_NONBLOCK: without it, opening a pipe that nobody writes to would wait forever
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
        # one byte more than allowed: the size in fstat() may be outdated
        with os.fdopen(os.dup(handle), "rb") as file:
            data = file.read(limit + 1)
    finally:
        os.close(handle)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit // 1024} KiB", str(path))
    return data


def read_state_file(path: Path, recovery: str) -> str | None:
    """Returns the text of a file that stackgen keeps for a stack, or None if there is none.

    Raises StackgenError with the hint `recovery` if the path is not a readable file with UTF-8.
    """
    try:
        return read_regular(path).decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError as error:
        # only the offset: the message of the exception contains the bytes, and they may be a key
        reason = f"byte {error.start + 1} is not valid UTF-8"
    # outside of the except block, so that --debug does not print the bytes either
    raise StackgenError(f"{path} can't be read: {reason}", recovery)
