"""What `create` would put into a bundle, and what it would pull, build or download first. Changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stackgen import engines
from stackgen.bundle.blobs import JOURNAL
from stackgen.bundle.create import CreateOptions, require_target
from stackgen.bundle.manifest import Manifest, read_manifest
from stackgen.bundle.sources import find_builder, is_missing_vocabulary, name_by_tag, open_store, same_platform
from stackgen.bundle.stack_copy import copy_stack
from stackgen.bundle.store import Store
from stackgen.bundle.weights import Request, find_marker, parse_requests
from stackgen.bundle.wheels import this_python
from stackgen.catalog.sizes import guess_weight_bytes
from stackgen.doctor.capacity import guess_image_bytes
from stackgen.doctor.collect import lora_sources
from stackgen.errors import MachineError
from stackgen.runtimes.compose.image_archive import inspect_image, read_engine
from stackgen.stack.folder import Stack

__all__ = ["Preview", "PreviewItem", "preview"]

State = Literal["here", "base", "pull", "build", "download", "forbidden"]
LookUp = Callable[[Request], int | None]


@dataclass(frozen=True, slots=True)
class PreviewItem:
    """One thing in the bundle.

    `size`: bytes, None if unknown. `exact`: whether the size was read and not guessed. `state`: `here`, in an earlier
    bundle (`base`), or how `create` gets it; `forbidden`: storage.offline forbids the download.
    """

    kind: Literal["image", "weights", "packages"]
    name: str
    size: int | None
    state: State
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Preview:
    """The content of a bundle. `parts`: their number, 0 without parts; it is a minimum if some sizes are unknown."""

    platform: str
    items: tuple[PreviewItem, ...]
    needed: tuple[str, ...]
    parts: int = 0
    continues: bool = False

    @property
    def size(self) -> int:
        """The bytes of known size that would be written."""
        return sum(one.size or 0 for one in self.items if one.state != "base")

    @property
    def unknown(self) -> tuple[str, ...]:
        """What has no known size."""
        return tuple(one.name for one in self.items if one.size is None and one.state != "base")


def preview(stack: Stack, options: CreateOptions, look_up: LookUp) -> Preview:
    """Returns what `create` would do. `look_up` returns the bytes of a model on the Hub, None if they are unknown.

    Raises the errors that `create` would raise for the options and the stack.
    """
    require_target(options)
    copy = copy_stack(stack, name_by_tag(stack.plan))
    platform = options.platform or read_engine().platform
    bases = [read_manifest(folder) for folder in options.bases]
    images = list(_find_images(stack, platform, bases))
    present = next((one.name for one in images if one.state in ("here", "base")), "")
    weights = _find_weights(stack, present, bases, look_up)
    local = [PreviewItem("weights", one.name, _measure(one.source), "here") for one in copy.local_models]
    pythons = options.pythons or (this_python(),)
    packages = [PreviewItem("packages", f"Python packages for {', '.join(pythons)}", None, "download")]
    found = Preview(platform, (*images, *weights, *local, *(packages if options.wheels else ())), tuple(copy.needed),
                    continues=(options.target / JOURNAL).exists())  # fmt: skip
    parts = max(1, math.ceil(found.size / options.part_size)) if options.part_size else 0
    return Preview(found.platform, found.items, found.needed, parts, found.continues)


def _find_images(stack: Stack, platform: str, bases: Sequence[Manifest]) -> Iterator[PreviewItem]:
    known = {one.config for manifest in bases for one in manifest.images}
    # the stack in the bundle downloads nothing
    services = {one.image: one for one in stack.plan.services if one.role != "download"}
    for name, service in services.items():
        image, is_built = inspect_image(name), find_builder(stack.plan, service) is not None
        if image and same_platform(image.platform, platform):
            yield PreviewItem("image", name, image.size, "base" if image.id in known else "here")
            continue
        if image and is_built:
            raise MachineError(f"{name} is built on the machine that creates the bundle, so it is for "
                               f"{image.platform}",
                               f"create the bundle on a machine with {platform}")  # fmt: skip
        # another platform's image has about the same size
        size = image.size if image else guess_image_bytes(name)
        yield PreviewItem("image", name, size, "build" if is_built else "pull", exact=False)


def _find_weights(stack: Stack, image: str, bases: Sequence[Manifest], look_up: LookUp) -> list[PreviewItem]:
    arguments = [word for model in stack.spec.models for word in engines.get(model.engine).download_arguments(model)]
    requests, vocabularies = parse_requests(arguments)
    # a volume that only root can open is read through an image
    store = open_store(stack.spec, stack.folder, image) if image or stack.spec.storage.path else None
    known = {(one.name, one.commit) for manifest in bases for one in manifest.models}
    state: State = "forbidden" if stack.spec.storage.offline else "download"
    found, missing = list[PreviewItem](), list[Request]()
    for request in dict.fromkeys(requests):
        if marker := find_marker(store, request) if store else None:
            here: State = "base" if (request.repo, marker["commit"]) in known else "here"
            found.append(PreviewItem("weights", request.repo, sum(marker["files"].values()), here))
        else:
            missing.append(request)
    with ThreadPoolExecutor(max(1, len(missing))) as pool:
        sizes = list(pool.map(look_up, missing))
    adapters = lora_sources(stack)
    found += [
        # without the Hub, a file of a repository with many files has an unknown size
        PreviewItem("weights", one.repo,
                    size or (None if one.patterns or one.repo in adapters else guess_weight_bytes(one.repo)[0]), state,
                    exact=size is not None)
        for one, size in zip(missing, sizes, strict=True)
    ]  # fmt: skip
    return found + [_find_vocabulary(store, name, state) for name in dict.fromkeys(vocabularies)]


def _find_vocabulary(store: Store | None, name: str, state: State) -> PreviewItem:
    return PreviewItem("weights", f"the vocabulary {name}", None,
                       state if is_missing_vocabulary(store, name) else "here")  # fmt: skip


def _measure(source: Path) -> int:
    files = [source] if source.is_file() else source.rglob("*")
    return sum(one.stat().st_size for one in files if one.is_file())
