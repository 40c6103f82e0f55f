"""Writes rendered files atomically, shows a diff, and never overwrites manual edits.

`stackgen.lock` has the checksum of each file as it was rendered, in the format of `sha256sum -c`. A file with another
checksum was edited manually.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Literal

from stackgen.errors import DriftError
from stackgen.render.templating import RenderedFile

__all__ = ["LOCK", "Change", "compare", "diff", "write_atomically", "write_files"]

LOCK = "stackgen.lock"
STACK_FILE = "stack.yaml"


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
    locked = sorted((path, text) for path, text in rendered.items() if path != STACK_FILE)
    rendered[LOCK] = "".join(f"{_digest(text)}  {path}\n" for path, text in locked)
    changes = []
    for path, text in rendered.items():
        old = _read(folder / path)
        if old is None:
            changes.append(Change(path, "new", "", text))
        elif old == text:
            changes.append(Change(path, "same", old, text))
        else:
            # the lock file itself has no checksum
            edited = path != LOCK and lock.get(path) != _digest(old)
            changes.append(Change(path, "changed", old, text, edited))
    for path, digest in lock.items():
        # never remove files outside the folder: a lock file could contain `..` or a path through a link
        is_inside = (folder / path).parent.resolve().is_relative_to(folder.resolve())
        old = _read(folder / path) if is_inside else None
        if path not in rendered and old is not None:
            changes.append(Change(path, "removed", old, "", digest != _digest(old)))
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
        raise DriftError(
            f"these files were edited by hand: {', '.join(str(folder / path) for path in edited)}",
            "--diff shows the changes; overwrite them with --force, or move them into stack.yaml",
        )
    for change in changes:
        if change.kind == "removed":
            (folder / change.path).unlink()
    # the lock file is written last: if stackgen is stopped earlier, each file is either old or new
    for change in sorted(changes, key=lambda change: change.path == LOCK):
        if change.kind in ("new", "changed"):
            write_atomically(folder / change.path, change.new)


def write_atomically(path: Path, text: str | bytes, mode: int = 0o644) -> None:
    """Writes `text` (str: as UTF-8) to `path`, with the permissions `mode`; readers never see half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the temporary file is in the same folder, because a rename is atomic only within one file system
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        os.fchmod(handle, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8") if isinstance(text, str) else text)
            file.flush()
            # the data is flushed before the rename: otherwise a crash could leave an empty file
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # also Ctrl-C
        Path(temporary).unlink(missing_ok=True)
        raise


def _read(path: Path) -> str | None:
    try:
        # a user's edit may contain any bytes; read_text() would also change line ends
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _read_lock(folder: Path) -> dict[str, str]:
    text = _read(folder / LOCK) or ""
    return {path: digest for digest, path in re.findall(r"(?m)^([0-9a-f]{64})  (.+)$", text)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
