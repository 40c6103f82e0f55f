"""What a store contains: models, or folders of compiled code, with their sizes. And the removal of one of them.

A store is a Docker volume or a folder, and contains the cache of huggingface_hub 2.4.0 (`hub/models--ORG--NAME`), and
the links and marker files of `templates/images/common/download.py`. This user may not be allowed to read the volume's
folder. Then a container without a network reads it, from an image that is on this machine already.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen.errors import MachineError, StackgenError
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.lifecycle import connect

__all__ = [
    "CODE_VOLUME", "Store", "StoredModel", "find_helper_image", "folder_size", "read_store", "remove_models",
    "volume_sizes",
]  # fmt: skip

# images of engines and downloads have a shell and coreutils (`du`, `rm`); the stack's own images come first
HELPERS = re.compile(r"(^|/)(stackgen/(download|llamacpp|vllm-cpu|fastchat|vllm-standin)|vllm/vllm-openai[\w-]*):")
# seconds; a store on a network disk may have a million files
TIMEOUT = 120
# tab-separated: bytes, and the path below the store. -k, because busybox has no -b
LIST = (
    'cd /store && for one in hub/models--* code/* * .stackgen; do [ -e "$one" ] && du -sk -- "$one"; done; '
    'for one in .stackgen/*.json; do [ -e "$one" ] && printf "marker\\t%s\\n" "$one"; done; true'
)
# an older repository of the Hub has no organization; no part may be `..` or contain what a shell expands
# the volumes of vLLM's compile caches (`_cache` in stackgen/engines/vllm.py)
CODE_VOLUME = re.compile(r"stackgen-vllm-(cpu-|rocm-)?cache")
# they have a folder for each model, image and set of flags; up to version 0.2.0, they had one folder for all models
CODE = re.compile(r"code/[a-z0-9][a-z0-9.-]*", re.ASCII)
EARLIER, EARLIER_PATHS = "code/vllm", ("vllm", "triton")
REPOSITORY = re.compile(r"models--(?P<id>[A-Za-z0-9][\w.-]*?(--[A-Za-z0-9][\w.-]*)?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A repository of the Hub in a store, or a folder of compiled code (`code/NAME`), and its size on disk in bytes.

    `downloaded`: stackgen has downloaded it, which its marker file shows. Other programs may need the other models.
    """

    repository: str
    size: int
    downloaded: bool = False
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Store:
    """A store: a volume, or a folder. `size` is bytes; `models` is None, with the reason, if it can't be read."""

    name: str
    is_volume: bool
    size: int | None = None
    models: tuple[StoredModel, ...] | None = None
    reason: str = ""

    @property
    def has_code(self) -> bool:
        """Whether this is a volume of vLLM's compile caches, which has no models."""
        return self.is_volume and bool(CODE_VOLUME.fullmatch(self.name))


def folder_size(path: Path) -> int:
    """Bytes on disk below `path`. A file with several hard links counts once, and symbolic links don't count."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            # a file may disappear during the walk
            with suppress(OSError):
                found = os.lstat(os.path.join(folder, name))
                if (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    # not st_size: a file of an interrupted download may be sparse
                    total += found.st_blocks * 512
    return total


def volume_sizes() -> dict[str, int]:
    """Bytes of each Docker volume. Raises MachineError if Docker does not answer within `TIMEOUT`."""
    client = connect(TIMEOUT)
    try:
        # `type=volume` exists since API 1.42 (Docker 23): the sizes of images take much longer
        found = client.api._result(client.api._get(client.api._url("/system/df"), params={"type": "volume"}), json=True)
    except (sdk().errors.DockerException, OSError) as error:
        raise MachineError(f"Docker can't tell the sizes of its volumes: {error}", "try again later") from None
    rows: Iterable[dict[str, Any]] = found.get("Volumes") or ()
    sizes = {row["Name"]: (row.get("UsageData") or {}).get("Size", -1) for row in rows}
    # -1: the volume's driver can't tell
    return {name: size for name, size in sizes.items() if size >= 0}


def read_store(name: str, *, is_volume: bool, size: int | None = None) -> Store:
    """The content of the volume or folder `name`. `size` is the volume's size if the caller knows it."""
    path = _find_folder(name, is_volume)
    if path and os.access(path, os.R_OK | os.X_OK):
        if is_volume and CODE_VOLUME.fullmatch(name):
            parts = [*EARLIER_PATHS, *(f"code/{one.name}" for one in (path / "code").glob("*"))]
            sizes = {part: folder_size(path / part) for part in parts if (path / part).is_dir()}
            return Store(name, True, folder_size(path), tuple(_find_code(sizes)))
        markers = [one.name for one in (path / ".stackgen").glob("*.json")]
        models = tuple(
            StoredModel(repository, folder_size(folder), _has_marker(repository, markers))
            for folder in sorted((path / "hub").glob("models--*"))
            if (repository := _repository(folder.name))
        )
        return Store(name, is_volume, folder_size(path), models)
    if not is_volume:
        missing = "it does not exist" if path and not path.exists() else "this user has no permission to read it"
        return Store(name, is_volume, reason=missing)
    if not (image := find_helper_image()):
        reason = ("this user can't read Docker's folder, and this machine has no engine image that could read it in a "
                  "container")
        return Store(name, is_volume, size, reason=reason)
    try:
        return _parse_listing(name, _run_helper(image, name, LIST, read_only=True), size)
    except StackgenError as error:
        return Store(name, is_volume, size, reason=error.message)


def _parse_listing(name: str, text: str, size: int | None) -> Store:
    """A store from the lines of `LIST`: KiB and path, separated by a tab."""
    sizes, markers = dict[str, int](), list[str]()
    for line in text.splitlines():
        count, _, path = line.partition("\t")
        if count.isdecimal():
            sizes[path] = int(count) * 1024
        elif count == "marker":
            markers.append(path.rpartition("/")[2])
    models = _find_code(sizes) if CODE_VOLUME.fullmatch(name) else (
        StoredModel(repository, sizes[path], _has_marker(repository, markers))
        for path in sorted(sizes)
        if path.startswith("hub/") and (repository := _repository(path[4:]))
    )  # fmt: skip
    total = sum(one for path, one in sizes.items() if "/" not in path)
    return Store(name, True, total or size, tuple(models))


def _find_code(sizes: Mapping[str, int]) -> Iterator[StoredModel]:
    """The folders of compiled code. `sizes` are bytes by path below the volume."""
    if earlier := sum(sizes.get(path, 0) for path in EARLIER_PATHS):
        yield StoredModel(EARLIER, earlier, True, True)
    for path in sorted(sizes):
        if CODE.fullmatch(path) and path != EARLIER:
            yield StoredModel(path, sizes[path], True, True)


def _paths_of(name: str, store: Store) -> list[str]:
    """What belongs to a model or folder of compiled code: the same paths as `Model` in download.py."""
    if store.has_code:
        return list(EARLIER_PATHS) if name == EARLIER else [name]
    safe = name.replace("/", "--")
    return [f"hub/models--{safe}", f"hub/.locks/models--{safe}", f"by-name/{name}"]


def remove_models(store: Store, repositories: Sequence[str]) -> None:
    """Removes models from the store, with their links and marker files, or compiled code. No stack may use them.

    Raises StackgenError if files can't be removed.
    """
    names = [name.replace("/", "--") for name in repositories]
    # the names contain no character that a shell would expand
    paths = [path for name in repositories for path in _paths_of(name, store)]
    folder = _find_folder(store.name, store.is_volume)
    if folder and os.access(folder, os.W_OK | os.X_OK):
        for path in paths:
            _remove_tree(folder / path)
        for safe in names:
            for marker in (folder / ".stackgen").glob(f"{safe}@*.json"):
                marker.unlink(missing_ok=True)
        return
    image = find_helper_image() if store.is_volume else ""
    if not image:
        raise MachineError(f"this user can't remove files from {store.name}", "run the command as root")
    markers = [f".stackgen/{safe}@*.json" for safe in names]
    _run_helper(image, store.name, "cd /store && rm -rf -- " + " ".join([*paths, *markers]), read_only=False)


def _remove_tree(path: Path) -> None:
    try:
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
    except OSError as error:
        raise StackgenError(f"{error.filename or path} can't be removed: {error.strerror or error}",
                            "run the command as root, or as the owner of the files") from None  # fmt: skip


def find_helper_image() -> str:
    """An image on this machine that has a shell and coreutils; "" if there is none."""
    tags = [tag for image in connect().api.images() for tag in image.get("RepoTags") or ()]
    found = [tag for tag in tags if HELPERS.search(tag)]
    # the small ones of stackgen start faster
    return min(found, key=lambda tag: (not tag.startswith("stackgen/"), tag), default="")


def _run_helper(image: str, volume: str, script: str, *, read_only: bool) -> str:
    """The output of a shell script in a container that sees only the volume, at /store."""
    mount = f"{volume}:/store{':ro' if read_only else ''}"
    command = ["docker", "run", "--rm", "--pull=never", "--network=none", "--read-only", "--cap-drop=ALL",
               "--cap-add=DAC_OVERRIDE", "--security-opt=no-new-privileges", "--user=0:0", "--volume", mount,
               "--entrypoint=/bin/sh", image, "-c", script]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        raise MachineError(f"{volume} can't be read: a container did not answer within {TIMEOUT} s",
                           "run the command as root, which needs no container") from None  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StackgenError(f"a container with the image {image} can't use {volume}: {reason}", "run the command as "
                                                                                                "root")
    return done.stdout


def _find_folder(name: str, is_volume: bool) -> Path | None:
    """The folder of a store on this machine, which may not be readable; None for a volume without one."""
    if not is_volume:
        return Path(name)
    try:
        point = connect().api.inspect_volume(name).get("Mountpoint") or ""
    except sdk().errors.NotFound:
        return None
    # a volume's own folder is always there, so an unreadable parent looks like a missing folder
    return Path(point) if point and os.path.isdir(point) else None


def _has_marker(repository: str, markers: Sequence[str]) -> bool:
    # `Model.marker` in download.py
    return any(one.startswith(f"{repository.replace('/', '--')}@") for one in markers)


def _repository(folder: str) -> str:
    match = REPOSITORY.fullmatch(folder)
    return match["id"].replace("--", "/", 1) if match else ""
