"""Did-you-mean for model names: the mistakes people make with them, then general likeness."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

__all__ = ["did_you_mean", "nearest", "resolve"]


def resolve(wanted: str, known: Iterable[str]) -> tuple[str, str]:
    """The name to ask for, and why it is another than `wanted`; the reason is empty where it is the same.

    Only a difference that leaves no doubt is bridged: the strictest of the rules that any name meets, where exactly
    one does. Else `wanted` comes back as it is; likeness is for hints (`did_you_mean`).
    """
    names = tuple(dict.fromkeys(known))
    if wanted not in names:
        for reason, key in RULES:
            found = [name for name in names if key(name) == key(wanted)]
            if found:
                return (found[0], reason) if len(found) == 1 else (wanted, "")
    return wanted, ""


def nearest(wanted: str, known: Iterable[str]) -> tuple[str, str] | None:
    """The name among `known` that `wanted` was probably meant to be, and how the two differ; None: none is near.

    Served names are compared exactly by vLLM and FastChat, so a difference in case already gives "not found".
    """
    # what was asked for was not meant to be itself
    names = tuple(name for name in known if name != wanted)
    for reason, key in RULES:
        same = key(wanted)
        for name in names:
            if key(name) == same:
                return name, reason
    # the last part alone: a shared organization would make any two of its models look alike
    parts = {_plain(_last(name)): name for name in reversed(names)}
    found = difflib.get_close_matches(_plain(_last(wanted)), parts, n=1, cutoff=0.6)
    return (parts[found[0]], "the names are alike") if found else None


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """One sentence for a hint: the nearest name, else all names, else that there is none."""
    names = tuple(known)
    if wanted in names:
        return (
            f"{wanted!r} is listed under this very name: it may be of a kind that can't chat, or have no place to run"
        )
    near = nearest(wanted, names)
    if near:
        return f"did you mean {near[0]!r}? ({near[1]})"
    if not names:
        return "the server lists no model at all"
    # a cloud lists hundreds
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"the server has: {shown}"


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]+", "-", name.casefold())


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


# the strictest rule first, over all names: an exact match but for case beats a likeness
RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("upper and lower case differ", str.casefold),
    ("'-', '.' and '_' differ", _plain),
    ("the organization is missing or differs", lambda name: _plain(_last(name))),
)
