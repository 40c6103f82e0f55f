"""Reads the content of a bundle, no matter which parts or earlier bundles contain it."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stackgen.bundle.manifest import Blob, Piece

__all__ = ["BlobReader"]


class BlobReader:
    """Reads the blobs of a bundle, from its folder, and from the folders of earlier bundles."""

    def __init__(self, folder: Path, blobs: Sequence[Blob], bases: Sequence[tuple[Path, Sequence[Blob]]] = ()) -> None:
        self._places: dict[str, tuple[Path, Blob]] = {}
        # this bundle last, so that its own files take precedence
        for place, found in (*bases, (folder, blobs)):
            self._places |= {blob.digest: (place, blob) for blob in found if blob.pieces}

    def has(self, digest: str) -> bool:
        """Whether a folder should contain the blob."""
        return digest in self._places

    def pieces(self, digest: str) -> list[tuple[Path, Piece]]:
        """The files that contain the blob, with what the manifest says about each. Raises KeyError."""
        folder, blob = self._places[digest]
        return [(folder / piece.path, piece) for piece in blob.pieces]

    def open(self, digest: str) -> io.RawIOBase:
        """Opens the blob as one file. Raises KeyError and OSError."""
        files = self.pieces(digest)
        if len(files) == 1:
            return open(files[0][0], "rb", buffering=0)
        return _Joined([(path, piece.size) for path, piece in files])

    def read(self, digest: str) -> bytes:
        """Returns a small blob. Raises KeyError and OSError."""
        with self.open(digest) as file:
            return file.readall()


class _Joined(io.RawIOBase):
    """Several files, read as one."""

    def __init__(self, files: Sequence[tuple[Path, int]]) -> None:
        self._files, self._size, self._position = files, sum(size for _, size in files), 0
        self._index = -1
        self._file: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        start = 0
        for index, (path, size) in enumerate(self._files):
            if self._position < start + size:
                file = self._open(index, path)
                file.seek(self._position - start)
                count = int(file.readinto(memoryview(buffer)[: start + size - self._position]))
                self._position += count
                return count
            start += size
        return 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _open(self, index: int, path: Path) -> Any:
        if self._file is None or self._index != index:
            if self._file is not None:
                self._file.close()
            self._index, self._file = index, path.open("rb", buffering=0)
        return self._file
