"""Writes the images of a bundle as one OCI image layout, for tools such as skopeo, and for a private registry."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from stackgen.bundle.archive import LAYOUT, build_index
from stackgen.bundle.blob_reader import BlobReader
from stackgen.bundle.blobs import Progress
from stackgen.bundle.chunks import read_chunks, write_all
from stackgen.bundle.manifest import Manifest
from stackgen.errors import StackgenError
from stackgen.render.write import write_atomically

__all__ = ["write_layout"]


def write_layout(manifest: Manifest, reader: BlobReader, target: Path, progress: Progress) -> None:
    """Writes the layout into the new folder `target`. Blobs are linked, not copied, where the file system can.

    Raises StackgenError if the folder has content, or a blob is in an earlier bundle. On an error, nothing stays.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StackgenError(f"{target} is not empty", "choose a new folder")
    digests = dict.fromkeys(one for image in manifest.images for one in (image.digest, image.config, *image.layers))
    if missing := [one for one in digests if not reader.has(one)]:
        raise StackgenError(f"{missing[0]} is in an earlier bundle", "pass the earlier bundle with --base FOLDER")
    sizes = manifest.sizes()
    total, done = sum(sizes[one] for one in digests), 0
    blobs = target / "blobs" / "sha256"
    try:
        blobs.mkdir(parents=True)
        for digest in digests:
            _place(reader, digest, blobs / digest.removeprefix("sha256:"))
            done += sizes[digest]
            progress("images", done, total)
        write_atomically(target / "oci-layout", LAYOUT)
        write_atomically(target / "index.json", build_index(manifest.images, sizes))
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            # the system names no file if the disk is full
            error.filename = str(target)
        shutil.rmtree(target, ignore_errors=True)
        raise


def _place(reader: BlobReader, digest: str, target: Path) -> None:
    pieces = reader.pieces(digest)
    if len(pieces) == 1:
        try:
            os.link(pieces[0][0], target)
        # another file system, or one without links
        except OSError:
            shutil.copyfile(pieces[0][0], target)
        return
    with reader.open(digest) as source, open(target, "wb", buffering=0) as file:
        for chunk in read_chunks(source):
            write_all(file, chunk)
