"""Images between the engine's archives and the OCI image layout of a bundle.

Formats: opencontainers/image-spec 1.1 (image-layout.md, manifest.md), and the `manifest.json` that Docker's image store
reads (moby 28, image/tarexport/tarexport.go).
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import IO, Any

from stackgen.bundle.blob_reader import BlobReader
from stackgen.bundle.blobs import BlobWriter, Progress
from stackgen.bundle.manifest import Image
from stackgen.bundle.tar_headers import stream_tar
from stackgen.errors import MachineError, StackgenError

__all__ = ["LAYOUT", "build_index", "load_size", "read_archive", "write_archive"]

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
# the JSON files of an archive; a manifest of an image is smaller than 1 MB
SMALL = 4 * 2**20


def read_archive(
    stream: IO[bytes], names: Mapping[str, str], writer: BlobWriter, progress: Progress, total: int
) -> list[Image]:
    """Copies an archive of `docker save` into a bundle. `names` maps the images' names to their ids.

    Raises StackgenError if the archive lacks an image, and MachineError if the engine writes an older format.
    """
    small: dict[str, bytes] = {}
    written: list[str] = []
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress("images", done, max(total, done))

    for name, size, content in stream_tar(stream):
        data = b"".join(map(bytes, content)) if size < SMALL else None
        if data is not None:
            small[name] = data
        found = BLOB.fullmatch(name)
        if not found:
            continue
        digest = f"sha256:{found[1]}"
        if data is None and (writer.has(digest) or writer.note_base(digest)):
            count(size)
            continue
        # configurations are small, and an engine needs them even if it has all layers
        own = data is not None
        chunks: Iterable[bytes | memoryview] = content if data is None else [data]
        if writer.add(chunks, size, f"oci:{digest}", count, own=own) != digest:
            writer.drop(writer.known(f"oci:{digest}") or digest)
            raise StackgenError(f"`docker save` wrote content that does not match {digest}", "run the command again")
        written.append(digest)
    images = _find_images(small, names)
    used = {one for image in images for one in (image.digest, image.config, *image.layers)}
    # configurations for older Docker versions, and the index of the archive
    for digest in set(written) - used:
        writer.drop(digest)
    return images


def _find_images(small: Mapping[str, bytes], names: Mapping[str, str]) -> list[Image]:
    try:
        rows, index = json.loads(small["manifest.json"]), json.loads(small["index.json"])
    except KeyError:
        raise MachineError(
            "this Docker engine writes archives in an old format", "update to Docker Engine 25 or newer"
        ) from None
    found = {}
    for digest, media_type, manifest in _walk(index, small):
        config = manifest["config"]["digest"]
        row = next((row for row in rows if row["Config"].rpartition("/")[2] == config.removeprefix("sha256:")), None)
        if row is None:
            continue
        diff_ids = json.loads(small[f"blobs/sha256/{config[7:]}"])["rootfs"]["diff_ids"]
        layers = tuple(layer["digest"] for layer in manifest["layers"])
        for name in names:
            if name in (row.get("RepoTags") or ()) or names[name] in (config, digest):
                found[name] = Image(name=name, digest=digest, config=config, layers=layers, diff_ids=diff_ids,
                                    manifest_type=media_type)  # fmt: skip
    if missing := [name for name in names if name not in found]:
        raise StackgenError(f"`docker save` did not write {missing[0]}", "run the command again")
    return [found[name] for name in names]


def _walk(index: Any, small: Mapping[str, bytes]) -> list[tuple[str, str, Any]]:
    """(digest, media type, manifest) of all manifests that the index leads to, also through other indexes."""
    found = []
    for entry in index.get("manifests", ()):
        data = small.get(f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}")
        # of another platform, which was not saved
        if data is None:
            continue
        inner = json.loads(data)
        if "manifests" in inner:
            found += _walk(inner, small)
        elif "config" in inner:
            found.append((entry["digest"], entry["mediaType"], inner))
    return found


def build_index(images: Sequence[Image], sizes: Mapping[str, int]) -> bytes:
    """The `index.json` of an OCI image layout with these images, under their full names.

    skopeo finds them as `oci:FOLDER:NAME`, and containerd by its own annotation.
    """
    manifests = [
        {
            "mediaType": image.manifest_type,
            "digest": image.digest,
            "size": sizes[image.digest],
            "annotations": {
                "org.opencontainers.image.ref.name": image.name,
                "io.containerd.image.name": _full_name(image.name),
            },
        }
        for image in images
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}, indent=2).encode()


def _full_name(name: str) -> str:
    """The name with its registry, as containerd stores it (distribution/reference: normalize.go)."""
    first, slash, _ = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def load_size(images: Sequence[Image], sizes: Mapping[str, int], present: Collection[tuple[str, ...]]) -> int:
    """Bytes that `write_archive` writes for these images."""
    return sum(sizes[digest] for digest in _needed(images, present))


def write_archive(
    stream: IO[bytes], images: Sequence[Image], reader: BlobReader, sizes: Mapping[str, int],
    present: Collection[tuple[str, ...]], on_bytes: Callable[[int], None],
) -> None:  # fmt: skip
    """Writes an archive for `docker load`, without the layers that the engine has already.

    `present` are chains of uncompressed layers. Docker's own store opens only the files of layers that it lacks
    (moby 28, image/tarexport/load.go); for a store of containerd, `present` must be empty.
    """
    rows = [
        {
            "Config": f"blobs/sha256/{image.config[7:]}",
            "RepoTags": [image.name],
            "Layers": [f"blobs/sha256/{layer[7:]}" for layer in image.layers],
        }
        for image in images
    ]
    with tarfile.open(fileobj=stream, mode="w|", bufsize=2**20) as archive:
        # 16 KB by default
        archive.copybufsize = 2**20  # type: ignore[attr-defined]
        for name, data in (
            ("oci-layout", LAYOUT),
            ("index.json", build_index(images, sizes)),
            ("manifest.json", json.dumps(rows).encode()),
        ):
            archive.addfile(_entry(name, len(data)), io.BytesIO(data))
        for digest in _needed(images, present):
            with reader.open(digest) as file:
                archive.addfile(_entry(f"blobs/sha256/{digest[7:]}", sizes[digest]), _Counted(file, on_bytes))


def _needed(images: Sequence[Image], present: Collection[tuple[str, ...]]) -> list[str]:
    found: dict[str, None] = {}
    for image in images:
        found |= dict.fromkeys((image.digest, image.config))
        for count, layer in enumerate(image.layers, 1):
            if image.diff_ids[:count] not in present:
                found[layer] = None
    return list(found)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry


class _Counted:
    """A file whose reads are counted. Reads are never short, which tarfile relies on."""

    def __init__(self, file: io.RawIOBase, on_bytes: Callable[[int], None]) -> None:
        # a buffer joins the short reads at the end of a piece
        self._file, self._on_bytes = io.BufferedReader(file, 2**20), on_bytes

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._on_bytes(len(data))
        return data
