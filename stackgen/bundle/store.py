"""The store of weights: a folder, or a Docker volume. Reads files from it, and writes them all or none.

Files are written below `STAGING` first, and moved to their places when all of them are complete.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stackgen.bundle.blob_reader import BlobReader
from stackgen.bundle.chunks import read_chunks, write_all
from stackgen.bundle.manifest import StoreFile
from stackgen.runtimes.compose.volume_files import VolumeFiles, find_mountpoint
from stackgen.stack.lock import stack_lock

__all__ = ["FolderStore", "Member", "Store", "VolumeStore", "open_volume"]

STAGING = ".stackgen/.bundle-load"


@dataclass(frozen=True, slots=True)
class Member:
    """A file (`size` bytes, `stamp`: changes with the content) or a link (`link`: its target) of a store."""

    path: str
    size: int
    stamp: str
    link: str | None
    open: Callable[[], Any]


class Store(Protocol):
    """A store of weights."""

    def members(self, path: str) -> Iterator[Member]:
        """Yields all files and links at or below `path`, in any order. Open a member before the next one."""

    def find_present(self, files: Sequence[StoreFile]) -> set[str]:
        """Returns the paths of those of `files` that the store has with the same content."""

    def free_bytes(self) -> int | None:
        """Returns how many bytes fit into the store; None if unknown."""

    def load(
        self, files: Sequence[StoreFile], reader: BlobReader, sizes: dict[str, int], on_bytes: Callable[[int], None]
    ) -> None:
        """Writes `files`, all or none. Raises OSError or StackgenError."""


class FolderStore:
    """A store in a folder. `owner` (uid, gid) gets what is written; None: the user who runs this."""

    def __init__(self, root: Path, owner: tuple[int, int] | None = None) -> None:
        self._root, self._owner = root, owner

    def members(self, path: str) -> Iterator[Member]:
        """See Store."""
        start = self._root / path
        # not is_file(): a link is a member, and not what it leads to
        if start.is_symlink() or start.is_file():
            yield self._member(path)
            return
        for folder, folders, names in os.walk(start):
            # os.walk lists a link to a folder as a folder
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            for name in sorted((*names, *links)):
                yield self._member((Path(folder) / name).relative_to(self._root).as_posix())

    def find_present(self, files: Sequence[StoreFile]) -> set[str]:
        """See Store."""
        return {one.path for one in files if self._is_present(one)}

    def free_bytes(self) -> int | None:
        """See Store."""
        folder = next(one for one in (self._root, *self._root.parents) if one.exists())
        return shutil.disk_usage(folder).free

    def load(
        self, files: Sequence[StoreFile], reader: BlobReader, sizes: dict[str, int], on_bytes: Callable[[int], None]
    ) -> None:
        """See Store."""
        made = [self._root, *self._root.parents]
        made = made[: next(index for index, one in enumerate(made) if one.exists())]
        self._make_folder(self._root)
        try:
            # also against another user's load into the same store
            with stack_lock(self._root, "bundle", doing="loading a bundle"):
                self._load(files, reader, sizes, on_bytes)
        except BaseException:
            for folder in made:
                self._remove_empty(folder)
            raise

    def _load(self, files: Sequence[StoreFile], reader: BlobReader, sizes: dict[str, int],
              on_bytes: Callable[[int], None]) -> None:  # fmt: skip
        staging = self._root / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        undo: list[Callable[[], Any]] = []
        try:
            for one in files:
                self._stage(one, staging / one.path, reader, on_bytes)
            for one in files:
                undo += self._move(staging / one.path, self._root / one.path, staging / f".before-{len(undo)}")
        except BaseException as error:
            if isinstance(error, OSError) and error.filename is None:
                # the system names no file if the disk is full
                error.filename = str(self._root)
            for step in reversed(undo):
                step()
            shutil.rmtree(staging, ignore_errors=True)
            self._remove_empty(staging.parent)
            raise
        shutil.rmtree(staging)

    def _member(self, path: str) -> Member:
        place = self._root / path
        info = place.lstat()
        link = os.readlink(place) if stat.S_ISLNK(info.st_mode) else None
        return Member(
            path, info.st_size, f"{info.st_size}:{info.st_mtime_ns}", link, lambda: open(place, "rb", buffering=0)
        )

    def _is_present(self, one: StoreFile) -> bool:
        path = self._root / one.path
        if one.link is not None:
            return path.is_symlink() and os.readlink(path) == one.link
        if path.is_symlink() or not path.is_file():
            return False
        found = hashlib.sha256()
        with open(path, "rb", buffering=0) as file:
            for chunk in read_chunks(file):
                found.update(chunk)
        return f"sha256:{found.hexdigest()}" == one.digest

    def _stage(self, one: StoreFile, place: Path, reader: BlobReader, on_bytes: Callable[[int], None]) -> None:
        self._make_folder(place.parent)
        if one.link is not None:
            place.symlink_to(one.link)
        else:
            with open(place, "wb", buffering=0) as file, reader.open(one.digest or "") as source:
                for chunk in read_chunks(source):
                    write_all(file, chunk)
                    on_bytes(len(chunk))
            # readable for the users of all containers
            place.chmod(0o664 if self._owner else 0o644)
        self._give(place)

    def _move(self, draft: Path, place: Path, backup: Path) -> list[Callable[[], Any]]:
        """Moves a file to its place, and returns what takes that back."""
        undo: list[Callable[[], Any]] = [lambda folder=folder: self._remove_empty(folder)  # type: ignore[misc]
                                         for folder in self._make_folder(place.parent)]  # fmt: skip
        if os.path.lexists(place):
            place.rename(backup)
            undo.append(lambda: backup.replace(place))
        else:
            undo.append(lambda: place.unlink(missing_ok=True))
        draft.rename(place)
        return undo

    def _make_folder(self, folder: Path) -> list[Path]:
        """Creates a folder with its parents; returns those that it has created, the outermost first."""
        missing = [one for one in (folder, *folder.parents) if not one.exists()][::-1]
        for one in missing:
            one.mkdir()
            one.chmod(0o775 if self._owner else 0o755)
            self._give(one)
        return missing

    def _give(self, path: Path) -> None:
        if self._owner:
            os.chown(path, *self._owner, follow_symlinks=False)

    @staticmethod
    def _remove_empty(folder: Path) -> None:
        with suppress(OSError):
            folder.rmdir()


class VolumeStore:
    """A store in a volume that only Docker can open."""

    def __init__(self, files: VolumeFiles) -> None:
        self._files = files

    def members(self, path: str) -> Iterator[Member]:
        """See Store."""
        with self._files.read(path) as archive:
            # the names in the archive start with the last part of the path
            parent = path.rpartition("/")[0]
            for entry in archive or ():
                if entry.isdir():
                    continue
                name = f"{parent}/{entry.name}".lstrip("/")
                link = entry.linkname if entry.issym() else None
                yield Member(name, entry.size, f"{entry.size}:{entry.mtime}", link,
                             lambda archive=archive, entry=entry: archive.extractfile(entry))  # type: ignore[misc]  # fmt: skip

    def find_present(self, files: Sequence[StoreFile]) -> set[str]:
        """See Store."""
        sums = self._files.checksums([one.path for one in files if one.link is None])
        links = self._files.links([one.path for one in files if one.link is not None])
        found = {f"{path}:sha256:{digest}" for path, digest in sums.items()} | {f"{p}>{t}" for p, t in links.items()}
        return {one.path for one in files if f"{one.path}:{one.digest}" in found or f"{one.path}>{one.link}" in found}

    def free_bytes(self) -> int | None:
        """See Store."""
        # the volume may be on another machine; Docker reports a full disk
        return None

    def load(
        self, files: Sequence[StoreFile], reader: BlobReader, sizes: dict[str, int], on_bytes: Callable[[int], None]
    ) -> None:
        """See Store."""
        uid, gid = self._files.prepare()
        self._files.remove(STAGING)
        try:
            with self._files.write() as stream, tarfile.open(fileobj=stream, mode="w|", bufsize=2**20) as archive:
                folders: set[str] = set()
                for one in files:
                    _add_folders(archive, f"{STAGING}/{one.path}", folders, uid, gid)
                    _add_file(archive, one, reader, sizes, on_bytes, uid, gid)
            # the only step that other stacks see: renames within one file system
            self._files.commit(STAGING, [one.path for one in files], (uid, gid))
        except BaseException:
            with suppress(Exception):
                self._files.remove(STAGING)
            raise


def open_volume(name: str, image: str) -> Store:
    """Returns the store in the volume `name`: its folder if this process can write there, else through `image`."""
    path = Path(find_mountpoint(name))
    # only root; a remote engine's folder does not exist here
    if os.geteuid() == 0 and path.is_dir():
        info = path.stat()
        if info.st_uid == 0 and not any(path.iterdir()):
            # as the download service does it (templates/images/common/store_owner.py)
            return FolderStore(path, (2000, 0))
        return FolderStore(path, (info.st_uid, info.st_gid))
    return VolumeStore(VolumeFiles(name, image))


def _add_folders(archive: tarfile.TarFile, path: str, known: set[str], uid: int, gid: int) -> None:
    for index in (at for at, letter in enumerate(path) if letter == "/"):
        folder = path[:index]
        if folder not in known:
            known.add(folder)
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, 0o775, uid, gid
            archive.addfile(entry)


def _add_file(archive: tarfile.TarFile, one: StoreFile, reader: BlobReader, sizes: dict[str, int],
              on_bytes: Callable[[int], None], uid: int, gid: int) -> None:  # fmt: skip
    entry = tarfile.TarInfo(f"{STAGING}/{one.path}")
    entry.mode, entry.uid, entry.gid = 0o664, uid, gid
    if one.link is not None:
        entry.type, entry.linkname = tarfile.SYMTYPE, one.link
        archive.addfile(entry)
        return
    entry.size = sizes[one.digest or ""]
    with reader.open(one.digest or "") as raw:
        # a buffer joins the short reads at the end of a piece
        archive.addfile(entry, io.BufferedReader(raw, 2**20))
    on_bytes(entry.size)
