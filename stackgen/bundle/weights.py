"""Which files of the store, and of local folders, are the weights of a stack's models.

Layout of the store: huggingface_hub 2.4, manage-cache.md, and what `templates/images/common/download.py` adds to it:
the marker in `.stackgen/` with the files of a complete model, and the link `by-name/REPO/REVISION`.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stackgen.bundle.blobs import BlobWriter, Progress
from stackgen.bundle.chunks import read_chunks
from stackgen.bundle.manifest import Model, StoreFile
from stackgen.bundle.store import FolderStore, Member, Store
from stackgen.errors import StackgenError

__all__ = ["Request", "collect_folder", "collect_model", "collect_vocabulary", "find_marker", "parse_requests"]

# a README is read for its license only
README_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Request:
    """One model that the download service downloads: its repository, revision and patterns of files."""

    repo: str
    revision: str = "main"
    patterns: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The repository's folder in the store."""
        return f"hub/models--{self.repo.replace('/', '--')}"

    @property
    def marker(self) -> str:
        """The marker of the complete model. The same name as `Model.marker` in download.py."""
        digest = hashlib.sha256("\n".join(sorted(self.patterns)).encode()).hexdigest()[:12]
        files = digest if self.patterns else "all"
        return f".stackgen/{self.repo.replace('/', '--')}@{quote(self.revision, safe='')}+{files}.json"

    @property
    def link(self) -> str:
        """The link to the snapshot whose path is known before the commit is."""
        return f"by-name/{self.repo}/{quote(self.revision, safe='')}"


def parse_requests(arguments: Sequence[str]) -> tuple[list[Request], list[str]]:
    """Returns the models and the vocabularies in the arguments of `download.py`."""
    found: list[dict[str, Any]] = []
    vocabularies = []
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        if option == "--model":
            found.append({"repo": value, "patterns": []})
        elif option == "--revision":
            found[-1]["revision"] = value
        elif option == "--file":
            found[-1]["patterns"].append(value)
        elif option == "--vocabulary":
            vocabularies.append(value)
    return [Request(**one | {"patterns": tuple(one["patterns"])}) for one in found], vocabularies


def find_marker(store: Store, request: Request) -> dict[str, Any] | None:
    """Returns the marker of a model that is complete in the store, None if there is none."""
    for member in store.members(request.marker):
        try:
            data = json.loads(_read(member))
            return {"commit": str(data["commit"]), "files": dict(data["files"])}
        # a damaged marker: the download service replaces it
        except (ValueError, KeyError, TypeError):
            return None
    return None


def collect_model(store: Store, request: Request, writer: BlobWriter, progress: Progress) -> Model:
    """Copies a model's files from the store into the bundle.

    Raises StackgenError if the store lacks a file, or has one of another size than the Hub has reported.
    """
    marker = find_marker(store, request)
    if marker is None:
        raise StackgenError(
            f"{request.repo} is not in the store of weights", "run `stackgen bundle create`, which downloads the model"
        )
    commit, sizes = marker["commit"], marker["files"]
    snapshot = f"{request.folder}/snapshots/{commit}"
    wanted = {f"{snapshot}/{name}": (name, size) for name, size in sizes.items()}
    total, label = sum(sizes.values()), f"weights of {request.repo}"
    counter = _Counter(progress, label, total)
    links, files = dict[str, str](), dict[str, StoreFile]()
    for member in store.members(snapshot):
        if member.path not in wanted:
            continue
        if member.link is None:
            files[member.path] = _copy(member, writer, counter, wanted[member.path][1])
        else:
            links[member.path] = member.link
    targets = {posixpath.normpath(posixpath.join(posixpath.dirname(path), link)): path for path, link in links.items()}
    blobs = {}
    for member in store.members(f"{request.folder}/blobs") if links else ():
        # several files with equal content share a blob, and so its size
        if (owner := targets.get(member.path)) and member.link is None:
            blobs[member.path] = one = _copy(member, writer, counter, wanted[owner][1])
            # the Hub names large files by their SHA-256, so damage in the store shows here
            if len(name := member.path.rpartition("/")[2]) == 64 and one.digest != f"sha256:{name}":
                raise StackgenError(f"{wanted[owner][0]} of {request.repo} is damaged in the store of weights",
                                    f"remove {member.path} from the store, and download the model again")  # fmt: skip
    missing = [path for path in wanted if path not in files and path not in links]
    missing += [path for target, path in targets.items() if target not in blobs]
    if missing:
        name = wanted[missing[0]][0]
        raise StackgenError(
            f"{request.repo}: {name} is missing in the store of weights",
            "run `docker compose run --rm download` in the stack's folder, which downloads missing files",
        )
    # in this order: the marker says that the rest is complete
    extra = (f"{request.folder}/refs/{request.revision}", f"{request.folder}/trees/{commit}.json", request.link,
             request.marker)  # fmt: skip
    small = [one for path in extra for one in _small(store, path, writer)]
    readme = blobs.get(posixpath.normpath(posixpath.join(snapshot, links.get(f"{snapshot}/README.md", "-"))))
    order = [
        *blobs.values(),
        *files.values(),
        *(StoreFile(path=path, link=link) for path, link in links.items()),
        *small,
    ]
    return Model(name=request.repo, revision=request.revision, commit=commit, files=tuple(order),
                 license=_license(store, readme or files.get(f"{snapshot}/README.md")))  # fmt: skip


def collect_vocabulary(store: Store, name: str, writer: BlobWriter) -> Model:
    """Copies the vocabulary of gpt-oss from the store. Raises StackgenError if it is not there."""
    files = tuple(_small(store, f"tiktoken/{name}.tiktoken", writer))
    if not files:
        raise StackgenError(
            f"the vocabulary {name} is not in the store of weights", "start the stack once to download it"
        )
    return Model(name=f"vocabulary {name}", files=files)


def collect_folder(folder: Path, name: str, place: str, writer: BlobWriter, progress: Progress) -> Model:
    """Copies a local model (a folder or a file) into the bundle, as `place` in the stack's folder. Follows links."""
    files = []
    source = FolderStore(folder.parent)
    found = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    counter = _Counter(progress, f"weights of {name}", sum(path.stat().st_size for path in found))
    for path in found:
        # the target of a link: a snapshot of the Hub cache consists of links
        real = path.resolve()
        member = next(FolderStore(real.parent).members(real.name))
        one = _copy(member, writer, counter, member.size, f"{real.parent}/")
        inner = path.relative_to(folder).as_posix()
        files.append(one.model_copy(update={"path": place if inner == "." else f"{place}/{inner}"}))
    if not files:
        raise StackgenError(f"{folder} has no files", "copy the model's files, including its weights, into this folder")
    readme = next((one for one in files if one.path == f"{place}/README.md"), None)
    relative = readme and readme.model_copy(update={"path": f"{folder.name}/README.md"})
    return Model(name=name, place="stack", files=tuple(files), license=_license(source, relative))


class _Counter:
    """Reports the bytes of one model."""

    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self._progress, self._label, self._total, self._done = progress, label, total, 0

    def __call__(self, count: int) -> None:
        self._done += count
        self._progress(self._label, self._done, max(self._total, self._done))


def _copy(member: Member, writer: BlobWriter, counter: _Counter, size: int, prefix: str = "store:") -> StoreFile:
    if member.size != size:
        raise StackgenError(f"{member.path} has {member.size} bytes instead of {size}", "download the model again")
    source = f"{prefix}{member.path}:{member.stamp}"
    digest = writer.known(source)
    if digest is None:
        file = member.open()
        digest = writer.add(read_chunks(file), member.size, source, counter)
        file.close()
    else:
        counter(member.size)
    return StoreFile(path=member.path, digest=digest)


def _read(member: Member) -> bytes:
    with closing(member.open()) as file:
        return bytes(file.read())


def _small(store: Store, path: str, writer: BlobWriter) -> Iterator[StoreFile]:
    for member in store.members(path):
        if member.link is not None:
            yield StoreFile(path=member.path, link=member.link)
        else:
            yield StoreFile(path=member.path, digest=writer.add_bytes(_read(member)))


def _license(store: Store, readme: StoreFile | None) -> str:
    """The license in the metadata of a model's README (huggingface_hub, model-cards.md: `license`, `license_name`)."""
    for member in store.members(readme.path) if readme else ():
        if member.size < README_BYTES:
            text = _read(member).decode("utf-8", "replace")
            front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
            found: dict[str, str] = dict(
                re.findall(r"(?m)^(license|license_name):[ \t]*['\"]?([\w.+-]+)", front[1] if front else "")
            )
            # `other` says nothing without the name
            return found.get("license_name", "") if found.get("license") == "other" else found.get("license", "")
    return ""
