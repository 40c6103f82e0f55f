"""Joins messages that a program printed over several lines: rules read line by line, and the cause is at the end."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stackgen.diagnose.prefixes import COMPOSE_PREFIX, process_name, strip_prefix

__all__ = ["join_messages"]

# a hook's output follows in lines of its own, mostly up to an empty line or Docker's hint
DAEMON = re.compile(r"(?:^(?:docker: )?|err=\"?)Error response from daemon: .{0,2000}(?:stderr:|hook|OCI runtime)")
PART = re.compile(
    r"^invoking the NVIDIA Container Runtime Hook|^(?!Error|docker:|Run ')[\w./-]{2,60}(?: \w+)?: \S|^\s*: \w|"
    r"^(?!Run ')[a-z].{20,600}: unknown\.?$"
)
# a Python exception with a message
EXCEPTION = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception)(?:\(\w+\))?: \S")
# a message of Ray, whose next lines are indented up to its end
RAY = re.compile(r"^[\[(]autoscaler[^\])]{0,40}[\])] \w*(?:Error|Warning): ")
DEEP = re.compile(r"^\s{8,}[{(\[a-z'\"](?!.*\braise )")
# what starts a line of its own: another exception, a traceback, a frame, a label, or a path of a program
OTHER = re.compile(
    r"^(?:Traceback |\s+File \"|(?:[\w.]+\.)?\w*(?:Error|Exception|Warning|Exit)\b|[\w./-]{1,60}(?: +\w+)?: |During "
    r"handling|"
    r"The above exception|For further information|\[|<|\{|[-=*#>]{3,}|[A-Z]{4,} |\d+[.)] |\$ )"
)
# what a terminal or an issue's author breaks although the program printed one line, and how its next line starts
WRAPPED = re.compile(r"^(?:Value error, |(?:\[\w+\] )?(?:UserWarning|Warning): |\[\w+\] .{1,200} failed\b)")
LOWER = re.compile(r"^\s*(?!exited with |terminate called )[a-z][a-z']*(?:[ ,.]|$)|^\s+\w+=\S")
# Python prints its proposal in the line of the exception; a message that was wrapped once goes on in sentences
PROPOSAL = re.compile(r"^\s*Did you mean: ")
SENTENCE = re.compile(r"^\s*[A-Z][a-z]+ [a-z]+ [a-z].*[.,]$")
# characters of a line that may have been too long for the width of a terminal
WIDTH = 60
OPENING, CLOSING = "([{", ")]}"
# of pydantic, whose next lines name the field and what is wrong with it; vLLM's own checks raise a `Value error`, which
# is a message of its own
PYDANTIC = re.compile(r"\b\d+ validation errors? for \S+$")
REASON = re.compile(r"^(?!\s*Value error, ).{1,1500} ?[\[(]type=\w")
# longer messages are mostly values that are printed, not sentences
MAX_LINES, MAX_CHARS = 30, 4000


def join_messages(text: str) -> str:
    """`text` with messages of the Docker daemon, exceptions and warnings that have line breaks in one line each."""
    if "Error response from daemon" in text:
        text = _join_daemon_messages(text)
    heads = ("Error: ", "Exception: ", "Value error, ", "Warning: ", "failed", "validation error")
    return _join_exceptions(text) if any(one in text for one in heads) else text


def _join_daemon_messages(text: str) -> str:
    joined: list[str] = []
    is_open = False
    for line in text.splitlines():
        if is_open and PART.match(line) and not COMPOSE_PREFIX.match(line):
            joined[-1] += f" {line.strip()}"
            continue
        joined.append(line)
        is_open = bool(DAEMON.search(strip_prefix(line)))
    return "\n".join(joined)


def _join_exceptions(text: str) -> str:
    lines = text.splitlines()
    joined: list[str] = []
    index = 0
    while index < len(lines):
        line = lines[index]
        plain = strip_prefix(line)
        is_head = EXCEPTION.match(plain) or WRAPPED.match(plain.lstrip()) or RAY.match(plain)
        if PYDANTIC.search(plain):
            count = _count_reason(lines, index)
        else:
            count = _count_following(lines, index) if is_head else 0
        rest = (strip_prefix(one).strip() for one in lines[index + 1 : index + 1 + count])
        joined.append(" ".join((line.rstrip(), *rest)) if count else line)
        index += 1 + count
    return "\n".join(joined)


def _count_reason(lines: Sequence[str], start: int) -> int:
    """2 if the lines after `start` are the field that pydantic rejects, and the reason; 0 otherwise."""
    process = process_name(lines[start])
    rest = [strip_prefix(one) for one in lines[start + 1 : start + 3] if process_name(one) == process]
    return 2 if len(rest) == 2 and not REASON.match(rest[0]) and REASON.match(rest[1]) else 0


def _count_following(lines: Sequence[str], start: int) -> int:
    """How many of the lines after `start` belong to its exception."""
    process = process_name(lines[start])
    message, count = strip_prefix(lines[start]), 0
    # strip_prefix removes the space at which a terminal or a mail program has wrapped the line
    wrapped = lines[start].endswith(" ")
    for line in lines[start + 1 : start + 1 + MAX_LINES]:
        text = strip_prefix(line)
        if RAY.match(message):
            # Ray prints its prefix only once
            if not DEEP.match(line) or message.endswith("."):
                break
            message, count = f"{message} {text.strip()}", count + 1
            continue
        if not text.strip() or process_name(line) != process or OTHER.match(text) or COMPOSE_PREFIX.match(line):
            break
        is_broken = len(message) >= WIDTH and LOWER.match(text)
        goes_on = is_broken or PROPOSAL.match(text) or (count and SENTENCE.match(text))
        if not (wrapped or goes_on or _is_unfinished(message)) or len(message) > MAX_CHARS:
            break
        message, wrapped, count = f"{message} {text.strip()}", line.endswith(" "), count + 1
    return count


def _is_unfinished(message: str) -> bool:
    depth = sum((char in OPENING) - (char in CLOSING) for char in message)
    return message.endswith((":", ",", *OPENING)) or depth > 0
