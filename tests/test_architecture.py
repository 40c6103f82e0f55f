"""The page on architecture is true: its picture shows the floors that are enforced, its table names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
# the other tables of the page do not name a file in their second column
ROWS = re.findall(r"^\| (.+?) \| `([\w.-]+(?:/[^`]*)?)` \| `(.+?)` \|$", PAGE, re.M)
PACKAGE = ROOT / "stackgen"


def enforced_floors() -> list[list[str]]:
    """The first contract's layers in pyproject.toml, from the top down."""
    body = (ROOT / "pyproject.toml").read_text().split('containers = ["stackgen"]')[1]
    lines = re.findall(r'"(.+?)"', body[: body.index("]\nexhaustive")])
    return [line.split(" | ") for line in lines if line != "__main__"]


def test_picture_shows_the_enforced_floors() -> None:
    drawn = [re.findall(r"^ {8}(\w+)$", block, re.M) for block in re.findall(r"subgraph .*?\n(.*?) {4}end", PAGE, re.S)]
    assert drawn == enforced_floors()


def test_every_room_is_on_a_floor() -> None:
    rooms = {path.stem if path.suffix == ".py" else path.name for path in PACKAGE.iterdir()
             if path.suffix == ".py" or (path / "__init__.py").exists()}  # fmt: skip
    floors = {room for floor in enforced_floors() for room in floor}
    assert rooms - {"__init__", "__main__"} == floors


def test_few_modules_are_outside_rooms() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


@pytest.mark.parametrize(("about", "place", "neighbour"), ROWS, ids=[row[0][:40] for row in ROWS])
def test_where_a_line_goes(about: str, place: str, neighbour: str) -> None:
    # a row that names a folder leads to no file
    assert (ROOT / place).is_file()
    assert neighbour in (ROOT / place).read_text()


def test_no_row_is_repeated() -> None:
    tables = PAGE.partition("## Where to put a line of code")[2].partition("## What a rendered folder")[0]
    lines = [line for line in tables.splitlines() if line.startswith("| ") and line != "| to change | edit | next to |"]
    assert len(lines) == len(ROWS)  # every row has the form that the tests read
    assert len({about for about, _, _ in ROWS}) == len({row[1:] for row in ROWS}) == len(ROWS)


def test_every_room_has_a_row() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    named = {place.split("/")[1].removesuffix(".py") for _, place, _ in ROWS if place.startswith("stackgen/")}
    assert len(ROWS) > 400
    assert rooms <= named
