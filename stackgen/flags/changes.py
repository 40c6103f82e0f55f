"""What changes between two versions of an engine, from the tables that `scripts/generate_flags.py` reads.

The tables contain what the programs have. They don't say what a change means: for that, read the release notes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stackgen.flags import load_table

__all__ = ["EngineChanges", "compare_versions", "count_open_paths"]


@dataclass(frozen=True, slots=True)
class EngineChanges:
    """The differences of two versions.

    `renamed` maps a name that is gone to one that the same flag still has. `defaults` and `values` map flags to (old,
    new): a default that is None is chosen by the program, and `values` are the values that were removed and added.
    `open_paths` are paths that need no key, and are new or needed one before. `architectures_removed` and
    `types_removed` are kinds of models and of weights that the new version does not load.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    defaults: tuple[tuple[str, Any, Any], ...] = ()
    values: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = ()
    paths_added: tuple[str, ...] = ()
    paths_removed: tuple[str, ...] = ()
    open_paths: tuple[str, ...] = ()
    metrics_added: tuple[str, ...] = ()
    metrics_removed: tuple[str, ...] = ()
    log_removed: tuple[str, ...] = ()
    architectures_added: tuple[str, ...] = ()
    architectures_removed: tuple[str, ...] = ()
    types_removed: tuple[str, ...] = ()
    cuda: tuple[str | None, str | None] = (None, None)


def _by_name(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: entry for entry in table["flags"] for name in entry["names"]}


def _added(before: dict[str, Any], after: dict[str, Any], key: str) -> tuple[str, ...]:
    return tuple(sorted(set(after.get(key, ())) - set(before.get(key, ()))))


def _open_paths(table: dict[str, Any]) -> list[str]:
    guarded, unguarded = table.get("guarded"), tuple(table.get("unguarded", ()))
    return [one for one in table.get("paths", ())
            if (not one.startswith(tuple(guarded)) if guarded else one.startswith(unguarded))]  # fmt: skip


def count_open_paths(engine: str, version: str) -> int:
    """How many paths of a version need no key."""
    return len(_open_paths(load_table(engine, version)))


def compare_versions(engine: str, old: str, new: str) -> EngineChanges | None:
    """The changes from version `old` to version `new`; None if one of them has no table."""
    before, after = load_table(engine, old), load_table(engine, new)
    if not before or not after:
        return None
    was, now = _by_name(before), _by_name(after)
    renamed, gone = {}, []
    for name in sorted(set(was) - set(now)):
        # an alias of the same flag
        left = next((one for one in was[name]["names"] if one in now), "")
        if left:
            renamed[name] = left
        else:
            gone.append(name)
    # names of one flag differ together: one row for each flag
    both = [name for name in sorted(set(was) & set(now)) if name == now[name]["names"][0]]
    values = []
    for name in both:
        first, second = ({*one.get("choices", ()), *one.get("values", ())} for one in (was[name], now[name]))
        if first and second and first != second:
            values.append((name, tuple(sorted(first - second)), tuple(sorted(second - first))))
    return EngineChanges(
        added=tuple(name for name in sorted(set(now) - set(was)) if not any(one in was for one in now[name]["names"])),
        removed=tuple(gone),
        renamed=tuple(renamed.items()),
        defaults=tuple((name, was[name].get("default"), now[name].get("default")) for name in both
                       if was[name].get("default") != now[name].get("default")),
        values=tuple(values),
        paths_added=_added(before, after, "paths"),
        paths_removed=_added(after, before, "paths"),
        open_paths=tuple(sorted(set(_open_paths(after)) - set(_open_paths(before)))),
        metrics_added=_added(before, after, "metrics"),
        metrics_removed=_added(after, before, "metrics"),
        log_removed=_added(after, before, "log"),
        architectures_added=_added(before, after, "architectures"),
        architectures_removed=_added(after, before, "architectures"),
        types_removed=_added(after, before, "types"),
        cuda=(before.get("cuda"), after.get("cuda")),
    )  # fmt: skip
