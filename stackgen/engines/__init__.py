"""The engines, one module each. `names()` lists them; `get()` imports one on demand.

To add an engine, add a module here that defines `ENGINE` (see `docs/how-to/add-an-engine.md`). No other code changes.
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
    files = Path(__file__).parent.glob("*.py")
    return tuple(sorted(file.stem for file in files if file.stem not in ("__init__", "base")))


@cache
def get(name: str) -> Engine:
    """Imports and returns the engine called `name`. Raises KeyError if there is none."""
    if name not in names():
        raise KeyError(name)
    engine: Engine = import_module(f"stackgen.engines.{name}").ENGINE
    return engine
