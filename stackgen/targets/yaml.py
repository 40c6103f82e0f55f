"""Plain YAML that only one program reads, and no Compose before it: a dollar stays one."""

from __future__ import annotations

from typing import Any

from stackgen.plan import EnvRef
from stackgen.targets import compose

__all__ = ["scalar"]


def scalar(value: Any) -> str:
    """One whole YAML scalar. Raises TypeError for anything but one, and for references that only Compose resolves."""
    if isinstance(value, EnvRef):
        raise TypeError(f"nobody resolves it here: {value!r}")
    printed = compose.scalar(value)
    # Compose's scalars differ in the dollar alone, and text that holds one is always quoted
    return compose.quoted(value) if isinstance(value, str) and "$" in value else printed
