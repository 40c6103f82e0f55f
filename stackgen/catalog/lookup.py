"""What the catalog knows about a model by name: parsers, license, access, and the first version of vLLM.

Two files: `snapshot.json` has vLLM's recipes, by repository. `families.json` has families of models, by a pattern, from
vLLM's and the models' own documentation. A repository is more exact than a family, so the snapshot comes first.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from stackgen.catalog.entry import Entry, Variant
from stackgen.catalog.flags import Parser, accepts
from stackgen.catalog.store import Catalog, load_catalog
from stackgen.flags import PINNED

__all__ = [
    "Access", "Fact", "Match", "find_access", "find_model", "find_parser", "find_tool_parser",
    "own_variant", "read_families",
]  # fmt: skip

# the folder of a model in a Hub cache
CACHED = re.compile(r"models--([^/]+?)--([^/]+)")


@dataclass(frozen=True, slots=True)
class Fact:
    """A value, where it comes from in a few words, and the day (ISO) to which the source goes back."""

    value: str
    origin: str
    date: str


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use a model: the `license`, "" if unknown, and whether the Hub asks for consent (None: unknown)."""

    license: str
    gated: bool | None
    source: str
    date: str


class Match(NamedTuple):
    """A model of the catalog, and the variant whose repository was asked for."""

    entry: Entry
    variant: Variant


def find_model(name: str) -> Match | None:
    """The model with this repository, this folder in a Hub cache, or this name without its organization."""
    cached = CACHED.search(name)
    plain = (f"{cached[1]}/{cached[2]}" if cached else name).rstrip("/").lower()
    found = _by_name(load_catalog()).get(plain)
    # a folder or a served name often has the name of the repository
    return found or _by_name(load_catalog()).get(plain.rpartition("/")[2])


@cache
def _by_name(catalog: Catalog) -> dict[str, Match]:
    whole: dict[str, Match] = {}
    for entry in catalog.snapshot.models:
        for one in entry.variants:
            whole.setdefault(one.model.lower(), Match(entry, one))
    # the model itself wins over a variant of another one
    whole |= {entry.model.lower(): Match(entry, own_variant(entry)) for entry in catalog.snapshot.models}
    short: dict[str, list[Match]] = {}
    for name, match in whole.items():
        short.setdefault(name.rpartition("/")[2], []).append(match)
    return {name: found[0] for name, found in short.items() if len({one.entry.model for one in found}) == 1} | whole


def own_variant(entry: Entry) -> Variant:
    """The variant with the repository of the model itself, else the first."""
    return next((one for one in entry.variants if one.model == entry.model), entry.variants[0])


def find_parser(field: Parser, *names: str, version: str = PINNED["vllm"]) -> Fact | None:
    """The value of `field` for the first name that the catalog knows, if this version of vLLM has the parser.

    A name is a repository, the path of a folder, or a served name. Without a table of the version, the value is not
    checked.
    """
    return next((fact for name in names for fact in _parsers(field, name) if accepts(field, fact.value, version)), None)


def _parsers(field: Parser, name: str) -> list[Fact]:
    found = []
    if (match := find_model(name)) and (value := getattr(match.entry, field)):
        found.append(Fact(value, "vLLM's recipe for the model", match.entry.updated))
    if field == "tool_call_parser":
        data = read_families()
        found += [Fact(one["parser"], "the documentation", data["read"])
                  for pattern, one in _patterns() if pattern.search(name)]  # fmt: skip
    return found


def find_tool_parser(*names: str) -> str:
    """The value for `tool_call_parser` of the first name that the catalog knows; empty if it knows none."""
    fact = find_parser("tool_call_parser", *names)
    return fact.value if fact else ""


def find_access(model: str) -> Access:
    """The license of a repository, and whether it is gated, as far as a source says so."""
    for pattern, one in _access():
        if pattern.match(model):
            return Access(one.get("license", ""), one.get("gated"), one["source"], one["read"])
    return Access("", None, "", "")


@cache
def read_families() -> dict[str, Any]:
    """families.json: `families` with a `parser` each, and `access` with licenses."""
    data: dict[str, Any] = json.loads(Path(__file__).with_name("families.json").read_text("utf-8"))
    return data


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], dict[str, str]], ...]:
    # folders and served names often use other separators and letter cases than the repository
    return tuple(
        (re.compile(rf"(?<![A-Za-z0-9])(?:{one['pattern']})", re.I), one) for one in read_families()["families"]
    )


@cache
def _access() -> tuple[tuple[re.Pattern[str], dict[str, Any]], ...]:
    return tuple((re.compile(one["pattern"], re.I), one) for one in read_families()["access"])
