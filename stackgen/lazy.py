"""Heavy libraries that are imported at their first use, so that commands that don't need them start fast."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["LazyModule"]


class LazyModule:
    """Stands for the module `name`, and imports the module when an attribute is first read.

    Not `importlib.util.LazyLoader`: with Python 3.11, two threads that use a module at once can get an unfinished one.
    Python's own import has a lock. Raises ImportError at the first use, not before.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)
