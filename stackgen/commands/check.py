"""`stackgen check`: once, or again and again."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from stackgen.commands.output import leave, note, print_data, print_report

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

    targets, options = targets_of(words), options_of(words)
    if words.watch is not None:
        return _watch(words, targets, options)
    try:
        # progress is for people: silent where nobody looks on
        report = run_check(targets, options, words.wait, _progress if sys.stderr.isatty() else None)
    except KeyboardInterrupt:
        note("stackgen: stopped")
        leave(130)
    _write(words, report)
    return print_report(words, report, words.verbose)


def targets_of(words: Namespace) -> list[Target]:
    """The endpoints that `words` name, with eyes on the services behind those whose stack is known."""
    from stackgen.endpoints import found
    from stackgen.runtimes.observe import observed

    return [
        observed(one.target, one.stack.plan, one.endpoint, one.stack.folder)
        if one.stack and one.endpoint
        else one.target
        for one in found(words)
    ]


def options_of(words: Namespace) -> Options:
    """How deep to look, from `words`. Raises StackgenError for what makes no sense, before anything is sent."""
    from stackgen.check.checks import choose
    from stackgen.check.options import Options

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
            report = run_check(targets, options, 0.0 if rounds else words.wait)
            code, rounds = report.exit_code, rounds + 1
            _write(words, report)
            if words.json:
                print(json.dumps(report.to_json()), flush=True)
            for endpoint in report.endpoints if not words.json else ():
                for line in change_lines(before.get(endpoint.name), endpoint, color=sys.stdout.isatty()):
                    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
                before[endpoint.name] = endpoint
            if rounds == words.rounds:
                return code
            time.sleep(max(SHORTEST_PAUSE, words.watch - (time.monotonic() - started)))
    except KeyboardInterrupt:
        # the way to end a watch; what it saw last is the answer
        leave(code)


def _write(words: Namespace, report: Report) -> None:
    """The files that were asked for, and with --debug every request on stderr."""
    from stackgen.write import write_atomically

    if words.junit:
        from stackgen.check.junit import as_junit

        write_atomically(Path(words.junit), as_junit(report))
    if words.html:
        from stackgen.check.page import as_html

        write_atomically(Path(words.html), as_html(report))
    if words.debug:
        from stackgen.check.text import as_exchanges

        for line in as_exchanges(report):
            note(line)


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
