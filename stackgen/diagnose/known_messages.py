"""Finds out which program raises an error: the error messages of the engines and their libraries, as data.

`scripts/read_messages.py` reads `data/messages.tsv.gz` from the source of vLLM 0.16 to 0.33, SGLang 0.5.9 to 0.5.23,
FastChat 0.2.36, builds 9453 to 11434 of llama.cpp, Transformers 4.57 to 5.24, torch 2.10 and 2.14, and others: the
constant parts of each message, its exception, its module and function, and the settings that decide whether the message
appears. Each row names its versions.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

__all__ = ["KnownMessage", "find_known_message"]

DATA = Path(__file__).with_name("data") / "messages.tsv.gz"
HOLE = "{}"
# Python's or pydantic's name of the exception, or the function of llama.cpp
HEAD = re.compile(
    r"^(?:(?:[\w.]+\.)?(?P<name>\w+(?:Error|Exception|Exit|Unavailable|Interrupt))(?:\(\w+\))?: "
    r"|(?P<value>Value error, )|"
    r"(?:srv|slot|que|res)? *\w+(?:\(\))?: +(?:error: )?)"
)
# what pydantic adds to the message of a ValueError
TAIL = re.compile(r" \[type=\w+, input_value=.*$")
# the constant characters of a message that a line must have; the rest may differ between versions
LEAST_SHARE = 0.7
# characters of a piece of a message that must be the same in every version
PIECE = 24
# a constant part this long is specific alone; a shorter one must be this share of the line
LONG, LEAST_COVER = 40, 0.4
# the programs of these packages run only as parts of an engine, so an engine's own message is preferred
ENGINES = ("vllm", "sglang", "fastchat", "llamacpp")


@dataclass(frozen=True, slots=True)
class KnownMessage:
    """A message of `package`, raised at `place` (`module:function`) of these `versions`.

    `settings` are flags and environment variables that the program tests before it prints the message. `share` is the
    part of the constant characters that the line has, from 0 to 1; below 1, the line comes from another version.
    """

    package: str
    versions: str
    place: str
    raised: str
    text: str
    settings: tuple[str, ...]
    share: float = 1.0

    @property
    def module(self) -> str:
        """The file, as a traceback writes it: `vllm/config/parallel.py`."""
        module = self.place.partition(":")[0]
        return module if "." in module.rpartition("/")[2] else f"{module}.py"

    @property
    def function(self) -> str:
        """The function, with its class; "" at the top of a module."""
        return self.place.partition(":")[2]

    @property
    def is_logged(self) -> bool:
        """Whether the message is logged, and not raised: the program may have gone on."""
        return self.raised == "log"


@lru_cache(maxsize=512)
def find_known_message(line: str, engine: str = "", frames: str = "") -> KnownMessage | None:
    """The message of the data that `line`, without prefix, most likely is; None if no message fits.

    `frames` are the modules of the traceback above the line: a message of one of them is preferred, then one of
    `engine`, then the one with the longest text.
    """
    text = TAIL.sub("", line.strip())
    head = HEAD.match(text)
    name = (head["name"] or ("ValueError" if head["value"] else "")) if head else ""
    body = text[head.end() :] if head and name else text
    # Python prints several arguments of an exception as a tuple
    body = body[2:] if body.startswith(("('", '("')) else body
    found: list[tuple[tuple[bool, bool, float, bool, int], KnownMessage]] = []
    for start, row in _rows():
        if start not in body:
            continue
        package, versions, place, raised, known, settings = row.split("\t")
        # another engine has the same messages at other places
        if engine and package in ENGINES and package != engine:
            continue
        if share := _share(known.split(HOLE), body, is_open=not name):
            one = KnownMessage(package, versions, place, raised, known, tuple(filter(None, settings.split(","))), share)
            # a logged message has no exception
            same = raised == name or (not name and not raised.endswith("Error"))
            rank = (same, one.module in frames, share, package in ENGINES, len(known))
            found.append((rank, one))
    return max(found, key=lambda each: each[0])[1] if found else None


def _share(parts: list[str], body: str, *, is_open: bool) -> float:
    """How much of the constant `parts` is in `body`, in their order; 0 if it is too little to be this message."""
    total = sum(map(len, parts))
    at = matched = 0
    for index, part in enumerate(parts):
        # another version may have changed some words
        for piece in [part] if len(part) <= LONG or part in body else _cut(part):
            place = body.find(piece, at)
            # the first words of a message come first, except in a line of a program that puts its own before them
            if place > 0 and not index and not at and piece and not is_open:
                place = -1
            if place >= 0:
                matched += len(piece)
                at = place + len(piece)
    share = matched / total
    # a short message in a long line may be a part of another message
    if matched < LEAST_COVER * len(body) and matched < LONG:
        return 0
    return share if share == 1 or (share >= LEAST_SHARE and matched >= LONG) else 0


def _cut(part: str) -> list[str]:
    """`part` in pieces of about `PIECE` characters, which end with a word."""
    return re.findall(rf".{{1,{PIECE}}}(?:\s|$)|\S+", part)


@cache
def _rows() -> tuple[tuple[str, str], ...]:
    """The start of the longest constant part of each message, which a line must contain, and its row of the data."""
    rows = gzip.decompress(DATA.read_bytes()).decode().splitlines()[1:]
    return tuple((max(row.split("\t", 5)[4].split(HOLE), key=len)[:PIECE].strip(), row) for row in rows)
