"""`stackgen check`: once, or again and again."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from typing import TYPE_CHECKING

from stackgen.commands.output import (
    ends_on_interrupt,
    interrupted,
    is_stdout,
    leave,
    must_be_writable,
    note,
    print_data,
    print_report,
    write_text,
)

if TYPE_CHECKING:
    from stackgen.check.options import Options
    from stackgen.check.report import EndpointReport, Report
    from stackgen.check.target import Target

__all__ = ["check", "options_of", "targets_of"]

# no faster than this, whatever is asked for: a watch must not become a load test
SHORTEST_PAUSE = 0.5


def check(words: Namespace) -> int:
    """`stackgen check`: the report of all endpoints."""
    if words.list:
        return _list(words)
    if words.schema:
        from stackgen.check.report import JSON_SCHEMA

        print(json.dumps(JSON_SCHEMA, indent=2))
        return 0
    from stackgen.probe import run_check

    _sensible(words)
    targets, options = targets_of(words), options_of(words)
    if words.watch is not None:
        return _watch(words, targets, options)
    try:
        # progress is for people: silent where nobody looks on
        with ends_on_interrupt():
            report = run_check(targets, options, words.wait, _progress if sys.stderr.isatty() else None)
    except KeyboardInterrupt:
        interrupted()
    # printed first: a file that can't be written must not take the report with it
    code = print_report(words, report, words.verbose, aside=any(is_stdout(where) for where in _files(words).values()))
    _write(words, report)
    return code


def targets_of(words: Namespace) -> list[Target]:
    """The endpoints that `words` name, with eyes on the services behind those whose stack is known."""
    from stackgen.endpoints import found, unique
    from stackgen.runtimes.observe import observed

    # two URLs of one host and port have one name, and reports are told apart by it
    return unique(
        [
            observed(one.target, one.stack.plan, one.endpoint, one.stack.folder)
            if one.stack and one.endpoint
            else one.target
            for one in found(words)
        ]
    )


def options_of(words: Namespace) -> Options:
    """How deep to look, from `words`. Raises StackgenError for what makes no sense, before anything is sent."""
    from stackgen.check.checks import choose
    from stackgen.check.limits import seconds
    from stackgen.check.options import Options

    seconds("timeout", words.timeout)
    options = Options(
        profile=words.profile, timeout=words.timeout, select=words.select, skip=words.skip, load=words.load,
        workers=words.workers, max_ttft=getattr(words, "max_ttft", None),
        min_tokens_per_second=getattr(words, "min_tokens_per_second", None),
    )  # fmt: skip
    choose(options)
    return options


def _watch(words: Namespace, targets: list[Target], options: Options) -> int:
    """Rounds until Ctrl-C or `--rounds`; the last one's exit code. With --json a report a round, a line each."""
    from stackgen.check.text import change_lines
    from stackgen.probe import run_check

    before: dict[str, EndpointReport] = {}
    code, rounds = 0, 0
    try:
        while True:
            started = time.monotonic()
            with ends_on_interrupt():
                report = run_check(targets, options, 0.0 if rounds else words.wait)
            code, rounds = report.exit_code, rounds + 1
            if words.json:
                print(json.dumps(report.to_json()), flush=True)
            for endpoint in report.endpoints if not words.json else ():
                for line in change_lines(before.get(endpoint.name), endpoint, color=sys.stdout.isatty()):
                    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
                before[endpoint.name] = endpoint
            _write(words, report)
            if rounds == words.rounds:
                return code
            time.sleep(max(SHORTEST_PAUSE, words.watch - (time.monotonic() - started)))
    except KeyboardInterrupt:
        # the way to end a watch; what it saw last is the answer
        if rounds:
            leave(code)
        interrupted()


def _sensible(words: Namespace) -> None:
    """Raises StackgenError or MachineError for words that make no sense, before anything is sent."""
    from stackgen.check.limits import seconds
    from stackgen.errors import StackgenError

    seconds("wait", words.wait, zero=True)
    if words.watch is not None:
        seconds("watch", words.watch, zero=True)
    if words.rounds is not None and words.rounds < 1:
        raise StackgenError(f"rounds must be above 0, and is {words.rounds}", "without --rounds a watch has no end")
    files = _files(words)
    for option, where in files.items():
        must_be_writable(where, option)
    taken = [option for option, where in files.items() if is_stdout(where)]
    taken += ["--json"] * words.json + ["--watch"] * (words.watch is not None)
    if len(taken) > 1 and any(is_stdout(where) for where in files.values()):
        raise StackgenError(f"{' and '.join(taken)} would mix on standard output", "send one of them to a file")


def _files(words: Namespace) -> dict[str, str]:
    return {name: where for name, where in (("--junit", words.junit), ("--html", words.html)) if where}


def _write(words: Namespace, report: Report) -> None:
    """The files that were asked for, and with --debug every request on stderr."""
    from stackgen.errors import MachineError

    problem: MachineError | None = None
    for option, where in _files(words).items():
        try:
            write_text(where, _as_junit(report) if option == "--junit" else _as_html(report))
        except MachineError as error:
            # the other file is written all the same
            problem = problem or error
    if words.debug:
        from stackgen.check.text import as_exchanges

        for line in as_exchanges(report):
            note(line)
    if problem:
        raise problem


def _as_junit(report: Report) -> str:
    from stackgen.check.junit import as_junit

    return as_junit(report)


def _as_html(report: Report) -> str:
    from stackgen.check.page import as_html

    return as_html(report)


def _list(words: Namespace) -> int:
    """`--list`: every check, from which profile on it runs, and what it looks at."""
    from stackgen.check.checks import CHECKS
    from stackgen.check.options import PROFILES

    rows = [{"name": one.name, "profile": PROFILES[one.depth], "about": one.about, "needs": list(one.needs),
             "per_model": one.per_model} for one in CHECKS]  # fmt: skip
    width = max(len(one.name) for one in CHECKS)
    print_data(words, {"checks": rows}, [f"{one['name']:{width}}  {one['profile']:7}  {one['about']}" for one in rows])
    return 0


def _progress(name: str, layer: str, message: str) -> None:
    # only what takes long; the report tells the rest
    if message.startswith(("waiting", "not waiting")):
        note(f"{name}  {layer}: {message}")
