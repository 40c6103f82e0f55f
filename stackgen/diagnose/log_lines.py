"""Reads log lines: strips the prefixes of engines and Compose, and skips lines before the last successful start."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from functools import lru_cache

__all__ = [
    "OMITTED", "count_restarts", "decode_log", "excerpt", "find_key_lines", "has_been_ready", "has_crashed",
    "has_failed", "has_served", "is_below_error", "join_head_and_tail", "keep_head_and_tail",
    "key_lines_before_restart", "lines_since_ready", "process_name", "recent_lines", "shorten_long_lines",
    "split_services", "strip_prefix",
]  # fmt: skip

# replaces the middle of a long log; saved logs contain this text, so it must not change
OMITTED = "[stackgen: lines left out here]"

# a longer line keeps half of these characters at its start and half at its end
MAX_LINE_CHARS = 8192

COMPOSE_PREFIX = re.compile(r"^(?P<service>[a-z0-9][a-z0-9_.-]*?)(?:-\d+)?(?:\s+\| | (?=exited with code \d+))")
# prefixes of `docker logs --timestamps`, Kubernetes (its log files, and --prefix) and the journal
TIMESTAMP_PREFIX = re.compile(
    r"^(?:\[pod/\S+\] )?"
    r"(?:\d{4}-\d\d-\d\dT[\d:.,]+(?:Z|[+-]\d\d:?\d\d)(?: |$)(?:std(?:out|err) [FP] |\S+ [\w@./-]+\[\d+\]: )?"
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S+ [\w@./-]+(?:\[\d+\])?: )?"
)
# vLLM: (EngineCore pid=27) ERROR 11-23 04:27:04 [core.py:1510]; FastChat: 2026-11-23 04:25:43 | ERROR | stderr |;
# llama.cpp: 0.00.036.051 E srv    load_model:; torch: [rank0]:
ENGINE_PREFIX = re.compile(
    r"^(?:\[rank\d+\]:\s?)?(?P<process>\([\w-]+ pid=\d+\)\s*)?"
    r"(?:(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[[^\]]+\]\s?)?"
    r"(?:\d{4}-\d\d-\d\d [\d:,]+ \| (?P<tier>\w+) \| [\w.]+ \| )?"
    r"(?:\d+\.\d\d\.\d{3}\.\d{3} (?P<letter>[DIWE]) )?"
    r"(?:\[rank\d+\]:\s?)?"
)
BELOW_ERROR = re.compile(r"^(?:DEBUG|INFO|WARNING):\s|^.{0,300}?\w+Warning: ")
COLORS = re.compile("\x1b\\[[0-9;]*m")
READY = re.compile(r"Application startup complete|Uvicorn running on|server is listening on|llama_server: listening on")
SERVED = re.compile(r'HTTP/1\.[01]" 200')
RAISED = re.compile(
    r"^(?:[\w.]+(?:Error|Exception|Interrupt|Exit)\b.*|\S*: error: .*|error(?:: | while handling ).*|"
    r"Value error, .*|stackgen: .*)$"
)
# errors that follow from another error: every failed start ends with them, and they never show the reason
CONSEQUENCES = re.compile(
    r"See root cause above|See stack trace for root cause|and was never healthy|EngineDeadError|"
    r"validation errors? for|exiting due to model loading error|llama_model_load_from_file_impl: failed to load model|"
    r"common_fit_params: encountered an error|Worker proc \S+ died unexpectedly|the service was healthy and ended|"
    r"the service was never healthy and ended|^stackgen: ended with code .*: it stays down|"
    # raised by the subprocess that inspects the model's class, whose own exception is above
    r"\] failed to be inspected|returned non-zero exit status|^RuntimeError: Error raised in subprocess"
)
# what supervise.sh prints before it restarts a service that was healthy
RESTARTED = re.compile(r"^stackgen: the service was healthy and ended with code (?P<code>\d+)")
CRASHED = re.compile(
    r"and was never healthy|EngineDeadError|^(?:[\w.-]+ )?exited with code (?!(?:0|130|143)\b)\d|\(core dumped\)|"
    r"^(?:\S+: line \d+:\s+\d+\s+)?(?:Segmentation fault|Illegal instruction|Bus error)\b|^!+ Segfault encountered|"
    r"^Fatal Python error: |^terminate called (?:after|without)"
)
# an engine that prints one of these lines did not become ready
FAILED = re.compile(
    r"^Traceback \(most recent|: error: |See root cause above|Error response from daemon|^dependency failed to start|"
    r"exiting due to model loading error|^error: invalid argument: |^error while handling argument "
)
ENDS_WITH_EXCEPTION = re.compile(r"^[\w.]+(?:Error|Exception)\b(?::|$)")
NOISE = re.compile(r"Found ulimit of|was never retrieved")


def strip_prefix(line: str) -> str:
    """`line` without colours, timestamps and the prefix of the engine."""
    return ENGINE_PREFIX.sub("", _strip_timestamp(line)).rstrip()


def is_below_error(line: str) -> bool:
    """Whether the level of `line` is below error. Such a line may also quote a request's text."""
    plain = _strip_timestamp(line)
    prefix = ENGINE_PREFIX.match(plain)
    assert prefix
    if prefix["level"] or prefix["letter"]:
        return prefix["level"] in ("DEBUG", "INFO", "WARNING") or prefix["letter"] in ("D", "I", "W")
    # FastChat logs everything from stderr at level ERROR, so only the message shows it
    return prefix["tier"] in ("DEBUG", "INFO", "WARNING") or bool(BELOW_ERROR.match(plain[prefix.end() :]))


def process_name(line: str) -> str:
    """The process that wrote `line`, as vLLM prefixes it: `(Worker_TP0 pid=12)`; "" without such a prefix."""
    prefix = ENGINE_PREFIX.match(_strip_timestamp(line))
    return (prefix["process"] or "").strip() if prefix else ""


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


def _strip_timestamp(line: str) -> str:
    return TIMESTAMP_PREFIX.sub("", COLORS.sub("", line))


def excerpt(line: str, highlight: str, width: int) -> str:
    """About `width` characters of `line`, with `highlight` visible: engines print very long messages."""
    line = " ".join(line.split())
    if len(line) <= width:
        return line
    highlight = " ".join(highlight.split())
    place = line.find(highlight) if highlight else 0
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


def lines_since_ready(text: str) -> list[str]:
    """The lines since the service was last ready, because earlier failures no longer matter.

    If the middle of the log is omitted, only the lines after it: the service may have been ready in the middle.
    """
    lines = text.splitlines()
    for index in range(len(lines) - 1, -1, -1):
        if lines[index] == OMITTED or READY.search(lines[index]):
            return lines[index + 1 :]
    return lines


def has_been_ready(text: str) -> bool:
    """Whether the log shows that the service was ready once."""
    return bool(READY.search(text))


def has_served(text: str) -> bool:
    """Whether the log shows that the service was ready, or answered a request."""
    return has_been_ready(text) or bool(SERVED.search(text))


@lru_cache(maxsize=32)
def has_crashed(text: str) -> bool:
    """Whether the service has ended since it was last ready."""
    lines = [strip_prefix(line) for line in lines_since_ready(text) if not is_below_error(line)]
    return any(CRASHED.search(line) or RESTARTED.match(line) for line in lines)


def has_failed(text: str) -> bool:
    """Whether the log shows a failed start."""
    lines = [strip_prefix(line) for line in lines_since_ready(text) if not is_below_error(line)]
    last = next((line for line in reversed(lines) if line.strip()), "")
    return has_crashed(text) or bool(ENDS_WITH_EXCEPTION.match(last)) or any(FAILED.search(line) for line in lines)


def count_restarts(text: str) -> int:
    """How often supervise.sh restarted the service after it had been healthy."""
    return sum(1 for line in text.splitlines() if RESTARTED.match(strip_prefix(line)))


def key_lines_before_restart(text: str, limit: int = 4) -> tuple[str, ...]:
    """The key lines of the last run that ended after it had been healthy."""
    lines = text.splitlines()
    last = max((index for index, line in enumerate(lines) if RESTARTED.match(strip_prefix(line))), default=len(lines))
    return find_key_lines("\n".join(lines[:last]), limit)


# cached because every rule reads the same lines
@lru_cache(maxsize=32)
def recent_lines(text: str, errors: bool = False) -> tuple[str, ...]:
    """The lines since the service was last ready, without prefixes, the newest first; only error lines if `errors`."""
    lines = reversed(lines_since_ready(text))
    return tuple(strip_prefix(line) for line in lines if not errors or _is_error(line))


def _is_error(line: str) -> bool:
    prefix = ENGINE_PREFIX.match(_strip_timestamp(line))
    assert prefix
    return bool(prefix["level"] in ("ERROR", "CRITICAL") or prefix["letter"] == "E"
                or (RAISED.match(strip_prefix(line).strip()) and not is_below_error(line)))  # fmt: skip


def split_services(text: str) -> dict[str, str]:
    """The parts of a log of `docker compose logs`, by service; {"": text} for any other log."""
    found: dict[str, list[str]] = {}
    lines = COLORS.sub("", text).splitlines()
    matched = [(COMPOSE_PREFIX.match(line), line) for line in lines if line.strip()]
    # not all lines can match: an `OMITTED` line has no prefix
    if not matched or sum(1 for match, _ in matched if match) < len(matched) * 0.9:
        return {"": text}
    for match, line in matched:
        if match:
            found.setdefault(match["service"], []).append(line[match.end() :])
        elif line == OMITTED:
            for part in found.values():
                part.append(OMITTED)
    return {name: "\n".join(part) for name, part in found.items()}


def find_key_lines(text: str, limit: int = 6) -> tuple[str, ...]:
    """The lines that most likely show the reason: exceptions that no other error caused, in the order of the log.

    Without such exceptions, the last lines of the log that are not a consequence of another error.
    """
    # llama.cpp marks an error only in its prefix, so the level is read before the prefix is stripped
    all_lines = [(strip_prefix(line), _letter(line) == "E") for line in lines_since_ready(text)]
    kept = [(line, error) for line, error in all_lines if line.strip() and not NOISE.search(line)]
    raised = [line for line, error in kept if (error or RAISED.match(line.strip())) and not CONSEQUENCES.search(line)]
    rest = [line for line, _ in kept if not CONSEQUENCES.search(line)]
    # every attempt, and every process that passes an exception on, prints the same lines again
    return tuple(dict.fromkeys(raised[-40:]))[-limit:] or tuple(rest[-limit:])


def _letter(line: str) -> str | None:
    """The level in llama.cpp's prefix: D, I, W or E."""
    prefix = ENGINE_PREFIX.match(_strip_timestamp(line))
    return prefix["letter"] if prefix else None
