"""The engines, one module each. `names()` lists them; `get()` imports one on demand.

To add an engine, add a module here that defines `ENGINE` (see `docs/how-to/add-an-engine.md`). No other code changes.
Modules whose names start with `_` are parts of an engine.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stackgen.engines.base import Engine

__all__ = ["get", "names"]


@cache
def names() -> tuple[str, ...]:
    """Names of all engines, in alphabetical order."""
    # a new module is found by its file name, so there is no list to maintain
    files = Path(__file__).parent.glob("*.py")
    return tuple(sorted(file.stem for file in files if not file.stem.startswith("_") and file.stem != "base"))


@cache
def get(name: str) -> Engine:
    """Imports and returns the engine called `name`. Raises KeyError if there is none."""
    # without this test, import_module would also accept `base`, which is no engine
    if name not in names():
        raise KeyError(name)
    engine: Engine = import_module(f"stackgen.engines.{name}").ENGINE
    return engine
