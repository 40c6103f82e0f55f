"""Verifies a bundle: every file is there and has the digest that the manifest names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stackgen.bundle.blob_reader import BlobReader
from stackgen.bundle.blobs import Progress
from stackgen.bundle.chunks import read_chunks
from stackgen.bundle.hasher import Hasher
from stackgen.bundle.manifest import MANIFEST, SUMS, Blob, Manifest, manifest_digest, read_manifest
from stackgen.errors import StackgenError

__all__ = ["Problem", "Verified", "open_bases", "verify"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A part or file of a bundle that is missing or damaged, and what of the stack it contains."""

    path: str
    message: str
    content: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f" ({self.content})" if self.content else "")


@dataclass(frozen=True, slots=True)
class Verified:
    """The result: what is wrong, and what was not looked at (blobs of earlier bundles that were not given)."""

    problems: tuple[Problem, ...]
    files: int
    size: int
    elsewhere: tuple[Blob, ...]


def open_bases(manifest: Manifest, folders: Sequence[Path]) -> list[tuple[Path, Manifest]]:
    """Returns the earlier bundles in `folders`. Raises StackgenError for a bundle that this one is not based on."""
    found = []
    for folder in folders:
        known, digest = [one.digest for one in manifest.bases], manifest_digest_of(folder)
        if digest not in known:
            raise StackgenError(
                f"this bundle is not based on {folder}, whose manifest is {digest}",
                f"the earlier bundles are {', '.join(known)}"
                if known
                else "run the command without --base: this bundle needs no earlier bundle",
            )
        found.append((folder, read_manifest(folder)))
    return found


def manifest_digest_of(folder: Path) -> str:
    """The digest of the bundle in `folder`. Raises StackgenError if it is no bundle."""
    # reports a folder that is no bundle
    read_manifest(folder)
    return manifest_digest(folder)


def verify(folder: Path, manifest: Manifest, bases: Sequence[tuple[Path, Manifest]], progress: Progress) -> Verified:
    """Reads every file of a bundle, and of the earlier bundles as far as this one needs them."""
    reader = BlobReader(folder, manifest.blobs, [(place, one.blobs) for place, one in bases])
    contents = _describe_contents(manifest)
    here = [blob for blob in manifest.blobs if reader.has(blob.digest)]
    elsewhere = tuple(blob for blob in manifest.blobs if not reader.has(blob.digest))
    pieces = [(path, piece, blob.digest) for blob in here for path, piece in reader.pieces(blob.digest)]
    total, done = sum(piece.size for _, piece, _ in pieces), 0
    problems = [*_check_small_files(folder)]
    missing = {path: _missing_part(path, folder) for path, _, _ in pieces if not path.is_file()}
    for part in sorted({part for part in missing.values() if part}):
        count = sum(one == part for one in missing.values())
        problems.append(Problem(part, f"this part of the bundle is missing ({count} files)"))
    for path, piece, digest in pieces:
        name = piece.path if path.is_relative_to(folder) else str(path)
        if path in missing:
            if not missing[path]:
                problems.append(Problem(name, "missing", contents.get(digest, "")))
            continue
        problem = _check(path, piece.size, piece.digest)
        done += piece.size
        progress("verifying", done, total)
        if problem:
            problems.append(Problem(name, problem, contents.get(digest, "")))
    return Verified(tuple(problems), len(pieces), total, elsewhere)


def _missing_part(path: Path, folder: Path) -> str:
    """The name of the part that is missing as a whole; "" if only files of it are missing, or there are no parts."""
    for parent in path.parents:
        if re.fullmatch(r"part-\d+", parent.name):
            if parent.exists():
                return ""
            return parent.name if parent.parent == folder else str(parent)
    return ""


def _check(path: Path, size: int, digest: str) -> str:
    """What is wrong with a file, "" if nothing is."""
    try:
        if (found := path.stat().st_size) != size:
            return f"damaged: it has {found} bytes instead of {size}"
        total = Hasher()
        with open(path, "rb", buffering=0) as file:
            for chunk in read_chunks(file):
                total.update(chunk)
    except OSError as error:
        # a failing medium is the usual reason to verify
        return f"can't be read: {error.strerror}"
    return "" if f"sha256:{total.hexdigest()}" == digest else "damaged: its content has changed"


def _check_small_files(folder: Path) -> Iterator[Problem]:
    """Compares the files next to the blobs with SHA256SUMS, which `sha256sum -c` also reads."""
    try:
        lines = (folder / SUMS).read_text("utf-8", "replace").splitlines()
    except OSError as error:
        yield Problem(SUMS, f"can't be read: {error.strerror}")
        return
    sums = {line[66:]: line[:64] for line in lines if re.match(r"[0-9a-f]{64}  ", line)}
    if MANIFEST not in sums:
        yield Problem(SUMS, f"damaged: it does not list {MANIFEST}")
    for name, digest in sums.items():
        # the blobs are compared with the manifest, which names their digests, too
        if "/" not in name:
            path = folder / name
            size = path.stat().st_size if path.is_file() else -1
            if problem := "missing" if size < 0 else _check(path, size, f"sha256:{digest}"):
                yield Problem(name, problem)


def _describe_contents(manifest: Manifest) -> dict[str, str]:
    """What each blob is, in the words of the stack."""
    found: dict[str, str] = {}
    for image in manifest.images:
        for digest in (image.digest, image.config, *image.layers):
            found.setdefault(digest, f"image {image.name}")
    for model in manifest.models:
        for file in model.files:
            if file.digest:
                found.setdefault(file.digest, f"weights of {model.name}")
    found |= {one.digest: f"file {one.path} of the stack" for one in manifest.stack_files}
    return found | {one.digest: f"package {one.name}" for one in manifest.wheels}
