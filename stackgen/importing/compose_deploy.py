"""Reads `deploy`, `gpus` and `scale` of a Compose service: GPUs and replicas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from stackgen.importing.container import Container, GpuAsk
from stackgen.importing.ledger import Word
from stackgen.importing.options import parse_gpus

if TYPE_CHECKING:
    from stackgen.importing.compose_file import ComposeReader

__all__ = ["leaves", "read_deploy"]


def leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(path, scalar) of every scalar below `path`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(f"{path}.{key}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(f"{path}[{index}]", inner)
    else:
        yield path, value


def read_deploy(reader: ComposeReader, path: str, service: dict[str, Any], container: Container) -> None:
    """Puts the GPUs and the number of replicas of `service` into `container`."""
    deploy = service.get("deploy") or {}
    for key in ("scale",):
        if key in service:
            _set_replicas(reader.word(f"{path}.{key}", service[key]), container)
    for place, value in leaves(f"{path}.deploy", {key: one for key, one in deploy.items() if key != "resources"}):
        word = reader.word(place, value)
        if place.endswith("deploy.replicas"):
            _set_replicas(word, container)
        else:
            word.item.build_in("stackgen starts, updates and restarts containers itself")
    resources = deploy.get("resources") or {}
    devices = (resources.get("reservations") or {}).get("devices") or ()
    for index, device in enumerate(devices):
        _read_device(reader, f"{path}.deploy.resources.reservations.devices[{index}]", device, container)
    for place, value in leaves(f"{path}.deploy.resources", resources):
        if ".devices[" not in place:
            reader.word(place, value).item.drop(
                "stack.yaml has no limits of memory and CPU; for CPU cores, set `cpuset`"
            )
    gpus = service.get("gpus")
    if isinstance(gpus, list):
        for index, device in enumerate(gpus):
            _read_device(reader, f"{path}.gpus[{index}]", device, container)
    elif gpus is not None:
        word = reader.word(f"{path}.gpus", gpus)
        container.gpus.append(parse_gpus(word.text, word))


def _set_replicas(word: Word, container: Container) -> None:
    if word.text.isdecimal() and 1 <= int(word.text) <= 64:
        container.replicas, container.replicas_item = int(word.text), word.item
    else:
        word.item.drop("stack.yaml does not accept this number of replicas: set `replicas`")


def _read_device(reader: ComposeReader, path: str, device: Any, container: Container) -> None:
    words = {place: reader.word(place, value) for place, value in leaves(path, device)}
    driver = str(device.get("driver", "nvidia")) if isinstance(device, dict) else "nvidia"
    driver = driver if driver == "cdi" else "nvidia"
    found = False
    for place, word in words.items():
        key = place[len(path) + 1 :].partition("[")[0]
        if key == "count":
            everything, count = word.text in ("all", "-1"), int(word.text) if word.text.isdecimal() else None
            container.gpus.append(
                GpuAsk(word.item, count or 0, everything=everything, driver=driver, nothing=count == 0)
            )
            found = True
        elif key == "device_ids":
            ids = tuple(one.strip() for one in word.text.split(",") if one.strip())
            everything = ids in (("all",), ("nvidia.com/gpu=all",))
            container.gpus.append(
                GpuAsk(word.item, ids=() if everything else ids, everything=everything, driver=driver)
            )
            found = True
        else:
            word.item.build_in("part of the reservation of GPUs")
    if not found and words:
        # neither a count nor ids means all GPUs (Compose specification)
        container.gpus.append(GpuAsk(next(iter(words.values())).item, everything=True, driver=driver))
