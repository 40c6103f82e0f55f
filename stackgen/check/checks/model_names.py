"""Suggests the model name that was probably meant: by the usual mistakes first, then by similarity."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

__all__ = ["did_you_mean", "nearest", "resolve"]


def resolve(wanted: str, known: Iterable[str]) -> tuple[str, str]:
    """Returns the name to use for `wanted`, and why the two names differ (empty if they are equal).

    Only an unambiguous difference is resolved: the strictest rule with a match must match exactly one name. Otherwise
    `wanted` is returned unchanged. Names that are only similar appear in hints alone (`did_you_mean`).
    """
    names = tuple(dict.fromkeys(known))
    if wanted not in names:
        for reason, key in RULES:
            matches = [name for name in names if key(name) == key(wanted)]
            if matches:
                return (matches[0], reason) if len(matches) == 1 else (wanted, "")
    return wanted, ""


def nearest(wanted: str, known: Iterable[str]) -> tuple[str, str] | None:
    """Returns the name among `known` that `wanted` probably means, and how the two differ; None if no name is close.

    vLLM and FastChat compare served names exactly, so a difference in case alone already gives "not found".
    """
    # a suggestion of the same name helps nobody
    names = tuple(name for name in known if name != wanted)
    for reason, key in RULES:
        same = key(wanted)
        for name in names:
            if key(name) == same:
                return name, reason
    # only the part after the slash: a shared organization would make any two of its models look similar
    parts = {_normalized(_last_part(name)): name for name in reversed(names)}
    close = difflib.get_close_matches(_normalized(_last_part(wanted)), parts, n=1, cutoff=0.6)
    return (parts[close[0]], "the names are similar") if close else None


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """Returns one sentence for a hint: the nearest name, else all names, else that the server lists no models."""
    names = tuple(known)
    # the server lists the name and still refuses it: no other spelling will help
    if wanted in names:
        return (
            f"the server lists {wanted!r}, but the model may not support chat, or no instance of the model may "
            "be running"
        )
    near = nearest(wanted, names)
    if near:
        return f"did you mean {near[0]!r}? ({near[1]})"
    if not names:
        return "the server lists no models"
    # a cloud lists hundreds of models
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"the server lists: {shown}"


def _normalized(name: str) -> str:
    return re.sub(r"[-_. ]+", "-", name.casefold())


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


# the strictest rule first: a match that differs only in case beats a match of a looser rule
RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("upper and lower case differ", str.casefold),
    ("'-', '.' and '_' differ", _normalized),
    ("the organization in the name is missing or different", lambda name: _normalized(_last_part(name))),
)
