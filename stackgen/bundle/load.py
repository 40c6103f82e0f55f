"""Loads a bundle: images into the Docker engine, weights into the store, the stack into a folder.

If a step fails, everything that was loaded is removed again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from stackgen import __version__
from stackgen.bundle.archive import load_size, write_archive
from stackgen.bundle.blob_reader import BlobReader
from stackgen.bundle.blobs import Progress
from stackgen.bundle.load_weights import Shipment, load_shipment, plan_shipments, store_folder
from stackgen.bundle.manifest import Image, Manifest
from stackgen.bundle.sources import same_platform
from stackgen.bundle.stack_copy import move_store
from stackgen.bundle.verify import open_bases, verify
from stackgen.errors import MachineError, StackgenError
from stackgen.render.read import STACK_FILES
from stackgen.render.templating import RenderedFile, render
from stackgen.render.write import Change, compare, write_atomically, write_files
from stackgen.resolve.hosts import resolve
from stackgen.runtimes.compose.image_archive import (
    EngineFacts,
    inspect_image,
    list_layer_chains,
    load_archive,
    read_engine,
    remove_tag,
    tag_image,
)  # fmt: skip
from stackgen.runtimes.compose.volume_files import has_volume
from stackgen.runtimes.compose.volumes import create_volumes, remove_shared_volume
from stackgen.stack.copies import is_copy, is_unedited, sign
from stackgen.stack.load import parse_stack
from stackgen.stack.yaml_text import read_value
from stackgen.targets.compose import COMPOSE_FILE, ComposeSite

__all__ = ["EVERYTHING", "LoadOptions", "Loaded", "load", "require_intact"]

EVERYTHING = ("images", "weights", "stack")
# bytes; files that a plan reads, such as adapter_config.json, are smaller
SKETCHED = 2**20


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a bundle. `storage` replaces the store of weights. `only`: images, weights, stack."""

    source: Path
    target: Path
    bases: tuple[Path, ...] = ()
    storage: Path | None = None
    only: tuple[str, ...] = EVERYTHING


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded: names of images and models, and the paths of the stack's files that were written."""

    images: tuple[str, ...]
    models: tuple[str, ...]
    files: tuple[str, ...]


def require_intact(source: Path, manifest: Manifest, bases: Sequence[Path], progress: Progress) -> BlobReader:
    """Verifies a bundle, and returns its reader. Raises StackgenError (exit code 1) with everything that is wrong."""
    opened = open_bases(manifest, bases)
    found = verify(source, manifest, opened, progress)
    if found.problems:
        lines = "".join(f"\n  {problem}" for problem in found.problems)
        error = StackgenError(f"{source} is not intact, and nothing was loaded:{lines}",
                              "copy these parts and files again, or create the bundle again")  # fmt: skip
        error.exit_code = 1
        raise error
    return BlobReader(source, manifest.blobs, [(place, one.blobs) for place, one in opened])


def load(options: LoadOptions, manifest: Manifest, progress: Progress) -> Loaded:
    """Loads a bundle whose manifest was read. Everything is verified before anything is changed.

    On an error, also Ctrl-C, what was loaded is removed again. Raises StackgenError for a damaged bundle, a folder with
    another stack, or a wrong version; MachineError for a wrong platform, a full disk, or an engine without an answer.
    """
    if manifest.stackgen != __version__ and "stack" in options.only:
        raise StackgenError(
            f"stackgen {manifest.stackgen} created this bundle, but this stackgen is {__version__} and needs other "
            "images",
            f"install the version in the bundle: `python3 {options.source}/install.py`",
        )
    in_volume = not store_folder(manifest, options.target, options.storage)
    needs_engine = "images" in options.only or ("weights" in options.only and in_volume)
    engine = read_engine() if needs_engine else None
    if engine and "images" in options.only and not same_platform(engine.platform, manifest.platform):
        name = manifest.images[0].name
        what = f"the image is for {manifest.platform}, but this Docker engine runs {engine.platform}"
        raise MachineError(f"image {name}: {what}",
                           f"create a bundle with --platform {engine.platform}")  # fmt: skip
    reader = require_intact(options.source, manifest, options.bases, progress)
    images = manifest.images if engine and "images" in options.only else ()
    present = _find_present(engine) if images else set()
    shipments = []
    if "weights" in options.only:
        shipments = plan_shipments(manifest, options.target, options.storage, engine)
    _require_blobs(manifest, images, present, shipments, reader)
    changes, copied = _plan_files(options, manifest, reader)
    sizes = manifest.sizes()
    _require_space(manifest, shipments, engine, load_size(images, sizes, present))
    with _undo_on_error() as undo:
        if images:
            _load_images(images, reader, sizes, present, progress, undo)
        if "weights" in options.only and in_volume:
            _create_volumes(manifest, reader, undo)
        for shipment in shipments:
            load_shipment(shipment, manifest.images[0].name if manifest.images else "", reader, sizes, progress)
        if "stack" in options.only:
            for path, data in copied:
                write_atomically(options.target / path, data, 0o644)
            write_files(changes, options.target)
    files = [one.path for one in changes if one.kind != "same"] if "stack" in options.only else []
    models = [model.name for model in manifest.models] if "weights" in options.only else []
    return Loaded(tuple(one.name for one in images), tuple(models), tuple(files))


@contextmanager
def _undo_on_error() -> Iterator[list[Callable[[], None]]]:
    """Yields a list of steps that take back what was done; they run, the last one first, if the block fails."""
    steps: list[Callable[[], None]] = []
    try:
        yield steps
    except BaseException:
        for step in reversed(steps):
            # the error of the block is the one to report
            with suppress(StackgenError, OSError):
                step()
        raise


def _find_present(engine: EngineFacts | None) -> set[tuple[str, ...]]:
    # containerd reads every layer of an archive, also those that it has
    return set() if engine is None or engine.uses_containerd else list_layer_chains()


def _require_blobs(manifest: Manifest, images: Sequence[Image], present: set[tuple[str, ...]],
                   shipments: Sequence[Shipment], reader: BlobReader) -> None:  # fmt: skip
    """Raises StackgenError if something is only in an earlier bundle whose folder was not given, and not here."""
    needed = [
        (f"image {image.name}", layer) for image in images for count, layer in enumerate(image.layers, 1)
        if image.diff_ids[:count] not in present
    ]  # fmt: skip
    needed += [(one.label, file.digest) for one in shipments for file in one.files if file.digest]
    if missing := next((what for what, digest in needed if not reader.has(digest)), None):
        raise StackgenError(
            f"the content of {missing} is in an earlier bundle, which is not on this machine",
            f"pass the earlier bundle with --base FOLDER: {', '.join(one.digest for one in manifest.bases)}",
        )


def _plan_files(
    options: LoadOptions, manifest: Manifest, reader: BlobReader
) -> tuple[list[Change], list[tuple[str, bytes]]]:
    """The changes to the stack's folder, and the files that are copied unchanged.

    Raises StackgenError if the folder has a stack that somebody has edited, or files that were edited by hand.
    """
    texts = {one.path: reader.read(one.digest) for one in manifest.stack_files}
    text = texts.pop(STACK_FILES[0]).decode()
    if options.storage:
        # the first line has the checksum of the others
        body = text.partition("\n")[2] if is_copy(text) else text
        text = sign(move_store(body, str(options.storage.absolute())))
    rendered = {one.path for one in manifest.stack_files if one.rendered}
    files = [
        RenderedFile(path, data.decode("utf-8", "surrogateescape")) for path, data in texts.items() if path in rendered
    ]
    if options.storage:
        with tempfile.TemporaryDirectory() as name:
            _sketch(
                Path(name), manifest, reader, [(path, data) for path, data in texts.items() if path not in rendered]
            )
            plan = resolve(parse_stack(text, STACK_FILES[0]), ComposeSite(Path(name), Path(name)), STACK_FILES[0])
            files = list(render(plan, STACK_FILES[0]))
    changes = compare([*files, RenderedFile(STACK_FILES[0], text)], options.target)
    changes = [replace(one, edited=not is_unedited(one.old)) if one.path in STACK_FILES and one.edited else one
               for one in changes]  # fmt: skip
    if "stack" in options.only and (edited := [one.path for one in changes if one.edited]):
        raise StackgenError(f"{options.target} has files that were edited by hand: {', '.join(edited)}",
                            "choose another folder with -o, or move these files away")  # fmt: skip
    return changes, [(path, data) for path, data in texts.items() if path not in rendered]


def _require_space(manifest: Manifest, shipments: Sequence[Shipment], engine: EngineFacts | None, archive: int) -> None:
    """Raises MachineError if something does not fit on its disk, with its name."""
    root = Path(engine.root) if engine and engine.root else None
    names = ", ".join(image.name for image in manifest.images)
    # Docker unpacks the archive into a temporary folder, and the layers from there (moby 28, image/tarexport)
    needs = [(f"images {names}", root, 2 * archive)] if archive else []
    needs += [(one.label, one.folder or root, one.size) for one in shipments]
    used: dict[int, int] = {}
    for what, place, size in needs:
        # the data of an engine on another machine
        if place is None or not size or (place == root and not place.is_dir()):
            continue
        existing = next(one for one in (place.absolute(), *place.absolute().parents) if one.exists())
        device, free = existing.stat().st_dev, shutil.disk_usage(existing).free
        used[device] = used.get(device, 0) + size
        if used[device] > free:
            raise MachineError(f"{what}: {used[device]} bytes are needed on the disk of {existing}, but only {free} "
                               "are free",
                               "free some space, and run the command again. Nothing was loaded")  # fmt: skip


def _load_images(images: Sequence[Image], reader: BlobReader, sizes: dict[str, int], present: set[tuple[str, ...]],
                 progress: Progress, undo: list[Callable[[], None]]) -> None:  # fmt: skip
    before = {image.name: inspect_image(image.name) for image in images}

    def restore() -> None:
        for name, image in before.items():
            if image is None:
                remove_tag(name)
            else:
                tag_image(image.id, name)

    undo.append(restore)
    total, done = load_size(images, sizes, present), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress("images", done, total)

    with load_archive() as stream:
        write_archive(stream, images, reader, sizes, present, count)
    for image in images:
        if inspect_image(image.name) is None:
            raise MachineError(f"the Docker engine loaded {image.name}, but does not list it", "run the command again")


def _create_volumes(manifest: Manifest, reader: BlobReader, undo: list[Callable[[], None]]) -> None:
    """Creates the volumes for weights and compile caches, which compose.yaml declares as external."""
    digest = next(one.digest for one in manifest.stack_files if one.path == COMPOSE_FILE)
    declared = (read_value(reader.read(digest).decode()) or {}).get("volumes") or {}
    names = [str(one["name"]) for one in declared.values() if one and one.get("external") is True]
    new = [name for name in dict.fromkeys([*names, manifest.store_volume]) if not has_volume(name)]
    undo.extend(lambda name=name: remove_shared_volume(name) for name in new)  # type: ignore[misc]
    create_volumes(new)


def _sketch(folder: Path, manifest: Manifest, reader: BlobReader, copied: Sequence[tuple[str, bytes]]) -> None:
    """Writes what a plan reads from disk: small files, and empty space with the size of large ones."""
    sizes = manifest.sizes()
    files = [file for model in manifest.models if model.place == "stack" for file in model.files if file.digest]
    for path, data in copied:
        write_atomically(folder / path, data)
    for file in files:
        if sizes[file.digest or ""] <= SKETCHED and reader.has(file.digest or ""):
            write_atomically(folder / file.path, reader.read(file.digest or ""))
        else:
            write_atomically(folder / file.path, b"")
            os.truncate(folder / file.path, sizes[file.digest or ""])
