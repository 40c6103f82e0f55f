"""Writes the content of a bundle: files named by their digest, in parts of a limited size.

A blob that does not fit into the rest of a part is cut: `blobs/sha256/HEX.001` in one part, `.002` in the next one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stackgen.bundle.chunks import write_all
from stackgen.bundle.hasher import Hasher
from stackgen.bundle.manifest import Blob, Piece
from stackgen.errors import StackgenError

__all__ = ["JOURNAL", "BlobWriter", "Progress"]

FOLDER = "blobs/sha256"
JOURNAL = ".create.json"
# smaller blobs are not cut: one more file is worse than a part that is not full
SMALLEST_CUT = 16 * 2**20
# what the files next to the blobs may take in the first part
RESERVED = 8 * 2**20
# what, bytes done, bytes in all (0: unknown)
Progress = Callable[[str, int, int], None]
Chunks = Iterable[bytes | memoryview]
OnBytes = Callable[[int], None]


class BlobWriter:
    """Writes blobs into the bundle `folder`, in parts of `part_size` bytes (0: no parts).

    A journal remembers finished blobs and their sources, so a killed `create` continues. `base` has the blobs that an
    earlier bundle contains (digest -> size): they are not written.
    """

    def __init__(self, folder: Path, part_size: int, base: dict[str, int]) -> None:
        self._folder, self._part_size, self._base = folder, part_size, base
        self.blobs: dict[str, Blob] = {}
        # what the caller wants to know in the next run, by its own keys
        self.notes: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        self._part, self._used = 1, 0
        # cleared when the pieces of a blob are complete
        self._open: list[Path] = []
        self._load_journal()

    def known(self, source: str) -> str | None:
        """The digest of the blob that an earlier run has written from `source`; None if there is none."""
        return self._sources.get(source)

    def has(self, digest: str) -> bool:
        """Whether the bundle, or the earlier one, already contains the blob."""
        return digest in self.blobs

    def note_base(self, digest: str) -> bool:
        """Takes the blob from the earlier bundle if that bundle has it. Returns whether the bundle has the blob now."""
        if digest in self._base and digest not in self.blobs:
            self.blobs[digest] = Blob(digest=digest, size=self._base[digest])
        return digest in self.blobs

    def add_bytes(self, data: bytes) -> str:
        """Writes `data`, also if an earlier bundle has it, and returns its digest."""
        return self.add([data], len(data), own=True)

    def add(self, chunks: Chunks, size: int, source: str = "", on_bytes: OnBytes = lambda count: None,
            *, own: bool = False) -> str:  # fmt: skip
        """Writes `size` bytes from `chunks` and returns their digest. `source` names them for the next run.

        `own`: writes them also if an earlier bundle has them, because a bundle is useless without them.

        Raises StackgenError if there are more or fewer bytes. On any error, no part of the blob stays.
        """
        try:
            pieces, digest = self._write(chunks, size, on_bytes)
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError) and error.filename is None:
                # the system names no file if the disk is full
                error.filename = str(self._folder)
            raise
        # also a blob that this bundle has already
        if self._is_written(digest) or (not own and self.note_base(digest)):
            self._discard()
        else:
            self._keep(pieces, digest, size)
        if source:
            self._sources[source] = digest
            self.save()
        return digest

    def _is_written(self, digest: str) -> bool:
        return digest in self.blobs and bool(self.blobs[digest].pieces)

    def drop(self, digest: str) -> None:
        """Removes a blob that turned out to be unnecessary."""
        for piece in self.blobs.pop(digest).pieces:
            (self._folder / piece.path).unlink()

    def save(self) -> None:
        """Writes the journal."""
        text = json.dumps({
            "part_size": self._part_size, "part": self._part, "sources": self._sources,
            "notes": self.notes, "blobs": [blob.model_dump() for blob in self.blobs.values()],
        })  # fmt: skip
        # not flushed to disk: `verify` finds what a power failure has lost
        draft = self._folder / f"{JOURNAL}.new"
        draft.write_text(text)
        draft.replace(self._folder / JOURNAL)

    def keep_only(self, digests: Iterable[str]) -> None:
        """Removes all blobs but these: an earlier run may have written others, before the stack was changed."""
        for digest in set(self.blobs) - set(digests):
            self.drop(digest)
        self._remove_strays()

    def finish(self) -> None:
        """Removes the journal."""
        (self._folder / JOURNAL).unlink(missing_ok=True)

    def _write(self, chunks: Chunks, size: int, on_bytes: OnBytes) -> tuple[list[Piece], str]:
        whole, pieces = Hasher(), list[Piece]()
        left = memoryview(b"")
        source, done = iter(chunks), 0
        while True:
            room = self._make_room(size - done)
            place = self._place() / f".{os.getpid()}.{len(pieces)}.tmp"
            self._open.append(place)
            part, written = (Hasher() if room < size else whole), 0
            with open(place, "wb", buffering=0) as file:
                while written < room:
                    if not left:
                        chunk: bytes | memoryview = next(source, b"")
                        left = memoryview(chunk)
                    if not left:
                        raise StackgenError(
                            f"only {done} of {size} bytes arrived",
                            "run the command again: it continues where it stopped",
                        )
                    now = left[: room - written]
                    left = left[len(now) :]
                    whole.update(now)
                    if part is not whole:
                        part.update(now)
                    write_all(file, now)
                    written, done = written + len(now), done + len(now)
                    on_bytes(len(now))
            self._used += written
            digest = f"sha256:{part.hexdigest()}"
            pieces.append(Piece(path=self._relative(place), size=written, digest=digest))
            if done == size:
                break
        rest: bytes | memoryview = next(source, b"")
        if left or rest:
            raise StackgenError(
                f"more than the expected {size} bytes arrived: the file changes while it is read",
                "run the command again",
            )
        return pieces, f"sha256:{whole.hexdigest()}"

    def _keep(self, pieces: list[Piece], digest: str, size: int) -> None:
        name, final = digest.removeprefix("sha256:"), []
        for number, (piece, draft) in enumerate(zip(pieces, self._open, strict=True), 1):
            target = draft.with_name(name if len(pieces) == 1 else f"{name}.{number:03}")
            draft.rename(target)
            final.append(piece.model_copy(update={"path": self._relative(target)}))
        self._open.clear()
        self.blobs[digest] = Blob(digest=digest, size=size, pieces=tuple(final))

    def _discard(self) -> None:
        for path in self._open:
            with suppress(OSError):
                self._used -= path.stat().st_size if path.parent == self._place() else 0
            path.unlink(missing_ok=True)
        self._open.clear()

    def _make_room(self, size: int) -> int:
        """Bytes of the next piece of a blob that has `size` bytes left; starts the next part if this one is full."""
        if not self._part_size:
            return size
        free = self._free()
        if size > free and (free < min(SMALLEST_CUT, self._part_size // 4) or size < SMALLEST_CUT):
            if self._used or self._part == 1:
                self._part, self._used = self._part + 1, 0
            free = self._free()
        return min(size, free)

    def _free(self) -> int:
        reserved = min(RESERVED, self._part_size // 8) if self._part == 1 else 0
        return max(self._part_size - reserved - self._used, 0)

    def _place(self) -> Path:
        folder = self._folder / (f"part-{self._part:03}" if self._part_size else "") / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _load_journal(self) -> None:
        try:
            state = json.loads((self._folder / JOURNAL).read_text())
            blobs = {one["digest"]: Blob.model_validate(one) for one in state["blobs"]}
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            raise StackgenError(
                f"{self._folder / JOURNAL} is damaged", f"remove {self._folder}, and start again"
            ) from None
        if state["part_size"] != self._part_size:
            raise StackgenError(
                f"{self._folder} contains an unfinished bundle with another --part-size",
                f"pass the same --part-size as before, or remove {self._folder}",
            )
        for digest, blob in blobs.items():
            paths = [(self._folder / piece.path, piece.size) for piece in blob.pieces]
            is_there = all(path.is_file() and path.stat().st_size == size for path, size in paths)
            if is_there if paths else digest in self._base:
                self.blobs[digest] = blob
        self._sources = {source: digest for source, digest in state["sources"].items() if digest in self.blobs}
        self._part, self.notes = state["part"], state["notes"]
        self._remove_strays()
        self._used = sum(path.stat().st_size for path in self._place().iterdir())

    def _remove_strays(self) -> None:
        """Removes files next to the blobs that are no part of a blob: what a killed run was writing."""
        known = {self._folder / piece.path for blob in self.blobs.values() for piece in blob.pieces}
        for path in (*self._folder.glob(f"{FOLDER}/*"), *self._folder.glob(f"part-*/{FOLDER}/*")):
            if path not in known:
                path.unlink()
