"""Variables of shells and of Compose: `$NAME`, `${NAME}`, `${NAME:-default}` and so on, and what has no value."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["VARIABLE", "expand", "is_reference"]

# Compose's interpolation and POSIX parameter expansion share these forms
VARIABLE = re.compile(
    r"\$(?:\$|\{(?P<braced>\w+|[@*#?])(?:\[[@*]\])?(?:(?P<operator>:?[-=?+])(?P<word>(?:[^{}]|\$\{[^{}]*\})*))?\}"
    r"|(?P<plain>[A-Za-z_]\w*|[0-9@*#?!$]))"
)
# directories that have the same meaning everywhere
FOLDERS = {"HOME": "~", "PWD": "."}


def expand(text: str, values: Mapping[str, str], *, compose: bool = False) -> tuple[str, tuple[str, ...]]:
    """Returns `text` with the values of variables, and the names of variables that have none.

    A variable without a value stays in the text as `${NAME}`. `compose`: `$$` is a dollar sign, and an unset variable
    with `?` or without a default is unknown. HOME at the start of a path becomes `~`, and PWD becomes `.`.
    """
    unknown: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$" if compose else "$$"
        name = match["braced"] or match["plain"]
        value, operator = values.get(name), match["operator"] or ""
        if value is None and name in FOLDERS:
            value = FOLDERS[name]
        # with a colon, an empty value counts as unset
        is_set = value is not None and not (operator.startswith(":") and value == "")
        if operator.endswith("+"):
            return _inner(match["word"]) if is_set else ""
        if is_set:
            return value or ""
        if operator.endswith(("-", "=")):
            return _inner(match["word"])
        unknown.append(name)
        return f"${{{name}}}"

    def _inner(word: str | None) -> str:
        inner, missing = expand(word or "", values, compose=compose)
        unknown.extend(missing)
        return inner

    return VARIABLE.sub(replace, text), tuple(dict.fromkeys(unknown))


def is_reference(text: str, unknown: tuple[str, ...]) -> str:
    """The name of the variable that `text` consists of; "" for any other text."""
    return unknown[0] if len(unknown) == 1 and text == f"${{{unknown[0]}}}" else ""
