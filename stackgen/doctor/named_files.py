"""Reads which files and folders stack.yaml names by a path: those that don't exist, and the modes of the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from stackgen.doctor.model_facts import Unreadable, find_unreadable
from stackgen.resolve.extras import split_local_path
from stackgen.resolve.unused import uses_storage
from stackgen.spec import is_local
from stackgen.stack.folder import Stack

__all__ = ["find_missing_files", "read_named_files", "resolve_path"]


def resolve_path(base: Path, path: str) -> Path:
    """The path of a field of the stack file in the folder `base`."""
    return Path(os.path.normpath(base / os.path.expanduser(path)))


def find_missing_files(stack: Stack, base: Path) -> Iterator[tuple[str, str]]:
    """Files and folders that don't exist, as (path in stack.yaml, file)."""
    for field, path in _engine_files(stack):
        if not resolve_path(base, path).exists():
            yield field, path
    tls = stack.spec.gateway.tls if stack.spec.gateway else None
    certificates = [("ca_certificates", stack.spec.ca_certificates)]
    certificates += [(f"gateway.tls.{name}", getattr(tls, name, None)) for name in ("certificate", "key")]
    for field, name in certificates:
        if name and _is_missing(resolve_path(base, name)):
            yield field, name
    storage = stack.spec.storage.path
    if storage and uses_storage(stack.plan) and not resolve_path(base, storage).is_dir():
        yield "storage.path", storage


def read_named_files(stack: Stack, base: Path) -> Iterator[tuple[str, str, tuple[Unreadable, ...]]]:
    """Files and folders that containers read, as (path in stack.yaml, file, what of it not everybody may read)."""
    named = [*_engine_files(stack)]
    for index, model in enumerate(stack.spec.models):
        words = [split_local_path(word)[1] for word in model.extra_args]
        named += [(f"models[{index}].extra_args[{number}]", path) for number, path in enumerate(words) if path]
        named += [(f"models[{index}].mounts[{number}].source", one.source) for number, one in enumerate(model.mounts)]
    if stack.spec.ca_certificates:
        named.append(("ca_certificates", stack.spec.ca_certificates))
    for field, path in named:
        full = resolve_path(base, path)
        if full.exists():
            # the content of another folder may be for anything
            inside = full.is_dir() and field.endswith((".path", ".speculative.model"))
            yield field, path, tuple(find_unreadable([full, *_list(full)] if inside else [full]))


def _engine_files(stack: Stack) -> Iterator[tuple[str, str]]:
    """Chat templates, adapters and draft models of all models, as (path in stack.yaml, file)."""
    for index, model in enumerate(stack.spec.models):
        named = [("chat_template", getattr(model, "chat_template", None))]
        adapters = getattr(model, "lora_adapters", ())
        # adapters from the Hub are downloaded, so they need not exist on this machine yet
        named += [(f"lora_adapters[{n}].path", one.path) for n, one in enumerate(adapters) if is_local(one.path)]
        draft = getattr(getattr(model, "speculative", None), "model", None)
        named += [("speculative.model", draft)] if draft and is_local(draft) else []
        yield from ((f"models[{index}].{field}", path) for field, path in named if path)


def _list(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    # its mode is the finding
    except OSError:
        return []


def _is_missing(path: Path) -> bool:
    """Whether nothing is at `path`. A key in a folder that only root can read, as certbot's, is not missing."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False
