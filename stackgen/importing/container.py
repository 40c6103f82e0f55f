"""One container or process of a source: what it runs, and its ports, mounts, GPUs and options, each with its item."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stackgen.importing.ledger import Item, Word

__all__ = ["Container", "GpuAsk", "MountMap", "PortMap", "Value", "find_host_path", "parse_port", "parse_size",
           "parse_volume"]  # fmt: skip

# a path of the machine and not the name of a volume
HOST_PATH = re.compile(r"[/.~]|\$\{?(?:HOME|PWD)|[A-Za-z]:[\\/]")


@dataclass(frozen=True, slots=True)
class PortMap:
    """A published port. `host` is 0 if Docker chooses it."""

    address: str
    host: int
    container: int
    item: Item


@dataclass(slots=True)
class MountMap:
    """A mount: `source` is a path of the machine, or the name of a volume if `named`."""

    source: str
    target: str
    read_only: bool
    named: bool
    item: Item
    # whether a field of the model already has what is mounted here
    used: bool = False


@dataclass(frozen=True, slots=True)
class GpuAsk:
    """A request for GPUs: a count, `all`, or indices and UUIDs; () and 0 only say that there is a GPU.

    `nothing` is a count that is written as 0, so the container gets no GPU.
    """

    item: Item
    count: int = 0
    ids: tuple[str, ...] = ()
    everything: bool = False
    driver: str = "nvidia"
    nothing: bool = False


@dataclass(frozen=True, slots=True)
class Value:
    """The value of an option or variable, with its item."""

    value: Any
    item: Item
    unknown: tuple[str, ...] = ()


@dataclass(slots=True)
class Container:
    """What one service of the source runs. `place` is where the source says it, `folder` what paths are relative to.

    `command` is entrypoint and command together. `options` have the names of the fields of a model. `text` is the
    service as the source writes it, for `--diff`. `is_bare` is true for a process without a container.
    """

    name: str
    place: str
    folder: Path
    image: Word | None = None
    entrypoint: list[Word] = field(default_factory=list)
    command: list[Word] = field(default_factory=list)
    environment: dict[str, Value] = field(default_factory=dict)
    ports: list[PortMap] = field(default_factory=list)
    mounts: list[MountMap] = field(default_factory=list)
    gpus: list[GpuAsk] = field(default_factory=list)
    options: dict[str, Value] = field(default_factory=dict)
    labels: dict[str, Value] = field(default_factory=dict)
    replicas: int = 1
    replicas_item: Item | None = None
    host_network: bool = False
    is_bare: bool = False
    text: str = ""

    def items(self) -> Iterator[Item]:
        """The items of everything in the container."""
        for word in (*([self.image] if self.image else []), *self.words):
            yield word.item
        for value in (*self.environment.values(), *self.options.values(), *self.labels.values()):
            yield value.item
        yield from (one.item for one in self.ports)
        yield from (one.item for one in self.mounts)
        yield from (one.item for one in self.gpus)
        if self.replicas_item:
            yield self.replicas_item

    @property
    def words(self) -> list[Word]:
        """Entrypoint and command, as they run."""
        return [*self.entrypoint, *self.command]


def parse_port(text: str, item: Item) -> PortMap | None:
    """Parses `8000`, `8000:8000`, `127.0.0.1:8000:8000`, `[::1]:8000:8000/tcp`; None for ranges, UDP and variables."""
    match = re.fullmatch(r"(?:(?:(\[[^\]]+\]|[\d.]*):)?(\d*):)?(\d+)(?:/tcp)?", text.strip())
    if not match:
        return None
    host = int(match[2] or 0)
    # Compose and Docker publish on every address if none is given
    return PortMap((match[1] or "0.0.0.0").strip("[]"), host, int(match[3]), item)


def parse_volume(text: str, item: Item) -> MountMap | None:
    """Parses `SOURCE:TARGET[:OPTIONS]`; None for an anonymous volume or a text that is none."""
    # the colon of a variable's default separates nothing: unknown variables are `${NAME}` here
    match = re.fullmatch(r"((?:[A-Za-z]:[\\/])?[^:]+):([^:]+)(?::([\w,]+))?", text)
    if not match:
        return None
    source, target, options = match[1], match[2], (match[3] or "").split(",")
    return MountMap(source, posixpath.normpath(target), "ro" in options, not HOST_PATH.match(source), item)


def find_host_path(container: Container, path: str) -> tuple[str, MountMap | None]:
    """The path on this machine of `path` in the container, and its mount. ("", None) if it is not mounted."""
    if container.is_bare:
        return path, None
    clean = posixpath.normpath(path)
    inside = [one for one in container.mounts if clean == one.target or clean.startswith(one.target.rstrip("/") + "/")]
    if not inside:
        return "", None
    mount = max(inside, key=lambda one: len(one.target))
    rest = clean[len(mount.target.rstrip("/")) :].lstrip("/")
    if mount.named:
        return "", mount
    return local(os.path.join(mount.source, rest) if rest else mount.source), mount


def local(path: str) -> str:
    """A path as stack.yaml needs it: local paths start with `/`, `./`, `../` or `~`. `C:/x` is `/mnt/c/x` in WSL."""
    if match := re.match(r"([A-Za-z]):[\\/]", path):
        path = f"/mnt/{match[1].lower()}/{path[3:]}".replace("\\", "/")
    return path if path.startswith(("/", "./", "../", "~")) or path in (".", "..") else f"./{path}"


def parse_size(value: object) -> str:
    """A size of Docker (`16gb`, `6.15g`, bytes) as stack.yaml writes it (`16g`); "" if it is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgtKMGT]?)(?:i?[bB])?\s*", str(value))
    if not match:
        return ""
    number = float(match[1]) * {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}[match[2].lower()]
    for unit, size in (("g", 2**30), ("m", 2**20), ("k", 2**10)):
        if number >= size and number % size == 0:
            return f"{int(number // size)}{unit}"
    # stack.yaml has no fractions: rounded up to whole kilobytes, so that nothing gets smaller
    return f"{-int(-number // 1024)}k" if number else ""
