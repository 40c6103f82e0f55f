"""Who uses which model in which store of weights, and how much the caches and the stacks' own volumes take."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stackgen.errors import MachineError
from stackgen.runtimes.compose.store import CODE_VOLUME, Store, StoredModel, read_store, volume_sizes
from stackgen.runtimes.compose.volumes import SharedVolume, find_code_users, list_shared_volumes
from stackgen.runtimes.observation.inventory import Inventory, StackEntry, list_stacks

__all__ = ["ModelUse", "StorageReport", "StoreUse", "read_disk", "read_storage"]


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model or compiled code in a store, with the stacks that need it, also those that are down: name and folder."""

    model: StoredModel
    stacks: tuple[StackEntry, ...]


@dataclass(frozen=True, slots=True)
class StoreUse:
    """A volume that stacks share, or a folder with weights.

    - `models`: None for a volume that can't be read. In a volume of compile caches: folders of compiled code.
    - `volume`: containers that use the volume, as Docker knows them; None for a folder.
    - `stacks`: all stacks whose stack file names the store.
    - `cached_for`: all stacks that mount the volume for compiled code. They work without what is in it.
    - `doubts`: stacks that may use the store, because their stack file can't be read.
    """

    store: Store
    models: tuple[ModelUse, ...] | None
    volume: SharedVolume | None = None
    stacks: tuple[StackEntry, ...] = ()
    doubts: tuple[StackEntry, ...] = ()
    cached_for: tuple[StackEntry, ...] = ()

    @property
    def unused(self) -> tuple[ModelUse, ...]:
        """What stackgen put there and no stack needs; empty while a stack that may need it can't be read."""
        return () if self.doubts else tuple(
            one for one in self.models or () if one.model.downloaded and not one.stacks
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StorageReport:
    """All stores of this machine. `note` is what could not be found out, "" if nothing is missing."""

    stores: tuple[StoreUse, ...]
    inventory: Inventory
    note: str = ""


def read_storage(folders: Iterable[Path] = ()) -> StorageReport:
    """The stores that Docker or the stack files know. `folders` are further stacks. Raises MachineError without Docker.

    A stack of another user that is down is unknown, because its record is in that user's home folder.
    """
    inventory = list_stacks(folders)
    sizes, note = _sizes()
    volumes = {}
    try:
        volumes = {one.name: one for one in list_shared_volumes()}
    except MachineError:
        # a stack of local processes has its weights in a folder, and needs no Docker
        if not any(entry.use and entry.use.path for entry in inventory.stacks):
            raise
    names = dict.fromkeys([(name, True) for name in volumes])
    for entry in inventory.stacks:
        if entry.use and entry.use.store:
            names |= dict.fromkeys([entry.use.store])
    stores = (_use(_read(name, is_volume, sizes), volumes.get(name), inventory) for name, is_volume in names)
    # the volume of a stack that was never started does not exist yet
    found = tuple(one for one in stores if one.volume or not one.store.is_volume)
    return StorageReport(found, inventory, note)


def read_disk(inventory: Inventory) -> dict[str, tuple[int | None, int | None]]:
    """Bytes for each stack, by its folder: the weights in the store, which stacks may share, and its own volumes."""
    sizes, _ = _sizes()
    stores: dict[tuple[str, bool], Store] = {}
    found = {}
    for entry in inventory.stacks:
        weights = None
        if entry.use and (key := entry.use.store):
            if key not in stores:
                stores[key] = _read(*key, sizes)
            models = stores[key].models
            weights = None if models is None else sum(
                one.size for one in models if one.repository in entry.use.repositories
            )  # fmt: skip
        is_here = sizes is not None and entry.runtime != "kubernetes"
        own = sum((sizes or {}).get(name, 0) for name in entry.own_volumes) if is_here else None
        found[entry.folder] = (weights, own)
    return found


def _sizes() -> tuple[dict[str, int] | None, str]:
    try:
        return volume_sizes(), ""
    except MachineError as error:
        return None, error.message


def _read(name: str, is_volume: bool, sizes: dict[str, int] | None) -> Store:
    if is_volume and sizes is None:
        return Store(name, True, reason="Docker does not answer")
    size = (sizes or {}).get(name)
    # other caches contain no models, so their size is all there is to know
    if is_volume and (name not in (sizes or ()) or (name.endswith("cache") and not CODE_VOLUME.fullmatch(name))):
        return Store(name, True, size, ())
    return read_store(name, is_volume=is_volume, size=size)


def _use(store: Store, volume: SharedVolume | None, inventory: Inventory) -> StoreUse:
    key = (store.name, store.is_volume)
    # a stack of local models needs nothing from the store that its file names
    stacks = tuple(
        one for one in inventory.stacks
        if one.use and one.use.repositories and one.use.store == key
    )  # fmt: skip
    cached_for = tuple(one for one in inventory.stacks if store.is_volume and store.name in one.caches)
    holders = {os.path.realpath(one) for one in volume.users.values() if one} if volume else set()
    doubts = [one for one in inventory.stacks if one.use is None and _may_use(one, holders, store.is_volume)]
    # a container that belongs to no stack may use any file
    strangers = [name for name, folder in (volume.users if volume else {}).items() if not folder]
    doubts += [StackEntry(name, "", "", "unknown") for name in strangers]
    holders_of = find_code_users(store.name) if any(one.is_code for one in store.models or ()) else {}
    models = None if store.models is None else tuple(
        ModelUse(model, _code_users(model, inventory, holders_of) if model.is_code else tuple(
            one for one in stacks if one.use and model.repository in one.use.repositories
        ))
        for model in store.models
    )  # fmt: skip
    return StoreUse(store, models, volume, stacks, tuple(doubts), cached_for)


def _code_users(model: StoredModel, inventory: Inventory, holders: Mapping[str, set[str]]) -> tuple[StackEntry, ...]:
    """The stacks whose stack file leads to this folder of compiled code, or whose containers have it."""
    name = model.repository.rpartition("/")[2]
    found = [one for one in inventory.stacks if one.use and name in one.use.code]
    known = {one.name: one for one in inventory.stacks}
    for user in sorted(holders.get(name, set()) - {one.name for one in found}):
        found.append(known.get(user) or StackEntry(user, "", "", "unknown"))
    return tuple(found)


def _may_use(entry: StackEntry, holders: set[str], is_volume: bool) -> bool:
    """Whether a stack without a readable stack file may use a store. `holders` are folders whose containers do."""
    if not is_volume:
        return True
    # local processes use no volumes, and containers show which volumes they use
    return entry.runtime != "process" and (not entry.services or entry.folder in holders)
