"""`stackgen check`: once, or again and again."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace

from stackgen.check.checks.table import CHECKS, choose
from stackgen.check.limits import seconds
from stackgen.check.options import PROFILES, Options
from stackgen.check.report import JSON_SCHEMA, EndpointReport, Report
from stackgen.check.report.junit import as_junit
from stackgen.check.report.page import as_html
from stackgen.check.report.text import as_exchanges, change_lines
from stackgen.check.target import Target
from stackgen.cli.commands.output import (
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
from stackgen.errors import MachineError, StackgenError
from stackgen.providers.endpoints import found, unique
from stackgen.providers.probe import run_check
from stackgen.runtimes.observation.topology import observed

__all__ = ["check", "options_of", "targets_of"]

# no faster than this, whatever is asked for: a watch must not become a load test
SHORTEST_PAUSE = 0.5


def check(args: Namespace) -> int:
    """`stackgen check`: the report of all endpoints."""
    if args.list:
        return _list(args)
    if args.schema:
        print(json.dumps(JSON_SCHEMA, indent=2))
        return 0

    _sensible(args)
    targets, options = targets_of(args), options_of(args)
    if args.watch is not None:
        return _watch(args, targets, options)
    try:
        # progress is for people: silent where nobody looks on
        with ends_on_interrupt():
            report = run_check(targets, options, args.wait, _progress if sys.stderr.isatty() else None)
    except KeyboardInterrupt:
        interrupted()
    # printed first: a file that can't be written must not take the report with it
    code = print_report(args, report, args.verbose, aside=any(is_stdout(where) for where in _files(args).values()))
    _write(args, report)
    return code


def targets_of(args: Namespace) -> list[Target]:
    """The endpoints that `words` name, with eyes on the services behind those whose stack is known."""
    # two URLs of one host and port have one name, and reports are told apart by it
    return unique(
        [
            observed(one.target, one.stack.plan, one.endpoint, one.stack.folder)
            if one.stack and one.endpoint
            else one.target
            for one in found(args)
        ]
    )


def options_of(args: Namespace) -> Options:
    """How deep to look, from `words`. Raises StackgenError for what makes no sense, before anything is sent."""
    seconds("timeout", args.timeout)
    options = Options(
        profile=args.profile, timeout=args.timeout, select=args.select, skip=args.skip, load=args.load,
        workers=args.workers, max_ttft=getattr(args, "max_ttft", None),
        min_tokens_per_second=getattr(args, "min_tokens_per_second", None),
    )  # fmt: skip
    choose(options)
    return options


def _watch(args: Namespace, targets: list[Target], options: Options) -> int:
    """Rounds until Ctrl-C or `--rounds`; the last one's exit code. With --json a report a round, a line each."""
    before: dict[str, EndpointReport] = {}
    code, rounds = 0, 0
    try:
        while True:
            started = time.monotonic()
            with ends_on_interrupt():
                report = run_check(targets, options, 0.0 if rounds else args.wait)
            code, rounds = report.exit_code, rounds + 1
            if args.json:
                print(json.dumps(report.to_json()), flush=True)
            for endpoint in report.endpoints if not args.json else ():
                for line in change_lines(before.get(endpoint.name), endpoint, color=sys.stdout.isatty()):
                    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
                before[endpoint.name] = endpoint
            _write(args, report)
            if rounds == args.rounds:
                return code
            time.sleep(max(SHORTEST_PAUSE, args.watch - (time.monotonic() - started)))
    except KeyboardInterrupt:
        # the way to end a watch; what it saw last is the answer
        if rounds:
            leave(code)
        interrupted()


def _sensible(args: Namespace) -> None:
    """Raises StackgenError or MachineError for words that make no sense, before anything is sent."""
    seconds("wait", args.wait, zero=True)
    if args.watch is not None:
        seconds("watch", args.watch, zero=True)
    if args.rounds is not None and args.rounds < 1:
        raise StackgenError(f"rounds must be above 0, and is {args.rounds}", "without --rounds a watch has no end")
    files = _files(args)
    for option, where in files.items():
        must_be_writable(where, option)
    taken = [option for option, where in files.items() if is_stdout(where)]
    taken += ["--json"] * args.json + ["--watch"] * (args.watch is not None)
    if len(taken) > 1 and any(is_stdout(where) for where in files.values()):
        raise StackgenError(f"{' and '.join(taken)} would mix on standard output", "send one of them to a file")


def _files(args: Namespace) -> dict[str, str]:
    return {name: where for name, where in (("--junit", args.junit), ("--html", args.html)) if where}


def _write(args: Namespace, report: Report) -> None:
    """The files that were asked for, and with --debug every request on stderr."""
    problem: MachineError | None = None
    for option, where in _files(args).items():
        try:
            write_text(where, _as_junit(report) if option == "--junit" else _as_html(report))
        except MachineError as error:
            # the other file is written all the same
            problem = problem or error
    if args.debug:
        for line in as_exchanges(report):
            note(line)
    if problem:
        raise problem


def _as_junit(report: Report) -> str:
    return as_junit(report)


def _as_html(report: Report) -> str:
    return as_html(report)


def _list(args: Namespace) -> int:
    """`--list`: every check, from which profile on it runs, and what it looks at."""
    rows = [{"name": one.name, "profile": PROFILES[one.depth], "about": one.about, "needs": list(one.needs),
             "per_model": one.per_model} for one in CHECKS]  # fmt: skip
    width = max(len(one.name) for one in CHECKS)
    print_data(args, {"checks": rows}, [f"{one['name']:{width}}  {one['profile']:7}  {one['about']}" for one in rows])
    return 0


def _progress(name: str, layer: str, message: str) -> None:
    # only what takes long; the report tells the rest
    if message.startswith(("waiting", "not waiting")):
        note(f"{name}  {layer}: {message}")
