"""The GPUs of a machine, from a file or from nvidia-smi, and the islands in which NVLink connects them.

Format of `nvidia-smi topo -m`, as in public reports of drivers up to 590 (for example kubernetes/kubernetes#53497, and
noonghunna/club-3090#1229): a header with GPU0, GPU1, …, one row for each GPU, and `NV4` where two GPUs have 4 NVLinks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stackgen.errors import Mistake, SpecError, StackgenError
from stackgen.fit.gpus import Gpu, find_gpu, observed_gpu, parse_memory

__all__ = ["ALONE", "WHOLE", "Device", "join_islands", "parse_machine", "parse_topology"]

# far above every machine, so that a wrong file is an error and no endless search
MAX_GPUS = 1024
FIELDS = ("uuid", "name", "memory", "island", "index", "held")
# the island of GPUs on a machine without NVLink: they reach each other over PCIe
WHOLE = "pcie"
UUID = re.compile(r"GPU-[0-9A-Za-z-]{1,64}", re.ASCII)
# the island of a GPU without NVLink, next to others that have it
ALONE = "single"
# newer versions underline the header
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU of the machine. `gpu`: its kind, for the estimate. `island`: GPUs with one name are joined by NVLink.

    `held`: who uses it now, "" if nobody does. `wanted`: which stacks that are down list it. `host`: its machine, ""
    for a stack on one machine.
    """

    index: int
    uuid: str
    gpu: Gpu
    island: str
    held: str = ""
    wanted: str = ""
    host: str = ""

    @property
    def group(self) -> tuple[str, str, Gpu]:
        """What all GPUs of a replica have in common: machine, island and kind."""
        return self.host, self.island, self.gpu

    @property
    def label(self) -> str:
        """The GPU for people."""
        return f"GPU {self.index}" + (f" of {self.host}" if self.host else "")


def parse_topology(text: str) -> list[tuple[int, int]]:
    """The pairs of GPU indices that NVLink connects, in the output of `nvidia-smi topo -m`."""
    rows = [ESCAPE.sub("", line).split() for line in text.splitlines()]
    header = next((row for row in rows if row and row[0] == "GPU0" and "GPU1" in row[1:2]), [])
    columns = [int(word[3:]) for word in header if re.fullmatch(r"GPU\d{1,4}", word, re.ASCII)]
    pairs = []
    for row in rows:
        # the header begins with two names, and a row with a name and a connection
        if row is header or not row or not re.fullmatch(r"GPU\d{1,4}", row[0], re.ASCII):
            continue
        first = int(row[0][3:])
        pairs += [(first, other) for other, cell in zip(columns, row[1:], strict=False)
                  if first < other and re.fullmatch(r"NV\d{1,3}", cell, re.ASCII)]  # fmt: skip
    return pairs


def join_islands(indices: Iterable[int], pairs: Sequence[tuple[int, int]]) -> dict[int, str]:
    """The name of the island of each GPU. Without any NVLink, all GPUs are in one island."""
    if not pairs:
        return dict.fromkeys(indices, WHOLE)
    islands = {index: index for index in indices}
    for first, second in pairs:
        old, new = sorted((islands.get(first, first), islands.get(second, second)), reverse=True)
        islands = {index: new if island == old else island for index, island in islands.items()}
    sizes = Counter(islands.values())
    return {index: f"{'nvlink' if sizes[island] > 1 else ALONE}-{island}" for index, island in islands.items()}


def parse_machine(data: Mapping[str, Any], source: str) -> tuple[Device, ...]:
    """The GPUs that the file of `--machine` lists. Raises SpecError with all mistakes of the file."""
    if "hosts" not in data:
        return _parse_machine(data, source, "")
    hosts, mistakes = data["hosts"], [Mistake(str(key), "is not a field next to `hosts`", "remove it")
                                      for key in data if key != "hosts"]  # fmt: skip
    if not isinstance(hosts, dict) or not hosts or not all(isinstance(one, dict) for one in hosts.values()):
        mistakes.append(Mistake("hosts", "must name the machines", "for example `hosts: {box1: {gpus: [...]}}`"))
        raise SpecError(source, mistakes)
    devices: list[Device] = []
    for host, machine in hosts.items():
        try:
            found = _parse_machine(machine, source, f"hosts.{host}.")
        except SpecError as error:
            mistakes += error.mistakes
            continue
        known = {one.uuid: one.host for one in devices}
        twice = [one.uuid for one in found if one.uuid in known]
        mistakes += [Mistake(f"hosts.{host}", f"uuid {uuid} is also a GPU of {known[uuid]}", "list each GPU once")
                     for uuid in twice]  # fmt: skip
        devices += [replace(one, host=str(host)) for one in found]
    if mistakes:
        raise SpecError(source, mistakes)
    return tuple(devices)


def _parse_machine(data: Mapping[str, Any], source: str, prefix: str) -> tuple[Device, ...]:
    rows, hint = data.get("gpus"), "the only field is `gpus`"
    mistakes = [Mistake(f"{prefix}{key}", "is not a field of a machine", hint) for key in data if key != "gpus"]
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_GPUS:
        what = f"must be a list of 1 to {MAX_GPUS} GPUs"
        raise SpecError(source, [*mistakes, Mistake(f"{prefix}gpus", what, "each has a `uuid` and a `name`")])
    devices: list[Device] = []
    for number, row in enumerate(rows):
        path = f"{prefix}gpus[{number}]"
        try:
            device = _parse_device(row, number)
            for field, same in (("uuid", {one.uuid for one in devices}), ("index", {one.index for one in devices})):
                if getattr(device, field) in same:
                    raise StackgenError(f"{field} {getattr(device, field)} is listed twice", "list each GPU once")
            devices.append(device)
        except StackgenError as error:
            mistakes.append(Mistake(path, error.message, error.hint))
    if mistakes:
        raise SpecError(source, mistakes)
    # a GPU without an island stands alone if others have NVLink, as in `join_islands`
    linked = any(one.island for one in devices)
    return tuple(replace(one, island=one.island or (f"{ALONE}-{one.index}" if linked else WHOLE)) for one in devices)


def _parse_device(row: Any, number: int) -> Device:
    if not isinstance(row, dict):
        raise StackgenError("is not a GPU", "write `- {uuid: GPU-…, name: H100, island: a}`")
    if unknown := [key for key in row if key not in FIELDS]:
        raise StackgenError(f"{unknown[0]} is not a field of a GPU", f"known: {', '.join(FIELDS)}")
    uuid, name, index, memory = row.get("uuid"), row.get("name"), row.get("index", number), row.get("memory")
    if not isinstance(uuid, str) or not UUID.fullmatch(uuid):
        raise StackgenError(
            f"uuid: {uuid!r} is not the UUID of a GPU", "run `nvidia-smi -L`, which lists UUIDs such as GPU-…"
        )
    if not isinstance(name, str) or not name.strip():
        raise StackgenError("has no name", "for example `name: H100`; `stackgen fit --list-gpus` lists known names")
    if type(index) is not int or not 0 <= index < MAX_GPUS:
        raise StackgenError(f"index: {index!r} is not the index of a GPU", f"use 0 to {MAX_GPUS - 1}")
    island = row.get("island", "")
    if not isinstance(island, (str, int)) or isinstance(island, bool) or len(str(island)) > 64:
        raise StackgenError(f"island: {island!r} is not a name", "give GPUs that NVLink connects the same island name")
    held = row.get("held", "")
    if not isinstance(held, str) or len(held) > 200 or "\n" in held:
        raise StackgenError(
            f"held: {held!r} does not name a user of the GPU", "for example `held: training of group B`"
        )
    return Device(index, uuid, _parse_gpu(name, memory), str(island), held)


def _parse_gpu(name: str, memory: Any) -> Gpu:
    if memory is None:
        try:
            return find_gpu(name)
        except StackgenError as error:
            raise StackgenError(f"name: {name!r} is not in the table of GPUs, so the GPU needs the field memory",
                                "add its memory, for example `memory: 24GiB`") from error  # fmt: skip
    try:
        size = parse_memory(str(memory))
    except StackgenError as error:
        raise StackgenError(f"memory: {memory!r} is not the memory of a GPU", error.hint) from error
    return observed_gpu(name, size)
