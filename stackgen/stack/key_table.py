"""Reads a table of people for `stackgen keys new`: CSV or YAML, one key a line, with the fields of `gateway.keys`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from pydantic import ValidationError

from stackgen.errors import Mistake, SpecError
from stackgen.spec.keys import KeySpec
from stackgen.stack.mistakes import clip, describe_validation_error, shorten, suggest
from stackgen.stack.yaml_text import find_places, read_mapping

__all__ = ["KeyRow", "is_table", "read_table"]

# spreadsheets of many countries write semicolons
DELIMITERS = ",;\t"
NAME_HINT = f"the columns are {', '.join(KeySpec.model_fields)}. Only name is required"
MAX_MISTAKES = 50


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key with its limits, and the line of the file that describes it, counted from 1."""

    key: KeySpec
    line: int


def is_table(source: str, text: str) -> bool:
    """Whether a file is a table, and not a list with one name on each line."""
    if source.lower().endswith((".csv", ".tsv", ".yaml", ".yml")):
        return True
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    # no name contains a delimiter
    return any(one in first.partition("#")[0] for one in DELIMITERS)


def read_table(source: str, text: str, served: Sequence[str]) -> tuple[KeyRow, ...]:
    """Returns the rows of a table. `served`: the names of the stack's models.

    Raises SpecError with all errors of all lines, also for a name in two lines and a last day that is over.
    """
    is_yaml = source.lower().endswith((".yaml", ".yml"))
    rows: list[KeyRow] = []
    mistakes: list[Mistake] = []
    for line, values in _yaml_rows(source, text) if is_yaml else _csv_rows(source, text):
        try:
            row = KeyRow(KeySpec.model_validate(values), line)
        except ValidationError as error:
            mistakes += (replace(one, line=line) for one in describe_validation_error(error, "", KeySpec))
            continue
        mistakes += _check(row, rows, served)
        rows.append(row)
    if mistakes:
        more = len(mistakes) - MAX_MISTAKES
        rest = [Mistake("", f"and {more} more error{'s' * (more > 1)}")] if more > 0 else []
        raise SpecError(source, [*map(clip, mistakes[:MAX_MISTAKES]), *rest])
    if not rows:
        raise SpecError(source, [Mistake("", "contains no key", hint=NAME_HINT)])
    return tuple(rows)


def _check(row: KeyRow, before: Sequence[KeyRow], served: Sequence[str]) -> Iterator[Mistake]:
    key, line = row.key, row.line
    if same := next((one for one in before if one.key.name == key.name), None):
        yield Mistake("name", f"{key.name} is also in line {same.line}", hint="remove one of the two lines", line=line)
    for name in key.models or ():
        if name not in served:
            hint = suggest(name, served) or f"the served names are: {', '.join(served)}"
            yield Mistake("models", f"no model is served as {shorten(name)}", hint=hint, line=line)
    if key.expires and key.expires < datetime.now(timezone.utc).date():
        yield Mistake("expires", f"{key.expires} is over, so the key would never be valid",
                      hint="write the last day on which the key is valid", line=line)  # fmt: skip


def _csv_rows(source: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines after the header, as fields by name; an empty cell is a field that is not set."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
    header = lines[start] if lines else ""
    delimiter = max(DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO("\n".join(lines[start:])), delimiter=delimiter, strict=True)
    try:
        columns = [_column(one) for one in next(reader, [])]
        if mistakes := list(_find_header_mistakes(columns, start + 1)):
            raise SpecError(source, mistakes)
        for cells in reader:
            # the line in the file, also if quoted cells contain line ends
            line = start + reader.line_num
            if not any(cell.strip() for cell in cells) or cells[0].startswith("#"):
                continue
            if len(cells) > len(columns):
                raise SpecError(source, [Mistake(
                    "", f"has {len(cells)} cells, but the first line has {len(columns)}",
                    hint=f"put a cell that contains {delimiter!r} in quotes", line=line,
                )])  # fmt: skip
            pairs = zip(columns, cells, strict=False)
            yield line, {name: _cell(name, cell.strip()) for name, cell in pairs if cell.strip()}
    except csv.Error as error:
        line = start + reader.line_num
        raise SpecError(source, [Mistake("", f"is not CSV: {error}", hint="check its quotes", line=line)]) from None


def _column(cell: str) -> str:
    # as people write a title: `Tokens per day`
    return re.sub(r"[\s-]+", "_", cell.strip().lower())


def _find_header_mistakes(columns: list[str], line: int) -> Iterator[Mistake]:
    known = list(KeySpec.model_fields)
    if "name" not in columns:
        yield Mistake("", "the first line must contain the titles of the columns, and one of them is name",
                      hint=NAME_HINT, line=line)  # fmt: skip
        return
    for index, column in enumerate(columns):
        if column not in known:
            yield Mistake(shorten(column)[1:-1], "is not a limit of a key", hint=suggest(column, known) or NAME_HINT,
                          line=line)  # fmt: skip
        elif column in columns[:index]:
            yield Mistake(column, "is the title of two columns", hint="remove one of them", line=line)


def _cell(name: str, text: str) -> Any:
    if name == "models":
        return [one for one in re.split(r"[\s,;|]+", text) if one]
    # `200000`; anything else is reported as it is written
    return int(text) if name not in ("name", "expires") and re.fullmatch(r"\d{1,15}", text, re.ASCII) else text


def _yaml_rows(source: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The entries of a list like `gateway.keys`, which may be the value of a field `keys`."""
    text = re.sub(r"^---\s*$", "", text, count=1, flags=re.MULTILINE)
    start = re.search(r"^(?!#)\S", text, re.MULTILINE)
    # a list needs a name for `read_mapping`, on a line of its own
    nested = bool(start and start[0] in "-[")
    body = "keys:\n" + re.sub("^", " ", text, flags=re.MULTILINE) if nested else text
    try:
        data = read_mapping(body, source)
    except SpecError as error:
        raise SpecError(source, [replace(one, line=one.line - nested if one.line else None)
                                 for one in error.mistakes]) from None  # fmt: skip
    entries = data.get("keys")
    if not isinstance(entries, list) or len(data) > 1:
        what = "must be a list like gateway.keys: `- {name: ada, tokens_per_day: 200000}`"
        raise SpecError(source, [Mistake("", what, hint=NAME_HINT)])
    places = find_places(body)
    for index, entry in enumerate(entries):
        line = places[f"keys[{index}]"][0] - nested
        if not isinstance(entry, (dict, str)):
            raise SpecError(source, [Mistake("", "must be a key, for example `{name: ada}`", line=line)])
        yield line, {"name": entry} if isinstance(entry, str) else entry
