"""Logs as lines: without the marks that engines and Compose put before them, from the last start on."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["clean", "recent", "since_ready", "split_services", "telling"]

COMPOSE = re.compile(r"^(?P<service>[a-z0-9][a-z0-9_.-]*?)(?:-\d+)?\s+\| ")
# vLLM: (EngineCore pid=27) ERROR 11-23 04:27:04 [core.py:1510]; FastChat: 2026-11-23 04:25:43 | ERROR | stderr |
MARKS = re.compile(
    r"^(?:\((?P<process>[\w-]+) pid=\d+\)\s*)?"
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[[^\]]+\]\s?)?"
    r"(?:\d{4}-\d\d-\d\d [\d:,]+ \| \w+ \| [\w.]+ \| )?"
)
COLORS = re.compile("\x1b\\[[0-9;]*m")
READY = re.compile(r"Application startup complete|Uvicorn running on|server is listening on")
RAISED = re.compile(r"^(?:[\w.]+(?:Error|Exception|Interrupt|Exit)\b.*|\S*: error: .*|Value error, .*|stackgen: .*)$")
# what stands at the end of every failed start, and never says why
ECHOES = re.compile(
    r"See root cause above|See stack trace for root cause|and was never healthy|EngineDeadError|"
    r"validation errors? for|Worker proc \S+ died unexpectedly|the service was healthy and ended"
)
HARMLESS = re.compile(r"Found ulimit of|was never retrieved")


def clean(line: str) -> str:
    """`line` without colours and without the marks before its message."""
    return MARKS.sub("", COLORS.sub("", line)).rstrip()


def since_ready(text: str) -> list[str]:
    """The lines since the last time that the service was ready: what failed before that has been overcome."""
    lines = text.splitlines()
    for index in range(len(lines) - 1, -1, -1):
        if READY.search(lines[index]):
            return lines[index + 1 :]
    return lines


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
    return {name: "\n".join(part) for name, part in found.items()}


def telling(text: str, limit: int = 6) -> tuple[str, ...]:
    """The lines that most likely say why: the exceptions above the echoes, the deepest first raised first shown.

    Without any, the last lines of the log that are no echo.
    """
    lines = [clean(line) for line in since_ready(text)]
    lines = [line for line in lines if line.strip() and not HARMLESS.search(line)]
    raised = [line for line in lines if RAISED.match(line.strip()) and not ECHOES.search(line)]
    rest = [line for line in lines if not ECHOES.search(line)]
    # each try, and each process that passes an exception on, says the same again
    return tuple(dict.fromkeys(raised[-40:]))[-limit:] or tuple(rest[-limit:])
