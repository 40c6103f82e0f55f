"""The public sources in `public/` and `unseen/`, and an account of their words that is independent of the importer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stackgen.importing.report import field_path
from stackgen.importing.source import Imported

HERE = Path(__file__).parent
MASK = "[secret]"
# keys in clear text in the sources, which no item shows
WEAK_KEYS = ("local-router", "your-secret-key")


@dataclass(frozen=True)
class Source:
    """A file of public origin, with other names, hosts and paths. `result` is what an import reaches."""

    path: Path
    origin: str
    date: str
    result: str


def read_sources() -> list[Source]:
    """All sources, in the order of their numbers."""
    found = []
    for folder in ("public", "unseen"):
        for line in (HERE / folder / "sources.tsv").read_text().splitlines():
            if not line.startswith("#"):
                name, origin, date, result = line.split("\t")
                found.append(Source(HERE / folder / name, origin, date, result))
    return found


def find_lost(text: str, found: Imported) -> Iterator[str]:
    """What the source says and no item of the import has: nothing, if no word was lost silently."""
    if found.kind in ("Compose file", "values of vLLM's production-stack"):
        yield from _lost_leaves(yaml.safe_load(text), "", found)
    else:
        yield from _lost_characters(text, found)
    yield from (f"{item.place}: {item.text} has no outcome" for item in found.ledger.items if not item.outcome)


def _lost_leaves(node: Any, place: str, found: Imported) -> Iterator[str]:
    places: dict[str, list[str]] = {}
    for item in found.ledger.items:
        places.setdefault(item.place, []).append(item.text)

    def walk(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{path}.{key}".lstrip("."))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                yield from walk(inner, f"{path}[{index}]")
        else:
            words = [text for at, texts in places.items() if at == path or at.startswith(f"{path}[") for text in texts]
            told = "".join(words)
            # YAML's own types print in another way than the source: numbers, true, null
            if not words or (isinstance(value, str) and not _covers(_bare(value), [_bare(told)])):
                yield f"{path}: {value}"

    yield from walk(node, place)


def _lost_characters(text: str, found: Imported) -> Iterator[str]:
    """Compares the characters of a script, without quotes, spaces and operators, with those of all items in order."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*(#|\[\w+\]$)", line)]
    # comments: after a space, outside quotes; the sources have no `#` in values
    source = "\n".join(re.sub(r"\s#\s.*$", " ", line) for line in lines)
    # the items of a unit's commands start after these names
    source = re.sub(r"(?m)^(?:ExecStart|Environment)=", "", source)
    for secret in WEAK_KEYS:
        source = source.replace(secret, MASK)
    # words of `bash -c`, of arrays and of variables have a second item each: the text of the script has the first
    items = [item for item in found.ledger.items if item.place.count("line ") < 2 + item.place.startswith("ExecStart")]
    told = [_bare(item.text) for item in items if "(" not in item.place or item.place.startswith("ExecStart")]
    rest = _bare(source)
    for word in told:
        at = _position(rest, word)
        if at is not None:
            rest = rest[: at[0]] + "\0" + rest[at[1] :]
    left = re.sub(r"[\0]+", " ", rest).strip()
    if re.search(r"[A-Za-z0-9]", left):
        yield f"characters that no item has: {left!r}"


def _position(text: str, word: str) -> tuple[int, int] | None:
    at = text.find(word) if word else -1
    return (at, at + len(word)) if at >= 0 else None


def _bare(text: str) -> str:
    return re.sub(r"[\s'\"\\`;&|()<>{}$]", "", text)


def _covers(value: str, words: list[str]) -> bool:
    joined = "".join(words)
    return value == joined or _bare(MASK) in joined


def find_untrue(found: Imported) -> Iterator[str]:
    """Items that claim to be in a field which does not exist, or which has another value."""
    for item in found.ledger.items:
        if item.outcome not in ("carried", "translated") or not item.field:
            continue
        path = field_path(found, item)
        exists, value = _look_up(found.assembled.data, path)
        if not exists:
            yield f"{item.place}: {item.text} claims to be in {path}, which the stack does not have"
        elif item.outcome == "carried" and not item.text.startswith(("-", MASK)) and not _has(value, item.text):
            yield f"{item.place}: {item.text} claims to be in {path}, which has {value!r}"


def _look_up(data: Any, path: str) -> tuple[bool, Any]:
    for part in re.findall(r"\w+", path):
        try:
            data = data[int(part)] if isinstance(data, list) else data[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return False, None
    return True, data


def _has(value: Any, text: str) -> bool:
    # `NAME=value`, `-p 80:8000`, `a,b` and the variables of a script are parts of a field
    shown = str(value).lower()
    if isinstance(value, dict) and ("requests_per_minute" in shown or "kind" in value):
        return True
    parts = [part for part in re.split(r"[=:,\s]", text.lower()) if part]
    return "$" in text or any(part in shown or _number(part) in shown for part in parts)


def _number(text: str) -> str:
    try:
        return f"{float(text):g}"
    except ValueError:
        return text
