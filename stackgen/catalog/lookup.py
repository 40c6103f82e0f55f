"""What the catalog knows about a model by name: parsers, license, access, and the first version of vLLM.

Two files: `snapshot.json` has vLLM's recipes, by repository. `families.json` has families of models, by a pattern, from
the documentation of vLLM, SGLang and the models. A repository is more exact than a family, so the snapshot comes first.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from stackgen.catalog.entry import Entry, Variant
from stackgen.catalog.flags import PARSER_FLAGS, Parser, accepts
from stackgen.catalog.store import Catalog, load_catalog
from stackgen.flags import PINNED, load_flags
from stackgen.flags.arguments import suggest_value

__all__ = [
    "Access", "Fact", "Match", "find_access", "find_model", "find_non_thinking", "find_parser", "find_parsers",
    "find_sglang_parsers", "find_tool_parser", "find_variant_parser", "is_same_kind", "match_variant", "own_variant",
    "read_families",
]  # fmt: skip

# the folder of a model in a Hub cache
CACHED = re.compile(r"models--([^/]+?)--([^/]+)")

# words of a name that make it another checkpoint, which was trained in another way; and a date such as 2507
KINDS = frozenset({"instruct", "thinking", "reasoning", "base", "chat", "mini", "multimodal"})
DATED = re.compile(r"(?<=-)2[4-9](?:0[1-9]|1[0-2])(?=-|$)")


@dataclass(frozen=True, slots=True)
class Fact:
    """A value, where it comes from in a few words, and the day (ISO) to which the source goes back.

    `automatic`: the engine sets the value itself, so no field is needed.
    """

    value: str
    origin: str
    date: str
    automatic: bool = False


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
            whole.setdefault(one.model.lower(), match_variant(entry, one))
    # the model itself wins over a variant of another one
    whole |= {entry.model.lower(): Match(entry, own_variant(entry)) for entry in catalog.snapshot.models}
    short: dict[str, list[Match]] = {}
    for name, match in whole.items():
        short.setdefault(name.rpartition("/")[2], []).append(match)
    return {name: found[0] for name, found in short.items() if len({one.entry.model for one in found}) == 1} | whole


def match_variant(entry: Entry, variant: Variant) -> Match:
    """The variant with what the recipe says of it.

    A recipe may list another checkpoint as a variant, such as Qwen3-235B-A22B-FP8 in that of -Instruct-2507. Then the
    context length and the parsers of the recipe are not facts of the variant.
    """
    if is_same_kind(entry, variant):
        return Match(entry, variant)
    unknown = dict.fromkeys(("context", "tool_call_parser", "reasoning_parser", "chat_template"))
    return Match(entry.model_copy(update=unknown), variant)


def is_same_kind(entry: Entry, variant: Variant) -> bool:
    """Whether the variant is the entry's own model, perhaps quantized or of another size."""
    return _kind(entry.model) == _kind(variant.model)


def _kind(repository: str) -> frozenset[str]:
    return frozenset(re.split(r"[-_.]", repository.rpartition("/")[2].lower())) & KINDS | frozenset(
        DATED.findall(repository)
    )


def own_variant(entry: Entry) -> Variant:
    """The variant with the repository of the model itself, else the first."""
    return next((one for one in entry.variants if one.model == entry.model), entry.variants[0])


def find_parser(field: Parser, *names: str, version: str = PINNED["vllm"]) -> Fact | None:
    """The value of `field` for the first name that the catalog knows, if this version of vLLM has the parser.

    A name is a repository, the path of a folder, or a served name. Without a table of the version, the value is not
    checked.
    """
    return next((fact for name in names for fact in find_parsers(field, name, version)), None)


def find_variant_parser(field: Parser, entry: Entry, variant: Variant, version: str = PINNED["vllm"]) -> Fact | None:
    """The value of `field` for a variant; for another checkpoint, without what is known of the entry's own model."""
    return find_parser(field, variant.model, *((entry.model,) if is_same_kind(entry, variant) else ()),
                       version=version)  # fmt: skip


def find_parsers(field: Parser, name: str, version: str = PINNED["vllm"]) -> list[Fact]:
    """All values that the catalog knows for the name, the most exact first, as `find_parser` does."""
    return [fact for fact in _parsers(field, name) if accepts(field, fact.value, version)]


def _parsers(field: Parser, name: str) -> list[Fact]:
    found = []
    if (match := find_model(name)) and (value := getattr(match.entry, field)):
        found.append(Fact(value, "vLLM's recipe for the model", match.entry.updated))
    date, families = read_families()["read"], _patterns("families" if field == "tool_call_parser" else "reasoning")
    found += [Fact(one["parser"], "vLLM itself" if one.get("automatic") else "the documentation", date,
                   bool(one.get("automatic"))) for pattern, one in families if pattern.search(name)]  # fmt: skip
    return found


def find_sglang_parsers(field: Parser, name: str) -> list[Fact]:
    """The parsers of SGLang that read the format of the model, the best first; without those that 0.5.23 lacks."""
    date, table = read_families()["read"], "sglang_families" if field == "tool_call_parser" else "sglang_reasoning"
    known = load_flags("sglang")
    assert known is not None  # the pinned version has a table
    family = next((one for pattern, one in _patterns(table) if pattern.search(name)), None)
    values = (family["parser"], *family.get("same", ())) if family else ()
    origin = "SGLang's source code" if family and "source" in family else "SGLang's documentation"
    return [Fact(value, origin, date) for value in values
            if suggest_value(known.by_name[PARSER_FLAGS[field]], value) is None]  # fmt: skip


def find_non_thinking(name: str) -> str:
    """The source that says that the model does not think, so it needs no reasoning parser; empty if none says so."""
    return next((one["source"] for pattern, one in _patterns("no_reasoning") if pattern.search(name)), "")


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
    """families.json: `families` and `reasoning` with a `parser` each, both also of SGLang, and `access`."""
    data: dict[str, Any] = json.loads(Path(__file__).with_name("families.json").read_text("utf-8"))
    return data


@cache
def _patterns(table: str) -> tuple[tuple[re.Pattern[str], dict[str, Any]], ...]:
    # folders and served names often use other separators and letter cases than the repository
    return tuple((re.compile(rf"(?<![A-Za-z0-9])(?:{one['pattern']})", re.I), one) for one in read_families()[table])


@cache
def _access() -> tuple[tuple[re.Pattern[str], dict[str, Any]], ...]:
    return tuple((re.compile(one["pattern"], re.I), one) for one in read_families()["access"])
