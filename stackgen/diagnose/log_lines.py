"""Logs as lines: without the marks that engines and Compose put before them, from the last start on."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from functools import lru_cache

__all__ = [
    "CUT", "around", "calm", "clean", "decoded", "died", "ended", "failed", "has_served", "joined", "last_said",
    "recent", "shortened", "since_ready", "speaker", "split_services", "telling", "was_ready", "window",
]  # fmt: skip

# stands in a long log where its middle was left out
CUT = "[stackgen: lines left out here]"

# of each line that is longer, half from its head and half from its tail
LONGEST = 8192

COMPOSE = re.compile(r"^(?P<service>[a-z0-9][a-z0-9_.-]*?)(?:-\d+)?(?:\s+\| | (?=exited with code \d+))")
# what stands before a line by `docker logs --timestamps`, Kubernetes (its files, and --prefix), or the journal
STAMPS = re.compile(
    r"^(?:\[pod/\S+\] )?"
    r"(?:\d{4}-\d\d-\d\dT[\d:.,]+(?:Z|[+-]\d\d:?\d\d)(?: |$)(?:std(?:out|err) [FP] |\S+ [\w@./-]+\[\d+\]: )?"
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S+ [\w@./-]+(?:\[\d+\])?: )?"
)
# vLLM: (EngineCore pid=27) ERROR 11-23 04:27:04 [core.py:1510]; FastChat: 2026-11-23 04:25:43 | ERROR | stderr |;
# llama.cpp: 0.00.036.051 E srv    load_model:; torch: [rank0]:
MARKS = re.compile(
    r"^(?:\[rank\d+\]:\s?)?(?P<process>\([\w-]+ pid=\d+\)\s*)?"
    r"(?:(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[[^\]]+\]\s?)?"
    r"(?:\d{4}-\d\d-\d\d [\d:,]+ \| (?P<tier>\w+) \| [\w.]+ \| )?"
    r"(?:\d+\.\d\d\.\d{3}\.\d{3} (?P<letter>[DIWE]) )?"
    r"(?:\[rank\d+\]:\s?)?"
)
CALM = re.compile(r"^(?:DEBUG|INFO|WARNING):\s|^.{0,300}?\w+Warning: ")
COLORS = re.compile("\x1b\\[[0-9;]*m")
READY = re.compile(r"Application startup complete|Uvicorn running on|server is listening on|llama_server: listening on")
SERVED = re.compile(r'HTTP/1\.[01]" 200')
RAISED = re.compile(
    r"^(?:[\w.]+(?:Error|Exception|Interrupt|Exit)\b.*|\S*: error: .*|error(?:: | while handling ).*|"
    r"Value error, .*|stackgen: .*)$"
)
# what stands at the end of every failed start, and never says why
ECHOES = re.compile(
    r"See root cause above|See stack trace for root cause|and was never healthy|EngineDeadError|"
    r"validation errors? for|exiting due to model loading error|llama_model_load_from_file_impl: failed to load model|"
    r"common_fit_params: encountered an error|Worker proc \S+ died unexpectedly|the service was healthy and ended|"
    r"the service was never healthy and ended|^stackgen: ended with code .*: it stays down|"
    # an exception of a process that looked at the model's class: it stands above
    r"\] failed to be inspected|returned non-zero exit status|^RuntimeError: Error raised in subprocess"
)
# supervise.sh: what died after it was healthy
AGAIN = re.compile(r"^stackgen: the service was healthy and ended with code (?P<code>\d+)")
DIED = re.compile(
    r"and was never healthy|EngineDeadError|^(?:[\w.-]+ )?exited with code (?!(?:0|130|143)\b)\d|\(core dumped\)|"
    r"^(?:\S+: line \d+:\s+\d+\s+)?(?:Segmentation fault|Illegal instruction|Bus error)\b|^!+ Segfault encountered|"
    r"^Fatal Python error: |^terminate called (?:after|without)"
)
# the engines' own last words besides: the log is that of a start that failed
FAILED = re.compile(
    r"^Traceback \(most recent|: error: |See root cause above|Error response from daemon|^dependency failed to start|"
    r"exiting due to model loading error|^error: invalid argument: |^error while handling argument "
)
RAISED_LAST = re.compile(r"^[\w.]+(?:Error|Exception)\b(?::|$)")
HARMLESS = re.compile(r"Found ulimit of|was never retrieved")


def clean(line: str) -> str:
    """`line` without colours, time stamps and the marks before its message."""
    return MARKS.sub("", _unstamped(line)).rstrip()


def calm(line: str) -> bool:
    """Whether `line` says of itself that it is no error: what a request holds may stand there, too."""
    plain = _unstamped(line)
    mark = MARKS.match(plain)
    assert mark
    if mark["level"] or mark["letter"]:
        return mark["level"] in ("DEBUG", "INFO", "WARNING") or mark["letter"] in ("D", "I", "W")
    # FastChat marks all that comes by stderr as an error
    return mark["tier"] in ("DEBUG", "INFO", "WARNING") or bool(CALM.match(plain[mark.end() :]))


def speaker(line: str) -> str:
    """The process that says `line`, as vLLM names it: `(Worker_TP0 pid=12)`; "" where nothing tells it."""
    mark = MARKS.match(_unstamped(line))
    return (mark["process"] or "").strip() if mark else ""


def decoded(data: bytes) -> str:
    """A log as text, whatever wrote it: a shell of Windows writes UTF-16."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "replace")


def shortened(text: str) -> str:
    """`text` with the middle left out of each line that is longer than `LONGEST`; no word is cut where one ends."""
    lines = text.splitlines()
    if max(map(len, lines), default=0) <= LONGEST:
        return text
    half = LONGEST // 2
    for index, line in enumerate(lines):
        if len(line) > LONGEST:
            # half of a key would not be known for one
            head, tail = re.split(r"[\s\"',;]", line[:half][::-1], maxsplit=1), line[-half:]
            ends = re.split(r"[\s\"',;]", tail, maxsplit=1)
            lines[index] = f"{head[-1][::-1]} … {ends[-1]}"
    return "\n".join(lines)


def _unstamped(line: str) -> str:
    return STAMPS.sub("", COLORS.sub("", line))


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


def has_served(text: str) -> bool:
    """Whether the log says that the service was ready, or that it answered a request."""
    return was_ready(text) or bool(SERVED.search(text))


@lru_cache(maxsize=32)
def died(text: str) -> bool:
    """Whether the service has ended since it was ready last."""
    lines = [clean(line) for line in since_ready(text) if not calm(line)]
    return any(DIED.search(line) or AGAIN.match(line) for line in lines)


def failed(text: str) -> bool:
    """Whether the log is that of a start that failed."""
    lines = [clean(line) for line in since_ready(text) if not calm(line)]
    last = next((line for line in reversed(lines) if line.strip()), "")
    return died(text) or bool(RAISED_LAST.match(last)) or any(FAILED.search(line) for line in lines)


def ended(text: str) -> int:
    """How often the service was healthy and ended; supervise.sh started it again each time."""
    return sum(1 for line in text.splitlines() if AGAIN.match(clean(line)))


def last_said(text: str, limit: int = 4) -> tuple[str, ...]:
    """The telling lines of the last run that ended after it had been healthy."""
    lines = text.splitlines()
    last = max((index for index, line in enumerate(lines) if AGAIN.match(clean(line))), default=len(lines))
    return telling("\n".join(lines[:last]), limit)


@lru_cache(maxsize=32)
def recent(text: str, errors: bool = False) -> tuple[str, ...]:
    """The lines since the service was ready, cleaned, the newest first; kept, as every rule reads them.

    `errors`: only those that say that they are one.
    """
    lines = reversed(since_ready(text))
    return tuple(clean(line) for line in lines if not errors or _is_error(line))


def _is_error(line: str) -> bool:
    mark = MARKS.match(_unstamped(line))
    assert mark
    return bool(mark["level"] in ("ERROR", "CRITICAL") or mark["letter"] == "E"
                or (RAISED.match(clean(line).strip()) and not calm(line)))  # fmt: skip


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
    said = [(clean(line), _letter(line) == "E") for line in since_ready(text)]
    said = [(line, error) for line, error in said if line.strip() and not HARMLESS.search(line)]
    lines = [line for line, _ in said]
    raised = [line for line, error in said if (error or RAISED.match(line.strip())) and not ECHOES.search(line)]
    rest = [line for line in lines if not ECHOES.search(line)]
    # each try, and each process that passes an exception on, says the same again
    return tuple(dict.fromkeys(raised[-40:]))[-limit:] or tuple(rest[-limit:])


def _letter(line: str) -> str | None:
    # llama.cpp marks lines of an error so
    mark = MARKS.match(_unstamped(line))
    return mark["letter"] if mark else None
