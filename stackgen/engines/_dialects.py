"""How the API of each version of an engine deviates from the OpenAI API: data in `stackgen/flags/dialects.json`.

An entry is a deviation (`check`, `pattern`, `note`), or `fields` of `Dialect`. `recorded` is the version whose
responses were recorded. `since` is the first version with the deviation, and `before` the first one without it. Entries
with `plain` are for an engine without stackgen's launcher. A new version with another API needs data, and no code.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from stackgen import flags
from stackgen.flags import PINNED
from stackgen.plan import Deviation, Dialect

__all__ = ["dialect_of"]


def dialect_of(base: Dialect, version: str | None = None, *, plain: bool = True) -> Dialect:
    """The dialect of a version of the engine `base.name` (None: the pinned one). `base` has what all versions share.

    `plain` is whether the server runs without stackgen's launcher.
    """
    wanted = _numbers(version or PINNED[base.name])
    deviations, fields = [], dict[str, Any]()
    for entry in _load().get(base.name, ()):
        if entry.get("plain") and not plain:
            continue
        first, end = entry.get("since"), entry.get("before")
        if (first and wanted < _numbers(first)) or (end and wanted >= _numbers(end)):
            continue
        if "fields" in entry:
            fields |= {name: _freeze(value) for name, value in entry["fields"].items()}
        else:
            deviations.append(Deviation(entry["check"], entry["pattern"], entry["note"]))
    return replace(base, deviations=tuple(deviations), **fields)


def _numbers(version: str) -> tuple[int, ...]:
    # 0.32 is 0.32.0
    return tuple([*(int(one) for one in re.findall(r"\d+", version)), 0, 0][:3])


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


@cache
def _load() -> dict[str, list[dict[str, Any]]]:
    path = Path(flags.__file__).with_name("dialects.json")
    found: dict[str, list[dict[str, Any]]] = json.loads(path.read_text("utf-8"))
    return found
