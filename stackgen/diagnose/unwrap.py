"""Joins lines that a terminal, a chat or a ticket has broken: rules read line by line.

Terminals break a line after a fixed number of characters, chats and editors at a space. Neither repeats the prefix of
the log. Only the width tells such a line from one that the program itself has ended.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.prefixes import COMPOSE_PREFIX, strip_prefix
from stackgen.diagnose.rule import UNKNOWN
from stackgen.diagnose.rule_engine import diagnose

__all__ = ["choose_reading", "find_unwrapped", "join_cut_lines"]

# columns of terminals; a log whose longest line is longer was not broken
WIDTHS = range(60, 241)
# different lines of exactly the same width, each continued in the next line, which no log has by chance
CUT = 2
# what starts a line of its own, also without a prefix
RECORD = re.compile(
    r"^\s*(?:Traceback \(most|File \"[^\"]+\", line \d|[\^~]{3,}|frame #\d|During handling|The above exception|"
    # a frame of a native backtrace
    r"\S{1,200}\(\S{0,200}\+0x[0-9a-f]+\) ?\[0x|"
    r"(?:[\w.]+\.)?\w+(?:Error|Exception|Exit|Warning)(?:\(\w+\))?(?:: |$)|(?:ERROR|INFO|WARNING|DEBUG)\b|"
    r"(?:[\w./-]{1,60}: )?[Ee]rror: |(?:Warning|Normal)\s+[A-Z]\w+\s|-{3,}|={3,}|\$ |</?[a-z!])|^\s{2,}\S|^\s*$"
)
# a function, a program or a level, as a line of its own begins; only strong evidence outweighs it
LABEL = re.compile(r"^[\w./()-]{1,60}: ")
# the least part of the width that a line has which was broken at a space
LEAST_SHARE = 0.5
# how much a reading explains: a known cause
KNOWN = 2


def choose_reading(text: str, read: Callable[[str], Evidence]) -> Evidence:
    """The evidence that `read` makes of `text`, or of `text` with joined lines if this explains more."""
    evidence = read(join_cut_lines(text))
    others = list(find_unwrapped(text))
    if not others or _explains(evidence) == KNOWN:
        return evidence
    # the first of those that explain most
    return max((evidence, *map(read, others)), key=_explains)


def _explains(evidence: Evidence) -> int:
    """`KNOWN` for a known cause, 1 for a general one, 0 for a failure without a cause."""
    found = diagnose(evidence)
    return 0 if not found or found[0].id == UNKNOWN else 1 if found[0].fallback else KNOWN


def join_cut_lines(text: str, least: int = CUT) -> str:
    """`text` with lines joined that were cut at the width of a terminal; unchanged with fewer than `least` cuts."""
    lines = [line.rstrip("\r\n") for line in text.splitlines()]
    width = max(map(len, lines), default=0)
    if width not in WIDTHS:
        return text
    joined: list[str] = []
    cuts: set[str] = set()
    for index, line in enumerate(lines):
        # a paste without the space at its end is one character shorter
        before = len(lines[index - 1]) if index else 0
        if before >= width - 1 and not _starts_record(line) and not (least < CUT and LABEL.match(line)):
            joined[-1] += f"{' ' * (width - before)}{line}"
            cuts |= {lines[index - 1]} if before == width else set()
        else:
            joined.append(line)
    return "\n".join(joined) if len(cuts) >= least else text


def _join_broken_lines(text: str) -> str:
    """`text` with lines joined that were broken at a space because the next word did not fit."""
    lines = text.splitlines()
    width = max((len(line.rstrip()) for line in lines), default=0)
    joined: list[str] = []
    for index, line in enumerate(lines):
        before = len(lines[index - 1].rstrip()) if index else 0
        word = len(line.split(maxsplit=1)[0]) if line.strip() else 0
        is_broken = width * LEAST_SHARE < before <= width < before + 1 + word
        if width in WIDTHS and is_broken and not _starts_record(line) and not LABEL.match(line):
            joined[-1] = f"{joined[-1].rstrip()} {line.lstrip()}"
        else:
            joined.append(line)
    return "\n".join(joined)


def find_unwrapped(text: str) -> Iterator[str]:
    """Other readings of `text`, if some of its lines may be parts of one line."""
    plain = "\n".join(text.splitlines())
    for other in (join_cut_lines(text, 1), _join_broken_lines(text)):
        if other != plain and other != text:
            yield other


def _starts_record(line: str) -> bool:
    return bool(RECORD.match(line) or COMPOSE_PREFIX.match(line) or strip_prefix(line) != line.rstrip())
