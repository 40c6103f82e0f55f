"""Texts to disk: all or nothing, with a diff, and never over what a person edited.

`stackgen.lock` holds the checksum of each file as it was rendered (`sha256sum -c stackgen.lock` reads it): a file
whose checksum differs was edited by hand.
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
OWN = "stack.yaml"


@dataclass(frozen=True, slots=True)
class Change:
    """What writing would do to one file. `old` is the text on disk, "" where there is none."""

    path: str
    kind: Literal["new", "changed", "removed", "same"]
    old: str = ""
    new: str = ""
    edited: bool = False


def compare(files: Sequence[RenderedFile], folder: Path) -> list[Change]:
    """What writing `files` into `folder` would do, the lock file included, in the order of the files."""
    lock = _read_lock(folder)
    wanted = {file.path: file.text for file in files}
    # stack.yaml, written for a stack made from flags, is the user's from then on: not ours to remove or overwrite
    sealed = sorted((path, text) for path, text in wanted.items() if path != OWN)
    wanted[LOCK] = "".join(f"{_digest(text)}  {path}\n" for path, text in sealed)
    changes = []
    for path, text in wanted.items():
        old = _read(folder / path)
        if old is None:
            changes.append(Change(path, "new", "", text))
        elif old == text:
            changes.append(Change(path, "same", old, text))
        else:
            edited = path != LOCK and lock.get(path) != _digest(old)
            changes.append(Change(path, "changed", old, text, edited))
    for path, digest in lock.items():
        # a path that leaves the folder, by `..` or by a link, is nothing we wrote, so nothing we may remove
        inside = (folder / path).parent.resolve().is_relative_to(folder.resolve())
        old = _read(folder / path) if inside else None
        if path not in wanted and old is not None:
            changes.append(Change(path, "removed", old, "", digest != _digest(old)))
    return changes


def diff(changes: Sequence[Change]) -> Iterator[str]:
    """A unified diff, line by line without line ends; the lock file is left out."""
    for change in changes:
        if change.kind == "same" or change.path == LOCK:
            continue
        before = "/dev/null" if change.kind == "new" else f"a/{change.path}"
        after = "/dev/null" if change.kind == "removed" else f"b/{change.path}"
        yield from unified_diff(change.old.splitlines(), change.new.splitlines(), before, after, lineterm="")


def write_files(changes: Sequence[Change], folder: Path, force: bool = False) -> None:
    """Carries out `changes`. Raises DriftError, and writes nothing, where a person's edit would be lost."""
    edited = [change.path for change in changes if change.edited]
    if edited and not force:
        raise DriftError(
            f"edited by hand since it was rendered: {', '.join(str(folder / path) for path in edited)}",
            "--diff shows what would change; --force overwrites it; or put the change into stack.yaml",
        )
    for change in changes:
        if change.kind == "removed":
            (folder / change.path).unlink()
    # the lock goes last: whatever stops us before leaves files that are either old or new, each whole
    for change in sorted(changes, key=lambda change: change.path == LOCK):
        if change.kind in ("new", "changed"):
            write_atomically(folder / change.path, change.new)


def write_atomically(path: Path, text: str | bytes, mode: int = 0o644) -> None:
    """Writes `text` (in UTF-8) beside `path` and renames it: a reader, or a Ctrl-C, never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        os.fchmod(handle, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8") if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _read_lock(folder: Path) -> dict[str, str]:
    text = _read(folder / LOCK) or ""
    return {path: digest for digest, path in re.findall(r"(?m)^([0-9a-f]{64})  (.+)$", text)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
