"""`stackgen storage`: what models and caches take, who uses them, and the removal of what no stack uses."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from stackgen.cli.commands.confirm import confirm
from stackgen.cli.commands.output import note, print_data
from stackgen.cli.commands.table import format_table, size_text
from stackgen.errors import StackgenError
from stackgen.runtimes.compose.store import remove_models
from stackgen.runtimes.compose.volumes import SharedVolume, remove_shared_volume
from stackgen.runtimes.observation.inventory import StackEntry, search_stacks
from stackgen.runtimes.observation.storage_use import ModelUse, StorageReport, StoreUse, read_storage

__all__ = ["storage"]


def storage(args: Namespace) -> int:
    """Runs `stackgen storage`. Returns 2 if the user does not agree to a removal.

    Raises StackgenError for an unknown volume or model, and for one that a stack or a container uses.
    """
    folders = [Path(one) for one in args.stacks or ()]
    if missing := next((one for one in folders if not one.is_dir()), None):
        raise StackgenError(f"{missing} is not a folder", "pass a folder that contains stacks with --stacks")
    report = read_storage(place for folder in folders for place in search_stacks(folder))
    if args.action == "list":
        return _list(args, report)
    if args.unused:
        if args.names:
            raise StackgenError("`--unused` and names can't be combined", "remove the names, or remove `--unused`")
        return _remove_models(args, [(store, one) for store in report.stores for one in store.unused], report)
    if not args.names:
        raise StackgenError(
            "the name of a volume or model is missing: `stackgen storage remove NAME`",
            "`stackgen storage list` shows the names. `stackgen storage remove --unused` removes all models and all "
            "compiled code that no stack uses",
        )
    volumes = [_find_volume(name, report) for name in args.names if "/" not in name]
    models = [match for name in args.names if "/" in name for match in _find_model(name, report)]
    if volumes and models:
        raise StackgenError(
            "a volume and a model can't be removed together",
            "run the command once for the volume and once for the model",
        )
    return _remove_volumes(args, volumes) if volumes else _remove_models(args, models, report)


def _list(args: Namespace, report: StorageReport) -> int:
    rows, notes = [], [report.note] if report.note else []
    for store in report.stores:
        rows.append((store.store.name, size_text(store.store.size), _store_users(store) or "no stack"))
        for one in store.models or ():
            # another program may have put it there, for example into the user's own Hub cache
            free = "no stack" if one.model.downloaded else "no stack (not downloaded by stackgen)"
            users = _names(one.stacks) or ("unknown" if store.doubts else free)
            rows.append((f"  {one.model.repository}", size_text(one.model.size), users))
        if store.store.reason:
            notes.append(f"the content of {store.store.name} is unknown: {store.store.reason}")
        # nothing in an empty volume can be in use
        for entry in store.doubts if store.models != () else ():
            why = entry.reason or "it is not a stack of stackgen"
            notes.append(f"{entry.name} may use everything in {store.store.name}: {why}")
    lines = format_table(("STORE OR MODEL", "SIZE", "USED BY"), rows)
    if unused := sum(one.model.size for store in report.stores for one in store.unused):
        notes.append(f"no known stack uses {size_text(unused)} of this. `stackgen storage remove --unused` deletes it")
    # the key `stacks` of a volume has been its containers' stacks since the first version
    volumes = [{"volume": one.volume.name, "stacks": one.volume.users} for one in report.stores if one.volume]
    data = {"volumes": volumes, "stores": [_to_json(one) for one in report.stores], "note": report.note}
    print_data(args, data, lines or ["this machine has no shared volume"])
    for line in () if args.json else notes:
        note(line)
    return 0


def _to_json(store: StoreUse) -> dict[str, Any]:
    models = None if store.models is None else [
        {"model": one.model.repository, "bytes": one.model.size,
         "downloaded": one.model.downloaded, "stacks": {s.folder: s.name for s in one.stacks}}
        for one in store.models if not one.model.is_code
    ]  # fmt: skip
    code = [
        {"folder": one.model.repository, "bytes": one.model.size, "stacks": {s.folder: s.name for s in one.stacks}}
        for one in store.models or () if one.model.is_code
    ]  # fmt: skip
    return {
        "name": store.store.name, "kind": "volume" if store.store.is_volume else "folder", "bytes": store.store.size,
        "models": models, "code": code, "reason": store.store.reason,
        "stacks": {s.folder: s.name for s in (*store.stacks, *store.cached_for)},
        "unknown_users": [one.name for one in store.doubts],
    }  # fmt: skip


def _store_users(store: StoreUse) -> str:
    stacks = (*store.stacks, *store.cached_for)
    named = [one.name for one in stacks]
    # a container with the volume whose stack file names another store by now
    others = [name for name in (store.volume.users if store.volume else {}) if name not in named]
    return ", ".join([_names(stacks), *others] if named else others)


def _names(stacks: Sequence[StackEntry]) -> str:
    """The stacks with their states. Copies of a stack in several folders have the same name, which is printed once."""
    texts = Counter(one.name + ("" if one.services and one.state != "down" else " (down)") for one in stacks)
    return ", ".join(text + (f" in {count} folders" if count > 1 else "") for text, count in texts.items())


def _find_volume(name: str, report: StorageReport) -> StoreUse:
    known = {one.store.name: one for one in report.stores if one.volume}
    if name in known:
        return known[name]
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"the shared volumes are: {', '.join(known) or 'none'}"
    raise StackgenError(f"{name} is not a volume that stackgen shares between stacks", hint)


def _find_model(name: str, report: StorageReport) -> list[tuple[StoreUse, ModelUse]]:
    """The model in every store that has it. Raises StackgenError if a stack uses it anywhere, or may use it."""
    found = [(store, one) for store in report.stores for one in store.models or () if one.model.repository == name]
    known = sorted({one.model.repository for store in report.stores for one in store.models or ()})
    if not found:
        is_code = name.startswith("code/")
        if unread := [one.store for one in report.stores if one.models is None and one.store.has_code == is_code]:
            raise StackgenError(f"can't tell whether {unread[0].name} contains {name}: {unread[0].reason}",
                                "run the command as root")  # fmt: skip
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"the models are: {', '.join(known) or 'none'}"
        raise StackgenError(f"no store on this machine contains {'' if is_code else 'the model '}{name}", hint)
    for store, one in found:
        if one.stacks:
            users = ", ".join(f"{entry.name} ({entry.folder})" for entry in one.stacks)
            raise StackgenError(
                f"{name} in {store.store.name} is in use: {users}. Nothing was removed",
                "run `stackgen down`, and delete the folders of these stacks. You can also remove compiled code "
                "after the model's flags have changed and the stack runs with the new flags"
                if one.model.is_code
                else "remove the model from stack.yaml of these stacks, or delete their folders",
            )
        if store.doubts:
            doubt = store.doubts[0]
            why = (
                f", because its stack file can't be read: {doubt.reason}"
                if doubt.folder
                else f": it mounts {store.store.name}, but is not a stack of stackgen"
            )
            raise StackgenError(
                f"{doubt.name} may use {name}{why}. Nothing was removed",
                f"repair {doubt.folder}/stack.yaml, or delete this folder" if doubt.folder else "remove the container",
            )
    return found


def _remove_models(args: Namespace, found: Sequence[tuple[StoreUse, ModelUse]], report: StorageReport) -> int:
    doubts = {one.folder or one.name: one for store in report.stores for one in store.doubts if args.unused}
    for doubt in doubts.values():
        reason = f": {doubt.reason or doubt.folder}" if doubt.folder else ""
        why = "can't be read" if doubt.folder else "is not a stack of stackgen"
        note(f"{doubt.name} {why}, so everything that it may use is kept{reason}")
    if not found:
        why = "stacks may use it" if doubts else "stacks use everything that stackgen has downloaded or compiled"
        print_data(args, {"removed": []}, [f"nothing was removed: {why}"])
        return 1 if doubts else 0
    names = list(dict.fromkeys(one.model.repository for _, one in found))
    size = size_text(sum(one.model.size for _, one in found))
    for store, one in found:
        note(f"{one.model.repository}  {size_text(one.model.size)}  in {store.store.name}: no known stack uses it")
    note("stackgen can't see stopped stacks of other users")
    refusal = "nothing was removed. To remove without a question, add --yes"
    what = "compiled code" if all(one.model.is_code for _, one in found) else "weights"
    mixed = what == "weights" and any(one.model.is_code for _, one in found)
    if not confirm(f"delete {size} of {what}{' and compiled code' if mixed else ''}?", args.yes, refusal):
        print_data(args, {"removed": []}, [])
        return 2
    for store, one in found:
        remove_models(store.store, [one.model.repository])
    print_data(args, {"removed": names}, [f"removed {name}" for name in names])
    return 0


def _remove_volumes(args: Namespace, stores: Sequence[StoreUse]) -> int:
    for store in stores:
        if store.volume and store.volume.users:
            raise StackgenError(
                f"{store.store.name} is in use: {_describe_users(store.volume)}. Nothing was removed",
                "run `stackgen down FOLDER`, which removes the containers of a stack, even if they have stopped",
            )
        # in a store that can't be read, every stack that names it may have its models
        needed = store.stacks if store.models is None else [entry for one in store.models for entry in one.stacks]
        if needed:
            users = dict.fromkeys(f"{entry.name} ({entry.folder})" for entry in needed)
            raise StackgenError(
                f"{store.store.name} contains models of stacks that are down: {', '.join(users)}. Nothing was removed",
                "delete the folders of these stacks, or remove single models: `stackgen storage remove ORG/MODEL`",
            )
    names = [store.store.name for store in stores]
    for name in names:
        note(f"no known stack uses {name}. stackgen can't see stopped stacks of other users")
    refusal = "nothing was removed. To remove the volume without a question, add --yes"
    removed = confirm(f"delete {', '.join(names)} with all downloaded files in it?", args.yes, refusal)
    for name in names if removed else ():
        remove_shared_volume(name)
    print_data(args, {"removed": names if removed else []}, [f"removed {one}" for one in names] if removed else [])
    return 0 if removed else 2


def _describe_users(volume: SharedVolume) -> str:
    return ", ".join(f"{stack} ({folder})" if folder else stack for stack, folder in volume.users.items())
