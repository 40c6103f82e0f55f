"""HAProxy configuration: quotes arguments so that HAProxy reads them back unchanged.

Source: HAProxy 3.2's configuration manual, 2.2 "Quoting and escaping" (inside single quotes, only the single quote is
special) and 2.3 "Environment variables".
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["quote"]

_PLAIN = re.compile(r"[A-Za-z0-9_./:@+=-]+")


def quote(value: Any) -> str:
    """Formats `value` as one argument. Numbers are printed unchanged.

    Raises TypeError if `value` is neither text nor a number, ValueError if it contains a line break.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"HAProxy values must be text or numbers, not {value!r}")
    # a line break ends a statement, and no quoting prevents that
    if any(ch in value for ch in "\n\r\0"):
        raise ValueError(f"HAProxy values must not contain line breaks: {value!r}")
    if _PLAIN.fullmatch(value):
        return value
    # single quotes can't contain one: close them, add an escaped quote, open them again
    return "'" + value.replace("'", "'\\''") + "'"
