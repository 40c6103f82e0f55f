"""HAProxy's configuration: words that it reads back unchanged.

Source: HAProxy 3.2's configuration manual, 2.2 "Quoting and escaping" (single quotes keep everything but themselves)
and 2.3 "Environment variables".
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["quoted"]

_PLAIN = re.compile(r"[A-Za-z0-9_./:@+=-]+")


def quoted(value: Any) -> str:
    """One whole word; numbers as they are. Raises TypeError for what is no text or number, ValueError for a line end.

    Source: as above; a line is a statement's end, and no quoting takes one in.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"not a word: {value!r}")
    if any(ch in value for ch in "\n\r\0"):
        raise ValueError(f"holds a line end: {value!r}")
    if _PLAIN.fullmatch(value):
        return value
    # a single quote can't stand inside single quotes: they end, an escaped one follows, they start again
    return "'" + value.replace("'", "'\\''") + "'"
