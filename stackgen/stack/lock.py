"""The lock of a stack: only one stackgen command at a time changes a stack.

The kernel holds the lock while the stack's folder is open, and frees it when the process ends, even after `kill -9`.
The folder itself is locked, so that a lock needs no permission to write. `HOLDER` only describes who holds the lock: a
file that a killed command left behind locks nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.render.read import read_regular

__all__ = ["HOLDER", "Holder", "StackBusyError", "find_holder", "stack_lock"]

HOLDER = ".stackgen.busy.json"
CHANGING = "changing this stack"
POLL_SECONDS = 0.1
# how long a lock without a known holder is tried again: the holder may be writing the file, or only looking at the lock
GRACE_SECONDS = 0.5

# folders that this process has locked, by device and inode: a command may call another one
_held: set[tuple[int, int]] = set()


class StackBusyError(StackgenError):
    """Another command is changing the stack."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lock: its command, its pid, since when (seconds since 1970), and what it is doing."""

    command: str
    pid: int
    since: float
    doing: str = CHANGING

    def __str__(self) -> str:
        """Returns for example "`stackgen update` (pid 4711) has been changing this stack since 17:04:31"."""
        start = datetime.fromtimestamp(self.since)
        day = "" if start.date() == datetime.now().date() else f"{start:%Y-%m-%d} "
        return f"`stackgen {self.command}` (pid {self.pid}) has been {self.doing} since {day}{start:%H:%M:%S}"


@contextmanager
def stack_lock(
    folder: Path,
    command: str = "",
    *,
    wait: float = 0.0,
    on_wait: Callable[[str], None] = lambda line: None,
    create: bool = False,
    doing: str = CHANGING,
) -> Iterator[bool]:
    """Holds the lock of the stack in `folder`. Yields False if its file system has no locks.

    `command` is the name that other commands report, and `doing` what they say it does. If another process holds the
    lock, waits up to `wait` seconds, and calls `on_wait` once with a line for the user. Nested calls in one process
    succeed. `create` creates a missing folder, and removes it if it stays empty; otherwise, a missing folder is not
    locked. Raises StackBusyError.
    """
    created = _create(folder) if create else []
    try:
        handle, is_locked = _acquire(folder, wait, on_wait, create, doing)
        if handle is None:
            # locked by this process, or missing
            yield is_locked
            return
        key = _identity(os.fstat(handle))
        try:
            _held.add(key)
            _write_holder(folder, command, doing)
            yield is_locked
        finally:
            with suppress(OSError):
                (folder / HOLDER).unlink(missing_ok=True)
            _held.discard(key)
            os.close(handle)
    finally:
        for path in created:
            # a folder that is not empty belongs to the stack
            with suppress(OSError):
                path.rmdir()


def find_holder(folder: Path) -> Holder | None:
    """Returns the process that changes the stack in `folder` now; None if none does, or if it is unknown."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        if _identity(os.fstat(handle)) in _held:
            return _read_holder(folder)
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(folder)
    except OSError:
        return None
    finally:
        os.close(handle)
    return None


def _acquire(
    folder: Path, wait: float, on_wait: Callable[[str], None], create: bool, doing: str
) -> tuple[int | None, bool]:
    """Returns the open folder (None if there is nothing to release), and whether the lock is held."""
    start, has_reported = time.monotonic(), False
    while True:
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if not create:
                return None, True
            # another command has created the folder as well, and has removed it again
            folder.mkdir(parents=True, exist_ok=True)
            continue
        except NotADirectoryError:
            return None, True
        is_gone = False
        try:
            identity = _identity(os.fstat(handle))
            if identity in _held:
                os.close(handle)
                return None, True
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the folder may have been removed or replaced before it was locked
            is_gone = not folder.exists() or _identity(os.stat(folder)) != identity
            if not is_gone:
                return handle, True
        except BlockingIOError:
            pass
        # NFS locks no folders (EBADF), and some file systems have no locks at all
        except OSError:
            return handle, False
        os.close(handle)
        if is_gone:
            continue
        holder, waited = _read_holder(folder), time.monotonic() - start
        if waited >= (wait if holder else max(wait, GRACE_SECONDS)):
            raise _busy(holder, doing)
        if holder and not has_reported:
            on_wait(f"waiting up to {wait:.0f} s: {holder}")
            has_reported = True
        time.sleep(POLL_SECONDS)


def _busy(holder: Holder | None, doing: str) -> StackBusyError:
    return StackBusyError(
        str(holder) if holder else f"another stackgen command is {doing}",
        "try again when the other command has finished, or add `--wait SECONDS` to wait for it",
    )


def _write_holder(folder: Path, command: str, doing: str) -> None:
    holder = {"command": command, "pid": os.getpid(), "since": round(time.time(), 3), "doing": doing}
    # in a read-only folder, the lock holds without its description
    with suppress(OSError):
        # another user's file can be removed, but not overwritten
        (folder / HOLDER).unlink(missing_ok=True)
        (folder / HOLDER).write_text(json.dumps(holder) + "\n", "utf-8")


def _read_holder(folder: Path) -> Holder | None:
    """The holder according to the file, if that process exists."""
    try:
        data = json.loads(read_regular(folder / HOLDER))
        holder = Holder(str(data["command"]), int(data["pid"]), float(data["since"]),
                        str(data.get("doing", CHANGING)))  # fmt: skip
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    try:
        os.kill(holder.pid, 0)
    # a process of another user
    except PermissionError:
        return holder
    except (OSError, OverflowError):
        return None
    return holder


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _create(folder: Path) -> list[Path]:
    """Creates `folder` with its parents, and returns what was missing, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing
