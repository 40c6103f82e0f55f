"""Compares two bundles: images, weights, files of the stack and packages, and the bytes that the new one adds."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from stackgen.bundle.blob_reader import BlobReader
from stackgen.bundle.manifest import Manifest

__all__ = ["Difference", "compare_bundles"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A component that differs. `old` or `new` is "" if a bundle does not have it. `diff`: lines, for texts."""

    kind: str
    name: str
    old: str
    new: str
    diff: tuple[str, ...] = ()


def compare_bundles(old_folder: Path, old: Manifest, new_folder: Path, new: Manifest) -> tuple[list[Difference], int]:
    """Returns the differences, and the bytes of the content that only the new bundle has."""
    before, after = _components(old), _components(new)
    readers = (BlobReader(old_folder, old.blobs), BlobReader(new_folder, new.blobs))
    found = []
    for key in sorted(before.keys() | after.keys()):
        one, two = before.get(key, ("", "")), after.get(key, ("", ""))
        if one != two:
            lines = _diff(readers, key[1], one[1], two[1]) if key[0] == "file" else ()
            found.append(Difference(key[0], key[1], one[0], two[0], lines))
    known = old.sizes()
    return found, sum(size for digest, size in new.sizes().items() if digest not in known)


def _components(manifest: Manifest) -> dict[tuple[str, str], tuple[str, str]]:
    """(kind, name) -> (what people read, digest)."""
    found = {("stackgen", "version"): (manifest.stackgen, ""), ("platform", "of images"): (manifest.platform, "")}
    found |= {("image", one.name): (one.digest[7:19], one.digest) for one in manifest.images}
    for model in manifest.models:
        content = "".join(sorted(f"{file.path}{file.digest}" for file in model.files if file.digest))
        found["weights", model.name] = (model.commit[:12] or f"{len(model.files)} files", content)
    found |= {("file", one.path): (one.digest[7:19], one.digest) for one in manifest.stack_files}
    for wheel in manifest.wheels:
        name, version = wheel.name.split("-")[:2]
        # a package has a wheel for each Python
        known = found.get(("package", name), ("", ""))[1]
        found["package", name] = (version, known + wheel.digest)
    return found


def _diff(readers: tuple[BlobReader, BlobReader], path: str, old: str, new: str) -> tuple[str, ...]:
    """The lines of a unified diff; none if an earlier bundle has the content."""
    texts = []
    for reader, digest in zip(readers, (old, new), strict=True):
        if digest and not reader.has(digest):
            return ()
        texts.append(reader.read(digest).decode("utf-8", "replace").splitlines() if digest else [])
    return tuple(unified_diff(texts[0], texts[1], f"old/{path}", f"new/{path}", lineterm=""))
