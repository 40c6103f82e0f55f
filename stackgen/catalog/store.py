"""The snapshot in use: the one that stackgen has, or a newer one of `stackgen models sync` in this user's cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stackgen.catalog.entry import MAX_BYTES, Snapshot, parse_snapshot
from stackgen.errors import StackgenError

__all__ = ["Catalog", "cache_file", "load_catalog", "load_packaged"]


@dataclass(frozen=True, eq=False, slots=True)
class Catalog:
    """The snapshot in use. `path`: the file in the cache, or "" for stackgen's own. `problem`: of a file not in use."""

    snapshot: Snapshot
    path: str = ""
    problem: str = ""


def cache_file() -> Path:
    """Where `sync` writes: `$XDG_CACHE_HOME/stackgen/catalog.json`, by default in `~/.cache`."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG Base Directory Specification says that a relative path must be ignored
    base = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.cache"))
    return base / "stackgen" / "catalog.json"


@cache
def load_packaged() -> Snapshot:
    """The snapshot that this version of stackgen has."""
    path = Path(__file__).with_name("snapshot.json")
    return parse_snapshot(path.read_bytes(), path.name)


@cache
def load_catalog() -> Catalog:
    """The snapshot in use. A file in the cache that is damaged or older is not used; never raises."""
    own, path = load_packaged(), cache_file()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        synced = parse_snapshot(data, str(path))
    except OSError:
        return Catalog(own)
    except StackgenError as error:
        return Catalog(own, problem=error.message)
    if synced.updated < own.updated:
        return Catalog(own)
    return Catalog(synced, str(path))
