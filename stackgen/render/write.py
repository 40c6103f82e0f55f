"""Writes rendered files atomically, shows a diff, and never overwrites manual edits.

`stackgen.lock` has the checksum of each file as it was rendered, in the format of `sha256sum -c`. A file with another
checksum was edited manually. While files are written, the lock file has the old and the new checksum of each of them:
if stackgen is killed at any moment, the next command knows each file on disk.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Literal

from stackgen.errors import DriftError, StackgenError
from stackgen.render.read import PLACEMENT_FILE, STACK_FILES, read_regular, stack_file_in
from stackgen.render.templating import RenderedFile
from stackgen.render.version import VERSION_LINE

__all__ = ["LOCK", "TEMPORARY", "Change", "clean_stack", "compare", "diff", "remove_leftovers", "temporary_folder",
           "write_atomically", "write_files"]  # fmt: skip

LOCK = "stackgen.lock"
# end of the name of every temporary file; a user's own file has another name
TEMPORARY = ".stackgen-tmp"


@dataclass(frozen=True, slots=True)
class Change:
    """The effect of writing one file. `old` is the text on disk, "" if there is no file. `edited`: changed manually."""

    path: str
    kind: Literal["new", "changed", "removed", "same"]
    old: str = ""
    new: str = ""
    edited: bool = False


def compare(files: Sequence[RenderedFile], folder: Path) -> list[Change]:
    """Returns the changes that writing `files` into `folder` would make, including the lock file."""
    lock = _read_lock(folder)
    rendered = {file.path: file.text for file in files}
    # stack.yaml is created for a stack made from flags, and then belongs to the user: never removed or overwritten
    locked = sorted((path, text) for path, text in rendered.items() if path not in (*STACK_FILES, PLACEMENT_FILE))
    rendered[LOCK] = VERSION_LINE + "".join(f"{_digest(text)}  {path}\n" for path, text in locked)
    changes = []
    for path, text in rendered.items():
        old = _read(folder / path)
        if old is None:
            changes.append(Change(path, "new", "", text))
        elif old == text:
            changes.append(Change(path, "same", old, text))
        else:
            # the lock file itself has no checksum
            edited = path != LOCK and _digest(old) not in lock.get(path, ())
            changes.append(Change(path, "changed", old, text, edited))
    for path, digests in lock.items():
        # never remove files outside the folder: a lock file could contain `..` or a path through a link
        is_inside = (folder / path).parent.resolve().is_relative_to(folder.resolve())
        old = _read(folder / path) if is_inside else None
        if path not in rendered and old is not None:
            changes.append(Change(path, "removed", old, "", _digest(old) not in digests))
    return changes


def diff(changes: Sequence[Change]) -> Iterator[str]:
    """Yields a unified diff, line by line, without line ends. Omits the lock file."""
    for change in changes:
        if change.kind == "same" or change.path == LOCK:
            continue
        before = "/dev/null" if change.kind == "new" else f"a/{change.path}"
        after = "/dev/null" if change.kind == "removed" else f"b/{change.path}"
        yield from unified_diff(change.old.splitlines(), change.new.splitlines(), before, after, lineterm="")


def write_files(changes: Sequence[Change], folder: Path, force: bool = False) -> None:
    """Applies `changes`. Raises DriftError, and writes nothing, if a manual edit would be lost and `force` is false."""
    edited = [change.path for change in changes if change.edited]
    if edited and not force:
        # the other files are rendered from stack.yaml, so an edit there needs no other place
        if own := [path for path in edited if path in STACK_FILES]:
            raise DriftError(
                f"this file was edited by hand: {folder / own[0]}",
                f"to use your edited file, run `stackgen render {folder}`; to overwrite it, add --force",
            )
        raise DriftError(
            f"these files were edited by hand: {', '.join(str(folder / path) for path in edited)}",
            "--diff shows your changes: move them into stack.yaml, or overwrite the files with --force",
        )
    written = [change for change in changes if change.kind in ("new", "changed")]
    removed = [change.path for change in changes if change.kind == "removed"]
    if not written and not removed:
        return
    for place in {folder, *((folder / change.path).parent for change in written)}:
        remove_leftovers(place)
    # stack.yaml first: with it, every other command can repair the rest
    files = sorted((one for one in written if one.path != LOCK), key=lambda one: one.path not in STACK_FILES)
    undo = _announce([change for change in files if change.path not in STACK_FILES], folder)
    done = 0
    try:
        for change in files:
            _create_mounted_folders(folder, change.path)
            write_atomically(folder / change.path, change.new, _mode(change.path))
            done += 1
        # before the lock file stops listing them
        for path in removed:
            (folder / path).unlink(missing_ok=True)
            done += 1
    except BaseException:
        # a failure that changed nothing changes the lock file neither
        if not done:
            undo()
        raise
    for change in written:
        if change.path == LOCK:
            write_atomically(folder / LOCK, change.new)


def clean_stack(folder: Path) -> None:
    """Removes what killed commands left in the stack's folder; one of these files can contain keys."""
    # elsewhere nothing was written, and the current folder may be a large one
    if not stack_file_in(folder).exists() and not (folder / LOCK).exists():
        return
    with suppress(StackgenError):
        folders = {folder, folder / "gateway", *((folder / path).parent for path in _read_lock(folder))}
        for one in folders:
            # not through a link: another stack may use what is behind it
            if one.resolve().is_relative_to(folder.resolve()):
                remove_leftovers(one)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of killed commands from `folder`. Those of a living command stay."""
    with suppress(OSError):
        for entry in [one for one in os.scandir(folder) if one.name.endswith(TEMPORARY)]:
            with suppress(OSError):
                handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    # the kernel releases the lock of a killed process
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
                finally:
                    os.close(handle)


def write_atomically(path: Path, text: str | bytes, mode: int | None = None) -> None:
    """Writes `text` (str: as UTF-8) to `path`, with the permissions `mode`; readers never see half a file.

    Default of `mode`: what the umask and the permissions of an existing file allow, as the file may contain secrets.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = _allowed_mode(path) if mode is None else mode
    # the temporary file is in the same folder, because a rename is atomic only within one file system
    handle, temporary = _create_temporary(path)
    try:
        os.fchmod(handle, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8") if isinstance(text, str) else text)
            file.flush()
            # the data is flushed before the rename: otherwise a crash could leave an empty file
            os.fsync(file.fileno())
            # while the file is open, so that `remove_leftovers` of another command does not take it
            os.replace(temporary, path)
    except BaseException as error:  # also Ctrl-C
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            # the system names no file if the disk is full
            error.filename = str(path)
        raise


def _mode(path: str) -> int | None:
    # the users of containers read what is mounted; the files next to stack.yaml are read by stackgen and Compose
    return 0o644 if "/" in path else None


def _create_mounted_folders(folder: Path, path: str) -> None:
    """Creates the folders of the file `path` below `folder`, and lets all users enter them, whatever the umask is."""
    for parent in reversed((folder / path).relative_to(folder).parents[:-1]):
        # an existing one, too: it was created with a strict umask, and containers can't read it
        (folder / parent).mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE((folder / parent).stat().st_mode)
        if mode | 0o055 != mode and not (folder / parent).is_symlink():
            # another user's folder: a container that can't read it reports that
            with suppress(PermissionError):
                (folder / parent).chmod(mode | 0o055)


def _allowed_mode(path: Path) -> int:
    # this is the only way to read the umask; what another thread creates in between is more private, not less
    umask = os.umask(0o077)
    os.umask(umask)
    try:
        before = path.stat().st_mode & 0o666
    except OSError:
        before = 0o666
    return before & ~umask


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yields a private folder in `parent`, which is removed at the end; or by the next command, after a kill."""
    with tempfile.TemporaryDirectory(dir=parent, prefix=".new.", suffix=TEMPORARY) as name:
        handle = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(handle)


def _create_temporary(path: Path) -> tuple[int, str]:
    """Returns an open file next to `path`, locked until it is closed, and its name."""
    while True:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:200]}.", suffix=TEMPORARY, dir=path.parent)
        # some network file systems have no locks: there, a leftover may be removed while it is in use
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        # another command took the file for a leftover in the moment before it was locked
        os.close(handle)


def _announce(changes: Sequence[Change], folder: Path) -> Callable[[], None]:
    """Adds the checksums that `changes` will give to the lock file, and returns a function that takes them back.

    Appends in place: half a line is no checksum, so the lock file is valid at every moment.
    """
    known = _read_lock(folder)
    new = [(_digest(change.new), change.path) for change in changes]
    lines = "".join(f"{digest}  {path}\n" for digest, path in new if digest not in known.get(path, ()))
    if not lines:
        return lambda: None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    old = _read(path)
    if path.is_symlink():
        # the target belongs to the user: only the link is replaced
        path.unlink()
        write_atomically(path, (old or "").encode("utf-8", "surrogateescape"))
    with open(path, "ab") as file:
        size = file.tell()

        def undo() -> None:
            path.unlink(missing_ok=True) if old is None else os.truncate(path, size)

        try:
            # a killed command may have left half a line
            start = VERSION_LINE if not old else "" if old.endswith("\n") else "\n"
            file.write(start.encode() + lines.encode())
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            undo()
            raise
    return undo


def _read(path: Path) -> str | None:
    try:
        # a user's edit may contain any bytes; read_text() would also change line ends
        return read_regular(path).decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        # a link to itself is replaced, as any other broken link
        if error.errno == errno.ELOOP:
            return None
        reason = error.strerror
    raise StackgenError(f"{path} can't be read: {reason}", "stackgen must write this file: move away what is there now")


def _read_lock(folder: Path) -> dict[str, set[str]]:
    """The checksums by path: one for each path, or several if a command was killed while it wrote files."""
    found: dict[str, set[str]] = {}
    for digest, path in re.findall(r"(?m)^([0-9a-f]{64})  (.+)$", _read(folder / LOCK) or ""):
        found.setdefault(path, set()).add(digest)
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
