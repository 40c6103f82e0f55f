"""`bundle create`: the order of its steps. A run that was killed at any moment continues where it stopped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from stackgen import __version__
from stackgen.bundle.archive import LAYOUT, build_index, read_archive
from stackgen.bundle.blob_reader import BlobReader
from stackgen.bundle.blobs import JOURNAL, BlobWriter, Progress
from stackgen.bundle.manifest import (
    MANIFEST,
    SUMS,
    BaseBundle,
    Image,
    Manifest,
    Model,
    StackFile,
    manifest_digest,
    read_manifest,
)  # fmt: skip
from stackgen.bundle.sbom import build_sbom, list_licenses
from stackgen.bundle.sources import ensure_images, ensure_weights, name_by_tag
from stackgen.bundle.stack_copy import StackCopy, copy_stack
from stackgen.bundle.weights import collect_folder, collect_model, collect_vocabulary
from stackgen.bundle.wheels import collect_wheels, this_python
from stackgen.errors import MachineError, StackgenError
from stackgen.render.write import write_atomically
from stackgen.resources import templates_dir
from stackgen.runtimes.compose.image_archive import EngineFacts, LocalImage, read_engine, save_archive
from stackgen.stack.copies import sign
from stackgen.stack.folder import Stack

__all__ = ["CreateOptions", "Created", "create", "require_target"]

SMALLEST_PART = 2**20


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """How to create a bundle. `part_size`: bytes, 0: no parts. `platform` "": the engine's. `pythons` (): this one."""

    target: Path
    part_size: int = 0
    bases: tuple[Path, ...] = ()
    platform: str = ""
    pythons: tuple[str, ...] = ()
    wheels: bool = True


@dataclass(frozen=True, slots=True)
class Created:
    """A complete bundle: `digest` names all its content, `written` are the bytes of its blobs."""

    manifest: Manifest
    digest: str
    written: int
    parts: int


def create(stack: Stack, options: CreateOptions, prepare: Callable[[], None], progress: Progress) -> Created:
    """Writes the bundle of a stack into `options.target`. `prepare` writes the stack's rendered files, for a build.

    Raises StackgenError for a wrong option, a secret in stack.yaml, or weights that are missing; MachineError if Docker
    does not answer; OSError if the disk is full. What is complete stays for the next run.
    """
    require_target(options)
    tags = name_by_tag(stack.plan)
    with ThreadPoolExecutor(1) as pool:
        # the `docker` command takes as long as the rendering
        asked = pool.submit(read_engine)
        copy = copy_stack(stack, tags)
        engine = asked.result()
    platform = options.platform or engine.platform
    bases = [(folder, read_manifest(folder)) for folder in options.bases]
    known = {blob.digest: blob.size for _, manifest in bases for blob in manifest.blobs}
    options.target.mkdir(parents=True, exist_ok=True)
    writer = BlobWriter(options.target, options.part_size, known)
    # from now on, the folder is a bundle that is not complete
    writer.save()
    images = ensure_images(stack.plan, stack.folder, platform, tags, prepare, progress)
    try:
        reader = BlobReader(Path(), (), [(place, one.blobs) for place, one in bases])
        wanted = {service.image: images.found[service.image] for service in copy.plan.services}
        saved = _find_saved(wanted, reader, bases, writer)
        with _read_images(wanted, saved, engine, platform, writer, progress) as finish:
            first = next(iter(wanted))
            if images.moved:
                # the download needs the images as they were
                finish()
                images.restore()
            # meanwhile, the engine prepares the archive of the images
            models = _save_weights(stack, copy, first, prepare, writer, progress)
            finish()
    finally:
        images.restore()
    pythons = options.pythons or (this_python(),)
    wheels = collect_wheels(pythons, platform, writer, progress) if options.wheels else []
    files = [StackFile(path=path, digest=writer.add_bytes(_signed(path, data)), rendered=rendered)
             for path, data, rendered in copy.files]  # fmt: skip
    created = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    reader = BlobReader(options.target, list(writer.blobs.values()), [(place, one.blobs) for place, one in bases])
    ordered = [saved[name] for name in wanted]
    sbom = build_sbom(stack.plan.name, created, ordered, models, wheels, reader, progress)
    manifest = Manifest(
        stack=stack.plan.name, stackgen=__version__, created=created, platform=platform,
        bases=tuple(BaseBundle(digest=manifest_digest(place), created=one.created) for place, one in bases),
        images=tuple(ordered), models=tuple(models), stack_files=tuple(files), wheels=tuple(wheels),
        pythons=tuple(pythons) if wheels else (), sbom=writer.add_bytes(sbom), needed=tuple(copy.needed), blobs=(),
        store_volume="" if stack.spec.storage.path else stack.spec.storage.volume,
        store_path=stack.spec.storage.path or "",
    )  # fmt: skip
    return _finish(options, manifest, writer, sbom)


def require_target(options: CreateOptions) -> None:
    """Raises StackgenError if `options.target` is no folder for a new bundle, or the parts are too small."""
    target = options.target
    if 0 < options.part_size < SMALLEST_PART:
        raise StackgenError("the smallest --part-size is 1MiB", "for example --part-size 4GiB")
    if target.exists() and not target.is_dir():
        raise StackgenError(f"{target} is a file, but -o takes a folder", "choose a folder for the bundle")
    if (target / MANIFEST).exists() and not (target / JOURNAL).exists():
        raise StackgenError(f"{target} is already a complete bundle", "choose another folder, or remove this one")
    if target.is_dir() and any(target.iterdir()) and not (target / JOURNAL).exists():
        raise StackgenError(f"{target} is not empty, and is not a bundle", "choose another folder")


def _find_saved(wanted: dict[str, LocalImage], reader: BlobReader, bases: Sequence[tuple[Path, Manifest]],
                writer: BlobWriter) -> dict[str, Image]:  # fmt: skip
    """The images that earlier bundles, and earlier runs, have saved: they are not saved again."""
    earlier = [one for _, manifest in bases for one in manifest.images]
    done: dict[str, Image] = {}
    for name, local in wanted.items():
        noted = writer.notes.get(f"image:{name}:{local.id}")
        found = [Image.model_validate(noted)] if noted else [one for one in earlier if one.config == local.id]
        for image in found:
            small = (image.digest, image.config)
            # a list: each of the layers is noted
            if False in [writer.note_base(one) for one in image.layers]:
                continue
            if not noted and all(reader.has(one) for one in small):
                # an engine needs them even if it has all layers, so each bundle has its own
                noted = [writer.add_bytes(reader.read(one)) for one in small]
            if all(writer.has(one) for one in small):
                done[name] = image.model_copy(update={"name": name})
    return done


@contextmanager
def _read_images(wanted: dict[str, LocalImage], saved: dict[str, Image], engine: EngineFacts, platform: str,
                 writer: BlobWriter, progress: Progress) -> Iterator[Callable[[], None]]:  # fmt: skip
    """Lets the engine prepare the images that are not in `saved`. Yields a function that reads them, once."""
    left = {name: local for name, local in wanted.items() if name not in saved}
    if not left:
        yield lambda: None
        return
    progress("images (Docker prepares the archive)", 0, 0)
    # an engine with containerd's store may have an image for several platforms
    with save_archive(list(left), platform if engine.uses_containerd else "") as stream:

        def finish() -> None:
            if not left:
                return
            progress("images (Docker prepares the archive)", 0, 0)
            total, ids = sum(local.size for local in left.values()), {name: local.id for name, local in left.items()}
            for image in read_archive(stream, ids, writer, progress, total):
                saved[image.name] = image.model_copy(update={"sources": left[image.name].sources})
                writer.notes[f"image:{image.name}:{left[image.name].id}"] = saved[image.name].model_dump()
            left.clear()
            writer.save()

        yield finish


def _save_weights(stack: Stack, copy: StackCopy, image: str, prepare: Callable[[], None], writer: BlobWriter,
                  progress: Progress) -> list[Model]:  # fmt: skip
    store, requests, vocabularies = ensure_weights(stack.spec, stack.plan, stack.folder, image, prepare, progress)
    models = []
    if store is not None:
        models += [collect_model(store, request, writer, progress) for request in requests]
        models += [collect_vocabulary(store, name, writer) for name in vocabularies]
    return models + [collect_folder(one.source, one.name, one.place, writer, progress) for one in copy.local_models]


def _signed(path: str, data: bytes) -> bytes:
    # so that a later bundle can replace a stack.yaml that nobody has edited
    return sign(data.decode()).encode() if path == "stack.yaml" else data


def _finish(options: CreateOptions, draft: Manifest, writer: BlobWriter, sbom: bytes) -> Created:
    """Writes the files next to the blobs, the manifest last: its presence shows that the bundle is complete."""
    used = [digest for image in draft.images for digest in (image.digest, image.config, *image.layers)]
    used += [file.digest for model in draft.models for file in model.files if file.digest]
    used += [file.digest for file in draft.stack_files] + [wheel.digest for wheel in draft.wheels] + [draft.sbom or ""]
    writer.keep_only(used)
    blobs = sorted(writer.blobs.values(), key=lambda blob: blob.digest)
    manifest = draft.model_copy(update={"blobs": tuple(blobs)})
    data = manifest.model_dump_json(indent=1, exclude_defaults=False).encode()
    templates = templates_dir() / "bundle"
    texts = {"sbom.cdx.json": sbom, "LICENSES.txt": list_licenses(sbom).encode()}
    texts |= {path.name: path.read_bytes() for path in sorted(templates.iterdir()) if path.is_file()}
    is_whole = not options.part_size and not any(not blob.pieces for blob in blobs)
    if is_whole:
        # all blobs are in one place, so the folder is an OCI image layout as it is
        texts |= {"oci-layout": LAYOUT, "index.json": build_index(manifest.images, manifest.sizes())}
    pieces = [piece for blob in blobs for piece in blob.pieces]
    sums = [f"{hashlib.sha256(text).hexdigest()}  {name}" for name, text in (texts | {MANIFEST: data}).items()]
    sums += [f"{piece.digest.removeprefix('sha256:')}  {piece.path}" for piece in pieces]
    for name, text in (texts | {SUMS: ("\n".join(sums) + "\n").encode(), MANIFEST: data}).items():
        write_atomically(options.target / name, text)
    writer.finish()
    _sync(options.target)
    parts = {piece.path.split("/")[0] for piece in pieces} if options.part_size else set()
    return Created(manifest, manifest_digest(options.target), sum(piece.size for piece in pieces), len(parts))


def _sync(folder: Path) -> None:
    """Flushes the file system, so that a medium can be removed once the command has ended."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise MachineError(f"{folder} can't be flushed: {error.strerror}", "check the disk or USB drive") from None
    finally:
        os.close(handle)
