"""The manifest of a bundle: what is in it, with the digest and the size of everything.

`docs/reference/bundle.schema.json` is the JSON Schema of `manifest.json`, generated from these classes.
Sizes are bytes, digests have the form `sha256:HEX`, and paths are relative with `/` between their parts.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from stackgen.errors import StackgenError
from stackgen.render.read import read_regular

__all__ = [
    "MANIFEST", "SCHEMA", "SUMS", "BaseBundle", "Blob", "Image", "Manifest", "Model", "Piece", "StackFile", "StoreFile",
    "Wheel", "bundle_schema", "manifest_digest", "read_manifest",
]  # fmt: skip

MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
SCHEMA = "stackgen.bundle/1"
# far above every real manifest: a model has some hundred files
MAX_BYTES = 64 * 2**20


def _relative(path: str) -> str:
    # a manifest from elsewhere must not write outside of the folders that it is loaded into
    parts = path.split("/")
    if not path or path.startswith("/") or {"", ".", ".."} & set(parts) or "\\" in path or not path.isprintable():
        raise ValueError(f"{path!r} is not a relative path without `..`")
    return path


Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
RelativePath = Annotated[str, AfterValidator(_relative)]
Size = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    # forbid: an unknown field may change what a bundle means
    model_config = ConfigDict(frozen=True, extra="forbid")


class Piece(_Part):
    """A file of the bundle that contains a blob, or a piece of a blob that two parts share."""

    path: RelativePath = Field(description="File in the bundle's folder")
    size: Size = Field(description="Size of the file")
    digest: Digest = Field(description="Digest of the file")


class Blob(_Part):
    """Content, named by its digest. Without `pieces`, the content is in an earlier bundle."""

    digest: Digest = Field(description="Digest of the whole content")
    size: Size = Field(description="Size of the whole content")
    pieces: tuple[Piece, ...] = Field(
        (), description="Files that contain the blob, in this order; empty if only an earlier bundle (`bases`) has it"
    )


class Image(_Part):
    """An image, as an OCI manifest in this layout."""

    name: str = Field(min_length=1, max_length=512, pattern=r"^[^\s@]+:[^\s@:/]+$", description="Name with its tag")
    digest: Digest = Field(description="Digest of the OCI manifest")
    config: Digest = Field(description="Digest of the configuration")
    layers: tuple[Digest, ...] = Field(description="Digests of the layers as they are in the bundle, from the bottom")
    diff_ids: tuple[Digest, ...] = Field(description="Digests of the layers without compression, from the bottom")
    manifest_type: str = Field(description="Media type of the OCI manifest")
    sources: tuple[str, ...] = Field(
        (), description="Names of the image, with the digest, in the registries that it came from"
    )


class StoreFile(_Part):
    """A file or a link in the store of weights."""

    path: RelativePath = Field(description="Path in the store, or in the stack's folder for a local model")
    digest: Digest | None = Field(None, description="Content of a file; null for a link")
    link: str | None = Field(None, description="Target of a symbolic link, relative to the folder of the link")


class Model(_Part):
    """The weights of one model: a repository of the Hub at a commit, or a local folder."""

    name: str = Field(description="Repository on the Hub, or the name of the folder")
    revision: str = Field("", description="Branch, tag or commit that the stack asks for")
    commit: str = Field("", description="Commit of the repository")
    license: str = Field("", description="License that the model's README states; empty if it states none")
    place: Literal["store", "stack"] = Field(
        "store", description="`store`: paths are in the store of weights. `stack`: paths are in the stack's folder"
    )
    files: tuple[StoreFile, ...] = Field(description="All files and links, in the order in which they are written")


class StackFile(_Part):
    """A file of the stack's folder."""

    path: RelativePath = Field(description="Path in the stack's folder")
    digest: Digest = Field(description="Content of the file")
    rendered: bool = Field(True, description="Whether `stackgen render` writes this file")


class Wheel(_Part):
    """A Python wheel: stackgen, or a package that it needs."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.+!-]+\.whl$", description="File name, which pip needs")
    digest: Digest = Field(description="Content of the file")


class BaseBundle(_Part):
    """An earlier bundle that a differential bundle needs."""

    digest: Digest = Field(description="Digest of the manifest.json of the earlier bundle")
    created: str = Field(description="When the earlier bundle was created")


class Manifest(_Part):
    """What a bundle contains."""

    format: Literal["stackgen.bundle/1"] = Field("stackgen.bundle/1", description="Version of this format")
    stack: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Name of the stack")
    stackgen: str = Field(
        description="Version of stackgen that created the bundle. The same version is needed to load it"
    )
    created: str = Field(description="When the bundle was created, in UTC (RFC 3339)")
    platform: str = Field(
        pattern=r"^linux/[a-z0-9]+(/[a-z0-9]+)?$", description="Platform of all images, for example linux/amd64"
    )
    bases: tuple[BaseBundle, ...] = Field(
        (), description="Earlier bundles. They contain the blobs for which this bundle has no pieces"
    )
    images: tuple[Image, ...] = Field(description="Images of the stack's services")
    models: tuple[Model, ...] = Field(description="Weights")
    store_volume: str = Field("", description="Docker volume that is the store of weights; empty if it is a folder")
    store_path: str = Field("", description="Folder that is the store of weights; empty if it is a volume")
    stack_files: tuple[StackFile, ...] = Field(description="Files of the stack's folder")
    wheels: tuple[Wheel, ...] = Field((), description="stackgen and the packages that it needs")
    pythons: tuple[str, ...] = Field((), description="Versions of Python that the wheels are for")
    sbom: Digest | None = Field(None, description="List of all components, as CycloneDX 1.6 in JSON")
    needed: tuple[str, ...] = Field((), description="What the stack needs and no bundle contains, one sentence each")
    blobs: tuple[Blob, ...] = Field(description="All content")

    def sizes(self) -> dict[str, int]:
        """The size of each blob, by digest."""
        return {blob.digest: blob.size for blob in self.blobs}


def bundle_schema() -> dict[str, Any]:
    """The JSON Schema of manifest.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}


def manifest_digest(folder: Path) -> str:
    """The digest of a bundle: that of its manifest, which names all its content. Raises OSError."""
    return "sha256:" + hashlib.sha256(read_regular(folder / MANIFEST, MAX_BYTES)).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of the bundle in `folder`.

    Raises StackgenError if the folder is no bundle, is not complete, or has a format that this version does not know.
    """
    path = folder / MANIFEST
    try:
        data = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        unfinished = (folder / ".create.json").exists()
        raise StackgenError(
            f"{folder} is not {'a complete' if unfinished else 'a'} bundle: it has no {MANIFEST}",
            "run the same `stackgen bundle create` again: it continues where it stopped" if unfinished else
            "pass the folder that `stackgen bundle create` wrote",
        ) from None  # fmt: skip
    except OSError as error:
        raise StackgenError(
            f"{path} can't be read: {error.strerror}", "check the disk or USB drive, and copy the bundle again"
        ) from None
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its text"
        known = re.search(rb'"format"\s*:\s*"(stackgen\.bundle/\d+)"', data)
        if known and known[1].decode() != SCHEMA:
            raise StackgenError(
                f"{path} has the format {known[1].decode()}, but this stackgen reads {SCHEMA}",
                f"install the stackgen in the bundle: `python3 {folder}/install.py`",
            ) from None
        raise StackgenError(f"{path} is damaged: {place}: {first['msg']}", "copy the file again") from None
    _require_consistent(manifest, path)
    return manifest


def _require_consistent(manifest: Manifest, path: Path) -> None:
    """Raises StackgenError if content is named that the list of blobs does not have."""
    known = manifest.sizes()
    used = [digest for image in manifest.images for digest in (image.digest, image.config, *image.layers)]
    used += [file.digest for model in manifest.models for file in model.files if file.digest]
    used += [file.digest for file in manifest.stack_files] + [wheel.digest for wheel in manifest.wheels]
    used += [manifest.sbom] if manifest.sbom else []
    if missing := next((one for one in used if one not in known), None):
        raise StackgenError(f"{path} is damaged: it does not list the blob {missing}", "copy the file again")
    for blob in manifest.blobs:
        if blob.pieces and sum(piece.size for piece in blob.pieces) != blob.size:
            raise StackgenError(
                f"{path} is damaged: the pieces of {blob.digest} have the wrong size", "copy the bundle again"
            )
        if not blob.pieces and not manifest.bases:
            raise StackgenError(f"{path} is damaged: no file contains the blob {blob.digest}", "copy the file again")
    for model in manifest.models:
        for file in model.files:
            if (file.digest is None) == (file.link is None):
                raise StackgenError(
                    f"{path} is damaged: {file.path} must be either a file or a link", "copy the bundle again"
                )
            if file.link is not None and not _stays_inside(file.path, file.link):
                raise StackgenError(
                    f"{path} is refused, because the link {file.path} leads out of the store",
                    "don't load this bundle, and ask who created it",
                )


def _stays_inside(path: str, link: str) -> bool:
    depth = path.count("/")
    # counted part by part: `a/../../..` leaves the store in between
    for part in link.split("/"):
        depth += -1 if part == ".." else 0 if part in ("", ".") else 1
        if depth < 0:
            return False
    return not link.startswith("/")
