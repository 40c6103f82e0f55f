"""How containers ended, in the outputs of `docker ps` and `docker inspect` that users paste in place of a log."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stackgen.diagnose.prefixes import strip_prefix

__all__ = ["SIGNALS", "ContainerState", "find_ended_container", "is_inspect_line"]

# 128 plus the number of a signal that a program itself causes
SIGNALS = {"132": "SIGILL, an illegal instruction", "134": "SIGABRT, an abort", "135": "SIGBUS, a bus error",
           "136": "SIGFPE, an arithmetic error", "139": "SIGSEGV, a segmentation fault"}  # fmt: skip
# rows of `docker ps -a` have the name at their end, those of `docker compose ps -a` at their start
ROW = re.compile(
    r"^(?:(?P<first>\S+)\s.*?\s)?(?P<state>Exited|Restarting) \((?P<code>\d{1,3})\) (?:About )?(?P<age>[\w ]{1,20}) "
    r"ago\b"
    r"(?:.*\s(?P<last>[\w.-]+)\s*$)?"
)
ID = re.compile(r"^[0-9a-f]{12}$")
# an old container of the machine is not the one that the user asks about
OLD = re.compile(r"\b(?:weeks?|months?|years?)$")
# of `docker inspect` and `podman inspect`: fields of State over several lines, in one line, and of a template
INSPECTED = re.compile(
    r'"OOMKilled": ?(?P<oom>true|false),[^{}]{0,300}?"ExitCode": ?(?P<code>\d{1,3})\b|'
    r"\bExitCode[=: ]{1,2}(?P<code2>\d{1,3})[,; ]{1,2}OOMKilled[=: ]{1,2}(?P<oom2>true|false)|"
    r"\bOOMKilled[=: ]{1,2}(?P<oom3>true|false)[,; ]{1,2}ExitCode[=: ]{1,2}(?P<code3>\d{1,3})\b"
)
NAME = re.compile(r'^\s*"Name": ?"/(?P<name>[\w.-]+)"', re.M)
INSPECT_LINE = re.compile(r'^\s*(?:"[^"]{1,200}"(?:: ?.{0,300}?[^\s:])?[,\[{]?|[\[\]{}]{1,2},?)\s*$')


@dataclass(frozen=True, slots=True)
class ContainerState:
    """How a container ended. `name` is "" and `oom_killed` is None if the text does not contain them."""

    code: int
    name: str
    oom_killed: bool | None
    lines: tuple[str, ...]


def find_ended_container(text: str) -> ContainerState | None:
    """The first container in `text` that ended with an error; a state of `docker inspect` says more than a row."""
    for found in INSPECTED.finditer(text):
        groups = found.groupdict()
        code = int(groups["code"] or groups["code2"] or groups["code3"])
        oom = (groups["oom"] or groups["oom2"] or groups["oom3"]) == "true"
        # a text of several containers does not show whose state this is
        names = {one["name"] for one in NAME.finditer(text)}
        if _is_error(code):
            parts = [part.strip() for part in found[0].splitlines()]
            shown = tuple(dict.fromkeys((parts[0], parts[-1])))
            return ContainerState(code, names.pop() if len(names) == 1 else "", oom, shown)
    for line in map(strip_prefix, text.splitlines()):
        row = ROW.match(line.strip()) if "Exited (" in line or "Restarting (" in line else None
        if row and _is_error(int(row["code"])) and not OLD.search(row["age"]):
            first = row["first"] or ""
            name = (row["last"] or "") if not first or ID.match(first) else first
            return ContainerState(int(row["code"]), name, None, (line.strip(),))
    return None


def is_inspect_line(line: str) -> bool:
    """Whether `line` is a part of JSON over several lines, as `docker inspect` prints it."""
    return bool(INSPECT_LINE.match(line))


def _is_error(code: int) -> bool:
    # `docker stop` and Ctrl-C end a program with 130 or 143
    return code not in (0, 130, 143)
