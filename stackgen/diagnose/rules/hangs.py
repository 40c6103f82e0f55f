"""Rules for replicas that hung. The lines come from `templates/images/common/watch.py`, which watches an engine."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import RESTARTED, strip_prefix
from stackgen.diagnose.rule import Finder, Hit, Rule

__all__ = ["RULES"]

HANG = re.compile(
    r"^stackgen: the service hangs: no progress for (?P<seconds>\d+)s, (?P<state>.+), no answer to a request for one "
    r"token, (?P<reason>.+)$"
)
# the service ended before it was healthy: the hang is not its newest failure
FAILED_START = re.compile(r"^stackgen: the service ended with code \d+ .* was never healthy")
GAVE_UP = re.compile(r"^stackgen: the service hung \d+ times within an hour: giving up")
SOURCE = (
    "The line comes from stackgen's watch for hangs. The failure was reproduced with {how}, on vLLM 0.32.0's CPU build."
)


def _last_hang(service: ServiceEvidence) -> tuple[re.Match[str], tuple[str, ...], int] | None:
    """The newest hang, its line and what became of it, and the number of hangs in the log.

    None if the service ended for another reason after its newest hang: that reason is the one to report.
    """
    hang: re.Match[str] | None = None
    lines: tuple[str, ...] = ()
    number = 0
    for line in map(strip_prefix, service.log.splitlines()):
        if match := HANG.match(line):
            hang, lines, number = match, (line,), number + 1
        elif FAILED_START.match(line) or (RESTARTED.match(line) and "because it hung" not in line):
            hang = None
        elif GAVE_UP.match(line) or RESTARTED.match(line):
            lines = (*lines[:1], line)
    return (hang, lines, number) if hang else None


def _hang_finder(reason: str) -> Finder:
    def find(evidence: Evidence) -> Iterator[Hit]:
        for service in evidence.services:
            found = _last_hang(service)
            # a replica that works again is not the reason why another service doesn't
            if service.is_working and not all(one.is_working for one in evidence.services):
                continue
            if found and re.search(reason, found[0]["reason"]):
                hang, lines, number = found
                times = "once" if number == 1 else f"{number} times"
                yield Hit(service.service, lines, {**hang.groupdict(), "times": times})

    # the first line of the docstring is the condition on the rule's page
    find.__doc__ = f"The service last ended because of a hang, and the reason in its log matches `{reason}`."
    return find


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-S010",
        title="a process of the engine was stopped by SIGSTOP, so the replica hung",
        cause="{service} hung {times}: it made no progress for {seconds} s, because {reason}",
        fix="find the program that sent the signal SIGSTOP (a debugger, a profiler, or a tool that pauses processes); "
        "you don't have to restart the replica: stackgen restarts a replica that hangs, at most three times an hour",
        source=SOURCE.format(how="SIGSTOP to the engine's process"),
        explain="The web server of an engine still answers /health while the engine's compute process is stopped. "
        "The lines `hang:` in the log show the state of each process.",
        find=_hang_finder("is stopped$"),
    ),
    Rule(
        "SG-S011",
        title="the engine hung: its processes waited for each other or for a device",
        cause="{service} hung {times}: it made no progress for {seconds} s, with {state}, and computed nothing",
        fix="compare the Python stacks after the lines `hang:` in the log with the engine's issues, and try the "
        "engine's newest version; you don't have to restart the replica: stackgen restarts a replica that hangs, at "
        "most three times an hour",
        source="The line comes from stackgen's watch for hangs. The failure was reproduced with a stand-in for vLLM "
        "whose engine process waits forever.",
        explain="Known causes are deadlocks of the engine, a tensor-parallel rank that waits for another rank, and "
        "drivers. `Fatal Python error: Aborted` in this part of the log is not a crash: stackgen sends SIGABRT, so "
        "that Python prints the position of each thread.",
        find=_hang_finder("are asleep$"),
    ),
    Rule(
        "SG-S012",
        title="the engine computed without a result for too long",
        cause="{service} hung {times}: with {state}, its processes computed, but made no progress for {seconds} s",
        fix="compare the Python stacks after the lines `hang:` in the log with the engine's issues; if prompts take "
        "this long on this machine, increase hang_timeout: stackgen waits 40 times as long for an engine that still "
        "computes",
        source="The line comes from stackgen's watch for hangs. The failure was reproduced with a stand-in for vLLM "
        "whose engine process computes forever.",
        explain="For a long prompt on a CPU, or for a compiler, a computation of several minutes is normal. So "
        "stackgen waits 17 minutes by default before it restarts a replica that computes.",
        find=_hang_finder("compute without a result$"),
    ),
)
