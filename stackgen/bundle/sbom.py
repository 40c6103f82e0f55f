"""The list of all components of a bundle (SBOM), as CycloneDX 1.6 in JSON.

Specification: CycloneDX/specification 1.6, schema/bom-1.6.schema.json. A library would add seven packages for one
document (docs/decisions/bundle.md).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

from stackgen import __version__
from stackgen.bundle.blob_reader import BlobReader
from stackgen.bundle.blobs import Progress
from stackgen.bundle.manifest import Image, Model, Wheel
from stackgen.bundle.packages import Package, find_packages, parse_metadata, scan_layers
from stackgen.bundle.tar_headers import scan_tar
from stackgen.render.write import write_atomically
from stackgen.resources import cache_dir

__all__ = ["build_sbom", "list_licenses"]


def build_sbom(
    stack: str, created: str, images: Sequence[Image], models: Sequence[Model], wheels: Sequence[Wheel],
    reader: BlobReader, progress: Progress,
) -> bytes:  # fmt: skip
    """Returns the SBOM. The packages in images are read from their layers."""
    components = []
    for number, image in enumerate(images):
        progress("list of components", number, len(images))
        components.append(_image(image, reader))
    progress("list of components", len(images), len(images))
    components += [_model(model) for model in models]
    components += [_wheel(wheel, reader) for wheel in wheels]
    return json.dumps({
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "serialNumber": f"urn:uuid:{uuid5(NAMESPACE_URL, f'{stack} {created} {[i.digest for i in images]}')}",
        "metadata": {
            "timestamp": created,
            "tools": {"components": [{"type": "application", "name": "stackgen", "version": __version__}]},
            "component": {"type": "application", "name": stack, "bom-ref": f"stack:{stack}"},
        },
        "components": components,
    }, indent=1).encode()  # fmt: skip


def list_licenses(sbom: bytes) -> str:
    """Returns a table of all components with their licenses, one a line, for people."""
    lines: list[str] = []

    def walk(components: Iterable[dict[str, Any]], prefix: str) -> None:
        for one in components:
            names = [(entry["license"].get("name") or entry["license"].get("id")) for entry in one.get("licenses", ())]
            name = f"{prefix}{one['name']} {one.get('version', '')}".rstrip()
            lines.append(f"{name}: {', '.join(names) or 'not stated'}")
            walk(one.get("components", ()), f"{prefix}  ")

    walk(json.loads(sbom)["components"], "")
    return "\n".join(lines) + "\n"


def _image(image: Image, reader: BlobReader) -> dict[str, Any]:
    packages, has_unread = _list_packages(image, reader)
    name, _, tag = image.name.rpartition(":")
    unread = [{"name": "stackgen:not-listed", "value": "packages of RPM"}] if has_unread else []
    return {
        "type": "container", "bom-ref": f"image:{image.name}", "name": name, "version": tag,
        "purl": f"pkg:oci/{quote(name.rpartition('/')[2])}@{quote(image.digest, safe='')}?tag={quote(tag)}",
        "hashes": _hashes(image.digest),
        "components": [_package(one, f"image:{image.name}") for one in packages],
    } | ({"properties": unread} if unread else {})  # fmt: skip


def _list_packages(image: Image, reader: BlobReader) -> tuple[list[Package], bool]:
    """What `find_packages` finds. An image is scanned once: its digest, and the code, name a file in the cache."""
    folder = cache_dir("sbom")
    code = b"".join(Path(one.__code__.co_filename).read_bytes() for one in (find_packages, scan_tar))
    key = hashlib.sha256(f"{image.digest} {image.layers} ".encode() + code).hexdigest()
    path = Path(folder) / f"{key}.json" if folder else None
    with suppress(OSError, ValueError, KeyError, TypeError):
        if path:
            data = json.loads(path.read_bytes())
            found = [Package(name, version, url, tuple(names)) for name, version, url, names in data["packages"]]
            return found, bool(data["unread"])
    with ExitStack() as stack:
        layers = [stack.enter_context(reader.open(layer)) for layer in image.layers]
        packages, has_unread = find_packages(scan_layers(layers))
    with suppress(OSError):
        if path:
            rows = [[one.name, one.version, one.url, one.licenses] for one in packages]
            write_atomically(path, json.dumps({"packages": rows, "unread": has_unread}).encode())
    return packages, has_unread


def _model(model: Model) -> dict[str, Any]:
    # the Hub has no hash of a whole repository; each file has one
    files = [{"type": "file", "name": one.path, "hashes": _hashes(one.digest)} for one in model.files if one.digest]
    return {
        "type": "machine-learning-model", "bom-ref": f"model:{model.name}@{model.commit or model.revision}",
        "name": model.name, "version": model.commit or model.revision,
        **({"purl": f"pkg:huggingface/{model.name}@{model.commit}"} if model.commit else {}),
        **_licenses([model.license] if model.license else []), "components": files,
    }  # fmt: skip


def _wheel(wheel: Wheel, reader: BlobReader) -> dict[str, Any]:
    with reader.open(wheel.digest) as file, zipfile.ZipFile(file) as archive:
        path = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        package = parse_metadata(archive.read(path).decode("utf-8", "replace"))
    found = package or Package(wheel.name, "", "")
    return _package(found, f"wheel:{wheel.name}") | {"bom-ref": f"wheel:{wheel.name}", "hashes": _hashes(wheel.digest)}


def _package(package: Package, place: str) -> dict[str, Any]:
    return {
        "type": "library", "bom-ref": f"{place}#{package.url}", "name": package.name, "version": package.version,
        **({"purl": package.url} if package.url else {}), **_licenses(package.licenses),
    }  # fmt: skip


def _licenses(names: Sequence[str]) -> dict[str, Any]:
    # by name: what packages state is not always an id of SPDX
    return {"licenses": [{"license": {"name": name}} for name in names]} if names else {}


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]
