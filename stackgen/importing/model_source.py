"""The model of an engine: an id of the Hub, or a path in the container, which becomes a path of this machine."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

from stackgen.importing.container import Container, find_host_path, local
from stackgen.importing.ledger import Draft, Item, Ledger, Word

__all__ = ["set_model"]

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
# the cache of the Hub: a snapshot is the Hub's id with a revision
SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40}|[\w.-]+)/?$")


def set_model(word: Word, items: Sequence[Item], container: Container, draft: Draft, ledger: Ledger) -> None:
    """Sets the field `model` from `word`. `items` get the outcome."""
    text = word.text.strip()

    def finish(model: str, reason: str = "") -> None:
        draft.fields["model"] = model
        for item in items:
            item.carry("model", draft, reason)

    if word.unknown:
        for item in items:
            item.drop(f"the source does not set {', '.join(word.unknown)}: set `model` in stack.yaml")
        return
    if found := SNAPSHOT.search(text):
        draft.fields["revision"] = found[3]
        finish(
            f"{found[1]}/{found[2]}",
            "a snapshot in the Hub's cache: stackgen downloads the same files by id and revision",
        )
        return
    is_path = text.startswith(("/", "./", "../", "~")) or text in (".", "..")
    if container.is_bare:
        # `models/llama` may be a folder as well as an id
        if not is_path and HUB_ID.fullmatch(text) and (container.folder / text).is_dir():
            finish(f"./{text}", "a folder next to the source has this name")
        else:
            finish(text)
        return
    if not is_path:
        _set_relative(text, container, finish)
        return
    path, mount = find_host_path(container, text)
    if path and mount:
        mount.used = True
        finish(path, "" if path == text else f"{text} is in the mount of {mount.source}")
    elif mount:
        mount.used = True
        reason = (
            f"the weights are in the Docker volume {mount.source}, and stackgen mounts folders: copy them, for example "
            "with `docker cp`, and set `model` to the folder"
        )
        _set_placeholder(text, items, draft, reason)
        mount.item.drop(f"the Docker volume {mount.source} holds the weights at {text}: copy them into a folder")
    else:
        reason = (
            f"{text} is a path in the image, or in a volume that the source does not show: copy the weights to this "
            "machine, and set `model` to the folder"
        )
        _set_placeholder(text, items, draft, reason)


def _set_relative(text: str, container: Container, finish: object) -> None:
    assert callable(finish)
    # a relative path in a container: `models/llama` with the working directory mounted
    if not HUB_ID.fullmatch(text):
        path, mount = find_host_path(container, posixpath.join("/", text))
        if path and mount:
            mount.used = True
            finish(path, f"{text} is in the mount of {mount.source}")
            return
    finish(text)


def _set_placeholder(text: str, items: Sequence[Item], draft: Draft, reason: str) -> None:
    draft.fields["model"] = local(posixpath.basename(text.rstrip("/")) or "model")
    for item in items:
        item.drop(reason)
