"""Logs as lines: without the marks that engines and Compose put before them, from the last start on."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from functools import lru_cache

__all__ = [
    "CUT", "around", "clean", "joined", "recent", "since_ready", "split_services", "telling", "was_ready", "window",
]  # fmt: skip

# stands in a long log where its middle was left out
CUT = "[stackgen: lines left out here]"

COMPOSE = re.compile(r"^(?P<service>[a-z0-9][a-z0-9_.-]*?)(?:-\d+)?\s+\| ")
# vLLM: (EngineCore pid=27) ERROR 11-23 04:27:04 [core.py:1510]; FastChat: 2026-11-23 04:25:43 | ERROR | stderr |;
# llama.cpp: 0.00.036.051 E srv    load_model:
MARKS = re.compile(
    r"^(?:\((?P<process>[\w-]+) pid=\d+\)\s*)?"
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[[^\]]+\]\s?)?"
    r"(?:\d{4}-\d\d-\d\d [\d:,]+ \| \w+ \| [\w.]+ \| )?"
    r"(?:\d+\.\d\d\.\d{3}\.\d{3} [DIWE] )?"
)
COLORS = re.compile("\x1b\\[[0-9;]*m")
READY = re.compile(r"Application startup complete|Uvicorn running on|server is listening on|llama_server: listening on")
RAISED = re.compile(
    r"^(?:[\w.]+(?:Error|Exception|Interrupt|Exit)\b.*|\S*: error: .*|error(?:: | while handling ).*|"
    r"Value error, .*|stackgen: .*)$"
)
# what stands at the end of every failed start, and never says why
ECHOES = re.compile(
    r"See root cause above|See stack trace for root cause|and was never healthy|EngineDeadError|"
    r"validation errors? for|exiting due to model loading error|llama_model_load_from_file_impl: failed to load model|"
    r"common_fit_params: encountered an error|Worker proc \S+ died unexpectedly|the service was healthy and ended"
)
HARMLESS = re.compile(r"Found ulimit of|was never retrieved")
# llama.cpp marks lines of an error so; the marks go with `clean`
ERROR = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} E ")


def clean(line: str) -> str:
    """`line` without colours and without the marks before its message."""
    return MARKS.sub("", COLORS.sub("", line)).rstrip()


def around(line: str, mark: str, width: int) -> str:
    """`line` in at most `width` characters and about, of which `mark` is seen: messages of engines can be very long."""
    line = " ".join(line.split())
    if len(line) <= width:
        return line
    mark = " ".join(mark.split())
    place = line.find(mark) if mark else 0
    # two more for the sign that the rest is left out
    if place + len(mark) + 2 <= width:
        return textwrap.shorten(line, width, placeholder=" …")
    # some of what stands before it, all of the mark if there is room
    start = max(0, place - max(0, width - len(mark)) // 2)
    shown = line[start : start + width]
    return f"… {shown.partition(' ')[2] if ' ' in line[start:place] else shown}" + (
        "" if line.endswith(shown) else " …"
    )


def window(text: str, first: int, last: int) -> str:
    """The first and the last lines of a long log, parted by `CUT`."""
    lines = text.splitlines()
    return text if len(lines) <= first + last else "\n".join([*lines[:first], CUT, *lines[-last:]])


def joined(head: Sequence[str], tail: Sequence[str]) -> str:
    """A log of which the first and the last lines were read apart; what both hold stands there once."""
    for count in range(min(len(head), len(tail)), 0, -1):
        if head[-count:] == tail[:count]:
            return "\n".join([*head, *tail[count:]])
    return "\n".join([*head, CUT, *tail])


def since_ready(text: str) -> list[str]:
    """The lines since the last time that the service was ready: what failed before that has been overcome.

    Of a log whose middle is left out, only what follows: the service may have been ready meanwhile.
    """
    lines = text.splitlines()
    for index in range(len(lines) - 1, -1, -1):
        if lines[index] == CUT or READY.search(lines[index]):
            return lines[index + 1 :]
    return lines


def was_ready(text: str) -> bool:
    """Whether the log says that the service was ready once."""
    return bool(READY.search(text))


@lru_cache(maxsize=32)
def recent(text: str) -> tuple[str, ...]:
    """The lines since the service was ready, cleaned, the newest first; kept, as every rule reads them."""
    return tuple(clean(line) for line in reversed(since_ready(text)))


def split_services(text: str) -> dict[str, str]:
    """The parts of a log that `docker compose logs` printed, by service; {"": text} for any other."""
    found: dict[str, list[str]] = {}
    lines = COLORS.sub("", text).splitlines()
    marked = [(COMPOSE.match(line), line) for line in lines if line.strip()]
    if not marked or sum(1 for match, _ in marked if match) < len(marked) * 0.9:
        return {"": text}
    for match, line in marked:
        if match:
            found.setdefault(match["service"], []).append(line[match.end() :])
        elif line == CUT:
            for part in found.values():
                part.append(CUT)
    return {name: "\n".join(part) for name, part in found.items()}


def telling(text: str, limit: int = 6) -> tuple[str, ...]:
    """The lines that most likely say why: the exceptions above the echoes, the deepest first raised first shown.

    Without any, the last lines of the log that are no echo.
    """
    # a plain `error:` begins the line, with an engine's mark or without
    said = [(clean(line), bool(ERROR.match(line))) for line in since_ready(text)]
    said = [(line, error) for line, error in said if line.strip() and not HARMLESS.search(line)]
    lines = [line for line, _ in said]
    raised = [line for line, error in said if (error or RAISED.match(line.strip())) and not ECHOES.search(line)]
    rest = [line for line in lines if not ECHOES.search(line)]
    # each try, and each process that passes an exception on, says the same again
    return tuple(dict.fromkeys(raised[-40:]))[-limit:] or tuple(rest[-limit:])
