"""Loads the weights of a bundle: finds what the store already has, and writes the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stackgen.bundle.blob_reader import BlobReader
from stackgen.bundle.blobs import Progress
from stackgen.bundle.manifest import Manifest, Model, StoreFile
from stackgen.bundle.store import FolderStore, Store, open_volume
from stackgen.runtimes.compose.image_archive import EngineFacts, inspect_image
from stackgen.runtimes.compose.volume_files import has_volume

__all__ = ["Shipment", "load_shipment", "plan_shipments", "store_folder"]


@dataclass(frozen=True, slots=True)
class Shipment:
    """The files that one store lacks. `folder` is None for the volume `volume`. `size`: bytes of `files`."""

    label: str
    folder: Path | None
    volume: str
    files: tuple[StoreFile, ...]
    size: int


def store_folder(manifest: Manifest, target: Path, storage: Path | None) -> Path | None:
    """The folder of the store of weights on this machine; None if it is a volume."""
    if storage:
        return storage
    # a relative path in a stack file is relative to the stack's folder
    return target / os.path.expanduser(manifest.store_path) if manifest.store_path else None


def plan_shipments(
    manifest: Manifest, target: Path, storage: Path | None, engine: EngineFacts | None
) -> list[Shipment]:
    """Compares the weights with those that are there. `engine` is needed for a volume."""
    folder = store_folder(manifest, target, storage)
    stored = [model for model in manifest.models if model.place == "store"]
    local = [model for model in manifest.models if model.place == "stack"]
    found = []
    if stored:
        store = FolderStore(folder) if folder else _find_volume(manifest) if engine else None
        found.append(_compare(stored, store, folder, manifest))
    if local:
        found.append(_compare(local, FolderStore(target), target, manifest))
    return found


def load_shipment(
    shipment: Shipment, image: str, reader: BlobReader, sizes: dict[str, int], progress: Progress
) -> None:
    """Writes the files of one store, all or none. `image`: see `open_volume`. Raises OSError or StackgenError."""
    if not shipment.files:
        return
    store = FolderStore(shipment.folder) if shipment.folder else open_volume(shipment.volume, image)
    store.load(shipment.files, reader, sizes, _counter(shipment, progress))


def _counter(shipment: Shipment, progress: Progress) -> Callable[[int], None]:
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress(shipment.label, done, shipment.size)

    return count


def _find_volume(manifest: Manifest) -> Store | None:
    """The volume of the weights, if it exists and can be read with an image that is here."""
    if not has_volume(manifest.store_volume):
        return None
    # root reads the volume without an image; the first load has no image yet
    image = next((one.name for one in manifest.images if inspect_image(one.name)), "")
    return open_volume(manifest.store_volume, image) if image or os.geteuid() == 0 else None


def _compare(models: Sequence[Model], store: Store | None, folder: Path | None, manifest: Manifest) -> Shipment:
    files = list({file.path: file for model in models for file in model.files}.values())
    present = store.find_present(files) if store else set()
    left = tuple(file for file in files if file.path not in present)
    sizes = manifest.sizes()
    label = "weights of " + ", ".join(model.name for model in models)
    return Shipment(label, folder, manifest.store_volume, left, sum(sizes[one.digest] for one in left if one.digest))
