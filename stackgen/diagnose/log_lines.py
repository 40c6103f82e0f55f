"""Reads the state of a service from its log: lines since the last successful start, crashes, answers, key lines."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from functools import lru_cache

from stackgen.diagnose.error_lines import (
    find_error_lines,
    find_root_lines,
    is_consequence,
    is_error,
    is_routine,
    select_key_lines,
)
from stackgen.diagnose.log_text import OMITTED
from stackgen.diagnose.prefixes import is_below_error, process_name, strip_prefix

__all__ = [
    "count_restarts",
    "find_endings",
    "find_failed_request",
    "find_key_lines",
    "find_last_request",
    "has_been_ready",
    "has_certain_error",
    "has_crashed",
    "has_failed",
    "has_served",
    "is_below_error",
    "key_lines_before_restart",
    "last_status",
    "lines_after",
    "lines_since_ready",
    "process_name",
    "recent_lines",
    "strip_prefix",
]  # fmt: skip

READY = re.compile(r"Application startup complete|Uvicorn running on|server is listening on|llama_server: listening on")
# an answer of any status shows that the server runs: access logs of uvicorn and of llama-server
SERVED = re.compile(r'HTTP/1\.[01]" [1-5]\d\d|log_server_r: request: \w+ /\S* \S+ [1-5]\d\d')
# answers to POST requests in access logs, and what llama-server logs for an answered and for a refused request
ANSWERED = re.compile(
    r'"POST /\S* HTTP/1\.[01]" (?P<status>\d\d\d)|log_server_r: request: POST /\S* \S+ (?P<status2>\d\d\d)|'
    r"print_timing: +id |(?P<refused>send_error: task id)"
)
# what supervise.sh prints before it restarts a service that was healthy
RESTARTED = re.compile(r"^stackgen: the service was healthy and ended with code (?P<code>\d+)")
CRASHED = re.compile(
    r"and was never healthy|EngineDeadError|^(?:[\w.-]+ )?exited with code (?!(?:0|130|143)\b)\d|\(core dumped\)|"
    r"^(?:\S+: line \d+:\s+\d+\s+)?(?:Segmentation fault|Illegal instruction|Bus error)\b|^!+ Segfault encountered|"
    # the body of vLLM's answers after the end of its engine core
    r"^\{.{0,60}EngineCore encountered an issue|"
    # of llama.cpp, which stops itself if one of its checks fails
    r"\(ggml_abort\+0x|"
    # of SGLang, whose scheduler has ended
    r"^Received sigquit from a child process|^Initialization failed\. warmup error|"
    r"^Fatal Python error: |^terminate called (?:after|without)|^(?:ERROR:\s+)?\[Errno 9[89]\] error while attempting"
)
# an engine that prints one of these lines did not become ready
FAILED = re.compile(
    r"^Traceback \(most recent|: error: |See root cause above|Error response from daemon|^dependency failed to start|"
    r"exiting due to model loading error|^error: invalid argument: |^error while handling argument |"
    r"^[\w.]*ValidationError: \d|^(?:Error|invalid spec|rocBLAS error|\S+\.\w+: error): |error: GET failed \(|^exec "
    r"(?:\S+|container process \S+): [Ee]xec format error|"
    # of vLLM, whose process ended with an exception or was killed; also after Ctrl-C
    r"^Worker proc \S+ died unexpectedly|^Process EngineCore\w*:$"
)
# how many of the last lines of a log show whether it ends with errors
LAST_LINES = 12
ENDS_WITH_EXCEPTION = re.compile(r"^[\w.]+(?:Error|Exception)\b(?::|$)")


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


def last_status(text: str) -> int | None:
    """The HTTP status of the last request that the log shows; None for a log that shows no answer."""
    last = next(iter(deque(ANSWERED.finditer(text), maxlen=1)), None)
    # llama-server logs no status, but one line for a refused request and another for an answered one
    return int(last["status"] or last["status2"] or ("400" if last["refused"] else "200")) if last else None


def find_last_request(text: str) -> str:
    """The last request in the log with its status; "" for a log that shows no answer."""
    last = next(iter(deque(ANSWERED.finditer(text), maxlen=1)), None)
    return last[0].strip() if last else ""


def find_failed_request(text: str) -> str:
    """The last request that the server could not answer (status 500 and above); "" if there is none."""
    failed = [one for one in ANSWERED.finditer(text) if (one["status"] or one["status2"] or "").startswith("5")]
    return f"{strip_prefix(failed[-1][0])[:200]}".replace('"', "").strip() if failed else ""


@lru_cache(maxsize=32)
def has_crashed(text: str) -> bool:
    """Whether the service has ended since it was last ready."""
    lines = [strip_prefix(line) for line in lines_since_ready(text) if not is_below_error(line)]
    return any(CRASHED.search(line) or RESTARTED.match(line) for line in lines)


def has_failed(text: str) -> bool:
    """Whether the log shows a failed start."""
    lines = [strip_prefix(line) for line in lines_since_ready(text) if not is_below_error(line)]
    last = next((line for line in reversed(lines) if line.strip()), "")
    # a server that became ready would have logged something after its errors
    ends_with_errors = bool(find_root_lines(lines_since_ready(text)[-LAST_LINES:]))
    return (has_crashed(text) or bool(ENDS_WITH_EXCEPTION.match(last)) or ends_with_errors
            or any(FAILED.search(line) for line in lines))  # fmt: skip


def count_restarts(text: str) -> int:
    """How often supervise.sh restarted the service after it had been healthy."""
    return sum(1 for line in text.splitlines() if RESTARTED.match(strip_prefix(line)))


# cached because every rule reads the same lines
@lru_cache(maxsize=32)
def recent_lines(text: str, errors: bool = False) -> tuple[str, ...]:
    """The lines since the service was last ready, without prefixes, the newest first; only error lines if `errors`."""
    lines = reversed(lines_since_ready(text))
    return tuple(strip_prefix(line) for line in lines if not errors or is_error(line))


def key_lines_before_restart(text: str, limit: int = 4) -> tuple[str, ...]:
    """The key lines of the last run that ended after it had been healthy."""
    lines = text.splitlines()
    last = max((index for index, line in enumerate(lines) if RESTARTED.match(strip_prefix(line))), default=len(lines))
    return find_key_lines("\n".join(lines[:last]), limit)


@lru_cache(maxsize=32)
def find_key_lines(text: str, limit: int = 6) -> tuple[str, ...]:
    """The lines that most likely show the reason, in the order of the log.

    Without an error, the last lines of the log that are neither routine nor a consequence of another error.
    """
    lines = lines_since_ready(text)
    last = [plain for line in lines if (plain := strip_prefix(line).strip())]
    rest = [plain for plain in last if not is_consequence(plain)]
    rest = [plain for plain in rest if not is_routine(plain)] or rest
    if found := select_key_lines(lines, limit):
        return found
    # after a restart, the routine lines of the next start would hide how the last run ended
    ends = [i for i, line in enumerate(lines) if CRASHED.search(strip_prefix(line)) and not is_below_error(line)]
    if ends:
        before = [plain for line in lines[: ends[-1]] if (plain := strip_prefix(line).strip())]
        before = [plain for plain in before if not is_routine(plain)] or before
        return tuple(dict.fromkeys((*before[1 - limit :], strip_prefix(lines[ends[-1]]).strip())))
    return tuple(dict.fromkeys((rest or last)[-limit:]))


def lines_after(text: str, shown: Sequence[str], limit: int = 3) -> str:
    """The lines that follow the last of `shown` in the log `text`, where programs print their advice."""
    lines = [strip_prefix(line) for line in lines_since_ready(text)]
    place = max((index for index, line in enumerate(lines) if line.strip() in shown and line.strip()), default=None)
    return "" if place is None else "\n".join(lines[place + 1 : place + 1 + limit])


def has_certain_error(text: str) -> bool:
    """Whether a line is an error by its form or level, and not a consequence of another error."""
    return any(one.certain for one in find_error_lines(lines_since_ready(text)))


def find_endings(text: str, limit: int = 4) -> tuple[str, ...]:
    """The errors of a log in which every error follows from something that the log does not show; () otherwise."""
    lines = lines_since_ready(text)
    if select_key_lines(lines, 1):
        return ()
    plain = (strip_prefix(line).strip() for line in lines if not is_below_error(line))
    return tuple(dict.fromkeys(line for line in plain if is_consequence(line)))[-limit:]
