"""Which key a Compose file may have where, by the schema of the Compose Specification of June 2026.

`data/compose_fields.tsv` has the keys of each place, from schema/compose-spec.json of compose-spec/compose-spec (commit
170098b). In a place, `*` is a name that the user chooses, and `#` is an entry of a list.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Placement", "advise_on_key"]

DATA = Path(__file__).with_name("data") / "compose_fields.tsv"
# the first Compose version with a key, from the Compose file reference
SINCE = {"gpus": "2.30", "provider": "2.36"}
SHOWN = 3


class Placement(NamedTuple):
    """What is wrong with a key, and the step that fixes it."""

    problem: str
    step: str


def advise_on_key(path: str, key: str) -> Placement:
    """Why Compose may refuse `key` at `path` (`services.api.deploy`, "" for the file itself), and what to do."""
    names = [] if path in ("", "(root)") else path.split(".")
    place = _find_place(names)
    own = _fields().get(place, frozenset())
    where = path if names else "the top level of the file"
    if key in own:
        newer = f"version {SINCE[key]} or newer" if key in SINCE else "a newer version"
        cheaper = "; if you can't update Compose, use deploy.resources.reservations.devices" if key == "gpus" else ""
        return Placement(
            f"`{key}` is a valid key of {where}, but this version of Compose is too old to support it",
            f"update Compose to {newer} (`docker compose version` prints the installed version){cheaper}",
        )
    if names[:1] == ["services"] and len(names) == 2 and names[1] in _fields()[""]:
        return Placement(
            f"`{names[1]}:` is a section of the file, but it is indented below `services:`, so Compose reads it as a "
            "service",
            f"move `{names[1]}:` to the start of its line, without indentation",
        )
    if elsewhere := _find_elsewhere(key, names):
        return Placement(f"`{key}` is not allowed in {where}", f"move `{key}` to {' or '.join(elsewhere)}")
    if close := get_close_matches(key, own, n=1, cutoff=0.7):
        return Placement(f"`{key}` is not a key of {where}", f"did you mean `{close[0]}`?")
    return Placement(f"`{key}` is not a key of {where}", f"remove `{key}`, or look up {where} in the Compose file "
                      "reference; a new key needs a newer version of Compose (`docker compose version`)")  # fmt: skip


def _find_place(names: list[str]) -> str:
    """The place in the schema that the path has; "" if there is none."""
    for place in _fields():
        parts = place.split(".")
        if len(parts) == len(names) and all(part in ("*", name) or (part == "#" and name.isdigit())
                                            for part, name in zip(parts, names, strict=True)):  # fmt: skip
            return place
    return "" if not names else "?"


def _find_elsewhere(key: str, names: list[str]) -> list[str]:
    """The places nearest to the path that have the key, with the names of the path."""
    found = []
    for place, fields in _fields().items():
        parts = place.split(".") if place else []
        # an entry of a list has keys of its own, such as the `target` of a port
        if key in fields and "#" not in parts and parts[:1] == names[:1] and "*" not in parts[2:]:
            named = [names[index] if part == "*" and index < len(names) else part for index, part in enumerate(parts)]
            same = next((index for index, (a, b) in enumerate(zip(named, names, strict=False)) if a != b),
                        min(len(named), len(names)))  # fmt: skip
            found.append((-same, len(named), ".".join(named)))
    if not found and key in _fields()[""]:
        return ["the top level of the file (without indentation)"]
    return [place for *_, place in sorted(found)[:SHOWN]]


@cache
def _fields() -> dict[str, frozenset[str]]:
    rows = (line.split("\t") for line in DATA.read_text("utf-8").splitlines()[1:])
    return {place: frozenset(fields.split(" ")) for place, fields in rows}
