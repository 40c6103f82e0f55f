"""What a bundle is made of, on the machine with Internet access: pulls, builds and downloads what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from stackgen import engines
from stackgen.bundle.blobs import Progress
from stackgen.bundle.store import FolderStore, Store, open_volume
from stackgen.bundle.weights import Request, find_marker, parse_requests
from stackgen.errors import MachineError, StackgenError
from stackgen.plan import Plan, Service
from stackgen.runtimes.compose.command import compose_command, run
from stackgen.runtimes.compose.exporter_image import build_exporter
from stackgen.runtimes.compose.image_archive import LocalImage, inspect_image, pull_image, tag_image
from stackgen.runtimes.compose.volume_files import has_volume
from stackgen.runtimes.compose.volumes import create_shared_volumes
from stackgen.spec import StackSpec

__all__ = [
    "Images", "ensure_images", "ensure_weights", "find_builder", "is_missing_vocabulary", "name_by_tag", "open_store",
    "same_platform",
]  # fmt: skip


@dataclass(slots=True)
class Images:
    """The images of a stack, by name. `moved` are names that this command has given to another image: name -> id."""

    found: dict[str, LocalImage] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)

    def restore(self) -> None:
        """Gives the names in `moved` back to the images that had them."""
        for name, image in self.moved.items():
            # the image of another platform stays, without a name
            with suppress(StackgenError):
                tag_image(image, name)


def same_platform(one: str, other: str) -> bool:
    """Whether two platforms have the same system and processor, whatever their variants are."""
    return one.split("/")[:2] == other.split("/")[:2]


def name_by_tag(plan: Plan) -> dict[str, str]:
    """Names with a tag for the images that a stack names by digest: an archive can't restore a name by digest."""
    found = {}
    for service in plan.services:
        name, _, digest = service.image.partition("@sha256:")
        if digest:
            # a tag after the name, and not a port of the registry
            base = name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name
            found[service.image] = f"{base}:sha256-{digest[:12]}"
    return found


def ensure_images(
    plan: Plan, folder: Path, platform: str, tags: dict[str, str], prepare: Callable[[], None], progress: Progress
) -> Images:
    """Pulls and builds the images that are missing, or are for another platform. `tags`: see `name_by_tag`.

    `plan` is the stack as the user has it; `prepare` renders its files for a build. Raises StackgenError.
    """
    images = Images()
    # the stack in the bundle downloads nothing; here, Compose pulls or builds what the download needs
    services = {service.image: service for service in plan.services if service.role != "download"}
    try:
        for number, (name, service) in enumerate(services.items()):
            progress("pulling and building images", number, len(services))
            image = inspect_image(name)
            if (
                image is None
                or not same_platform(image.platform, platform)
                or (service.build and _is_exporter(service))
            ):
                image = _obtain(plan, folder, service, platform, image, prepare, images)
            if not same_platform(image.platform, platform):
                raise MachineError(f"{name} is for {image.platform}, but the bundle is for {platform}",
                                   "use an image for that platform, or a machine with that platform")  # fmt: skip
            if tag := tags.get(name):
                tag_image(name, tag)
            images.found[tags.get(name, name)] = image
    except BaseException:
        images.restore()
        raise
    progress("pulling and building images", len(services), len(services))
    return images


def _is_exporter(service: Service) -> bool:
    # the code of a checkout can change while the tag stays the same
    return service.image.startswith("stackgen/exporter:")


def find_builder(plan: Plan, service: Service) -> Service | None:
    """The service that builds the image of `service`; None if the image is pulled."""
    return next((one for one in plan.services if one.image == service.image and one.build), None)


def _obtain(plan: Plan, folder: Path, service: Service, platform: str, before: LocalImage | None,
            prepare: Callable[[], None], images: Images) -> LocalImage:  # fmt: skip
    builder = find_builder(plan, service)
    if builder is None:
        pull_image(service.image, platform)
        if before:
            images.moved[service.image] = before.id
    elif before and not same_platform(before.platform, platform):
        raise MachineError(f"{service.image} is built on the machine that creates the bundle, so it is for "
                           f"{before.platform}",
                           f"create the bundle on a machine with {platform}")  # fmt: skip
    else:
        prepare()
        if _is_exporter(builder):
            build_exporter(plan, folder, lambda service, phase: None)
        else:
            run([*compose_command(folder), "--progress", "plain", "build", builder.name])
    image = inspect_image(service.image)
    if image is None:
        raise StackgenError(
            f"the image {service.image} is still missing after it was pulled or built", "run the command again"
        )
    return image


def open_store(spec: StackSpec, folder: Path, image: str) -> Store | None:
    """The stack's store of weights; None if it does not exist yet. `image`: see `open_volume`."""
    if spec.storage.path:
        path = folder / Path(spec.storage.path).expanduser()
        return FolderStore(path) if path.is_dir() else None
    return open_volume(spec.storage.volume, image) if has_volume(spec.storage.volume) else None


def ensure_weights(
    spec: StackSpec, plan: Plan, folder: Path, image: str, prepare: Callable[[], None], progress: Progress
) -> tuple[Store | None, list[Request], list[str]]:
    """Downloads the models that are missing. Returns the store, its models and vocabularies.

    Raises StackgenError if the download fails, or the stack is offline and a model is missing.
    """
    arguments = [word for model in spec.models for word in engines.get(model.engine).download_arguments(model)]
    requests, vocabularies = parse_requests(arguments)
    requests = list(dict.fromkeys(requests))
    vocabularies = list(dict.fromkeys(vocabularies))
    if not requests and not vocabularies:
        return None, [], []
    store = open_store(spec, folder, image)
    if missing := _find_missing(store, requests, vocabularies):
        service = next((one for one in plan.services if one.role == "download"), None)
        if service is None:
            raise StackgenError(
                f"{missing} is not in the store, and storage.offline forbids the download",
                "set `storage.offline: false` (the stack in the bundle is offline in any case)",
            )
        progress(f"downloading {missing} and other missing models", 0, 0)
        prepare()
        create_shared_volumes(plan)
        run([*compose_command(folder), "run", "--rm", "--no-deps", service.name])
        store = open_store(spec, folder, image)
    return store, requests, vocabularies


def is_missing_vocabulary(store: Store | None, name: str) -> bool:
    """Whether the store does not have the vocabulary `name`."""
    return store is None or not any(store.members(f"tiktoken/{name}.tiktoken"))


def _find_missing(store: Store | None, requests: Sequence[Request], vocabularies: Sequence[str]) -> str:
    for request in requests:
        if store is None or find_marker(store, request) is None:
            return request.repo
    for name in vocabularies:
        if is_missing_vocabulary(store, name):
            return f"the vocabulary {name}"
    return ""
