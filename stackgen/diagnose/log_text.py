"""Reads and cuts the text of whole logs: encodings, long lines, omitted middles, and the services of a Compose log."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from stackgen.diagnose.prefixes import COLORS, COMPOSE_PREFIX

__all__ = [
    "OMITTED",
    "decode_log",
    "excerpt",
    "join_head_and_tail",
    "keep_head_and_tail",
    "shorten_long_lines",
    "split_services",
]

# replaces the middle of a long log; saved logs contain this text, so it must not change
OMITTED = "[stackgen: some lines are omitted here]"

# a longer line keeps half of these characters at its start and half at its end
MAX_LINE_CHARS = 8192


def decode_log(data: bytes) -> str:
    """Decodes a log file in UTF-8, or in UTF-16 as PowerShell writes it."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "replace")


def shorten_long_lines(text: str) -> str:
    """`text` without the middle of lines longer than `MAX_LINE_CHARS`. Words stay whole if the line has word breaks."""
    lines = text.splitlines()
    if max(map(len, lines), default=0) <= MAX_LINE_CHARS:
        return text
    half = MAX_LINE_CHARS // 2
    for index, line in enumerate(lines):
        if len(line) > MAX_LINE_CHARS:
            # half of an API key would not be recognized as a secret
            head, tail = re.split(r"[\s\"',;]", line[:half][::-1], maxsplit=1), line[-half:]
            ends = re.split(r"[\s\"',;]", tail, maxsplit=1)
            lines[index] = f"{head[-1][::-1]} … {ends[-1]}"
    return "\n".join(lines)


def excerpt(line: str, highlight: str, width: int) -> str:
    """About `width` characters of `line`, with `highlight` visible: engines print very long messages.

    Without a highlight, the middle is left out: the end of a nested message contains its cause.
    """
    line = " ".join(line.split())
    if len(line) <= width:
        return line
    if not highlight:
        head, tail = line[: width // 3], line[-(width - width // 3 - 3) :]
        # half of a word is no evidence, unless the line is one word
        head, tail = head.rpartition(" ")[0] or head, tail.partition(" ")[2] or tail
        return f"{head} … {tail}"
    highlight = " ".join(highlight.split())
    if len(highlight) > width:
        return excerpt(highlight, "", width)
    place = line.find(highlight)
    # the ` …` at the end needs two more characters
    if place + len(highlight) + 2 <= width:
        return textwrap.shorten(line, width, placeholder=" …")
    # with some context before the highlight, and with all of the highlight if it fits
    start = max(0, place - max(0, width - len(highlight)) // 2)
    shown = line[start : start + width]
    return f"… {shown.partition(' ')[2] if ' ' in line[start:place] else shown}" + (
        "" if line.endswith(shown) else " …"
    )


def keep_head_and_tail(text: str, first: int, last: int) -> str:
    """The first and the last lines of a longer log, with `OMITTED` between them."""
    lines = text.splitlines()
    return text if len(lines) <= first + last else "\n".join([*lines[:first], OMITTED, *lines[-last:]])


def join_head_and_tail(head: Sequence[str], tail: Sequence[str]) -> str:
    """A log whose first and last lines were read separately; lines that are in both appear once."""
    for count in range(min(len(head), len(tail)), 0, -1):
        if head[-count:] == tail[:count]:
            return "\n".join([*head, *tail[count:]])
    return "\n".join([*head, OMITTED, *tail])


def split_services(text: str) -> dict[str, str]:
    """The parts of a log of `docker compose logs`, by service; {"": text} for any other log.

    Lines without a service, such as Compose's own messages, are the part "".
    """
    found: dict[str, list[str]] = {}
    own: list[str] = []
    lines = COLORS.sub("", text).splitlines()
    matched = [(COMPOSE_PREFIX.match(line), line) for line in lines if line.strip()]
    # not all lines can match: Compose's own messages and what a person typed have no prefix
    if not matched or sum(1 for match, _ in matched if match) < len(matched) * 0.6:
        return {"": text}
    for match, line in matched:
        if match:
            found.setdefault(match["service"], []).append(line[match.end() :])
        elif line == OMITTED:
            for part in found.values():
                part.append(OMITTED)
        else:
            own.append(line)
    return {name: "\n".join(part) for name, part in (*found.items(), *([("", own)] if own else []))}
