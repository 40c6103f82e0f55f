"""Joins values of several Compose files as Compose does: overrides, `extends` and `include`.

Sources: docs.docker.com, "Merge Compose files" and "extends"; compose-go 2.9, override/merge.go and paths/.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["OnReplace", "merge", "rebase"]

# called with the path of a value that another one replaces, and the value
OnReplace = Callable[[str, Any], None]
# a later value replaces the whole earlier one
REPLACED = ("command", "entrypoint", "test")
# lists of `NAME=value`, which are the same as a mapping
PAIRS = ("environment", "labels", "annotations", "sysctls", "args")
# lists of names, which are the same as a mapping with empty values
NAMES = ("networks", "depends_on")
# lists whose entries have a key of their own: the last part of `SOURCE:TARGET`
BY_TARGET = ("volumes", "devices")


def merge(base: Any, over: Any, on_replace: OnReplace, path: str = "") -> Any:
    """Returns `base` with the values of `over`, which win. `path` is where both are."""
    name = path.rpartition(".")[2]
    if name in REPLACED:
        on_replace(path, base)
        return over
    if name in (*PAIRS, *NAMES) and (isinstance(base, dict) or isinstance(over, dict) or name in PAIRS):
        base, over = (_as_mapping(one, by_name=name in NAMES) for one in (base, over))
    if name == "build":
        base, over = ({"context": one} if isinstance(one, str) else one for one in (base, over))
    if isinstance(base, dict) and isinstance(over, dict):
        merged = dict(base)
        for key, value in over.items():
            inner = f"{path}.{key}".lstrip(".")
            merged[key] = merge(base[key], value, on_replace, inner) if key in base else value
        return merged
    if isinstance(base, list) and isinstance(over, list):
        return _join(base, over, on_replace, path, by_target=name in BY_TARGET)
    if base != over:
        on_replace(path, base)
    return over


def _join(base: list[Any], over: list[Any], on_replace: OnReplace, path: str, *, by_target: bool) -> list[Any]:
    targets = {_target(one) for one in over} if by_target else set()
    kept = []
    for one in base:
        if by_target and _target(one) in targets and one not in over:
            on_replace(path, one)
        elif one not in over:
            kept.append(one)
    return [*kept, *over]


def _target(entry: Any) -> str:
    if isinstance(entry, dict):
        return str(entry.get("target", "")).rstrip("/")
    parts = str(entry).split(":")
    return parts[1 if len(parts) > 1 else 0].rstrip("/")


def _as_mapping(value: Any, *, by_name: bool) -> Any:
    if not isinstance(value, list) or any(isinstance(one, (dict, list)) for one in value):
        return value
    if by_name:
        return {str(one): None for one in value}
    return {str(one).partition("=")[0]: str(one).partition("=")[2] if "=" in str(one) else None for one in value}


def rebase(service: dict[str, Any], folder: str) -> dict[str, Any]:
    """The service of a file in `folder`, with relative paths as a file outside of `folder` writes them."""
    if folder in ("", "."):
        return service
    moved = dict(service)
    if isinstance(service.get("volumes"), list):
        moved["volumes"] = [_move_volume(one, folder) for one in service["volumes"]]
    if "env_file" in service:
        moved["env_file"] = _each(service["env_file"], lambda one: _move_entry(one, "path", folder))
    if isinstance(build := service.get("build"), str):
        moved["build"] = _move(build, folder)
    elif isinstance(build, dict):
        moved["build"] = {**build, "context": _move(str(build.get("context", ".")), folder)}
    base = service.get("extends")
    if isinstance(base, dict) and base.get("file"):
        moved["extends"] = {**base, "file": _move(str(base["file"]), folder)}
    return moved


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    return [change(one) for one in value] if isinstance(value, list) else change(value)


def _move_entry(entry: Any, key: str, folder: str) -> Any:
    return {**entry, key: _move(str(entry.get(key, "")), folder)} if isinstance(entry, dict) else _move(entry, folder)


def _move_volume(volume: Any, folder: str) -> Any:
    if isinstance(volume, dict):
        return _move_entry(volume, "source", folder) if volume.get("type") == "bind" else volume
    source, colon, rest = str(volume).partition(":")
    return f"{_move(source, folder)}{colon}{rest}" if source.startswith(".") else volume


def _move(path: Any, folder: str) -> Any:
    if not isinstance(path, str) or os.path.isabs(path) or path.startswith(("~", "$")) or "://" in path:
        return path
    joined = os.path.normpath(os.path.join(folder, path))
    return joined if joined.startswith(("/", "..")) else f"./{joined}"
