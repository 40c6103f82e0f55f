"""`stackgen check`: checks endpoints once, or repeatedly with `--watch`."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace

from stackgen.check.checks.table import CHECKS, select_checks
from stackgen.check.limits import validate_seconds
from stackgen.check.options import PROFILES, Options
from stackgen.check.report import JSON_SCHEMA, EndpointReport, Report
from stackgen.check.report.junit import as_junit
from stackgen.check.report.page import as_html
from stackgen.check.report.text import change_lines, exchange_lines
from stackgen.check.target import Target
from stackgen.cli.commands.cluster_access import reach
from stackgen.cli.commands.output import (
    exit_interrupted,
    exit_now,
    exit_on_interrupt,
    is_stdout,
    note,
    print_data,
    print_report,
    require_writable,
    write_text,
)
from stackgen.cli.scrub import scrub, scrub_json
from stackgen.errors import MachineError, StackgenError
from stackgen.providers.endpoints import ResolvedTarget, resolve_targets, with_unique_names
from stackgen.providers.probe import run_check
from stackgen.runtimes.observation.topology import with_observer

__all__ = ["build_options", "check", "find_observed_targets"]

# seconds; the help of --request-timeout contains it
REQUEST_TIMEOUT = 60.0
# the shortest time between two rounds, even with `--watch 0`: a watch is not a load test
MIN_WATCH_INTERVAL = 0.5


def check(args: Namespace) -> int:
    """Runs `stackgen check`: prints the report of all endpoints."""
    if args.list:
        return _list_checks(args)
    if args.schema:
        print(json.dumps(JSON_SCHEMA, indent=2))
        return 0

    _validate_arguments(args)
    with reach(args, resolve_targets(args)) as resolved:
        return _check(args, _observe(resolved), build_options(args))


def find_observed_targets(args: Namespace) -> list[Target]:
    """Returns the endpoints that `args` select. Endpoints of a known stack also observe the stack's services."""
    return _observe(resolve_targets(args))


def _check(args: Namespace, targets: list[Target], options: Options) -> int:
    if args.watch is not None:
        return _watch(args, targets, options)
    try:
        # progress is printed on a terminal only, because it would fill the logs of CI
        with exit_on_interrupt():
            report = run_check(targets, options, args.wait, _print_progress if sys.stderr.isatty() else None)
    except KeyboardInterrupt:
        exit_interrupted()
    # the report is printed first, so that it is not lost if a file can't be written
    to_stderr = any(is_stdout(path) for path in _output_files(args).values())
    code = print_report(args, report, args.verbose, to_stderr=to_stderr)
    _write_output_files(args, report)
    return code


def _observe(resolved: list[ResolvedTarget]) -> list[Target]:
    # reports identify endpoints by name, and two URLs with the same host and port have the same name
    return with_unique_names(
        [
            with_observer(one.target, one.stack.plan, one.endpoint, one.stack.folder)
            if one.stack and one.endpoint and not one.stack.site.is_cluster
            else one.target
            for one in resolved
        ]
    )


def build_options(args: Namespace) -> Options:
    """Returns the options of the check. Raises StackgenError for invalid options, before any request is sent."""
    for name, value in (("timeout", args.timeout), ("request-timeout", args.request_timeout)):
        if value is not None:
            validate_seconds(name, value)
    options = Options(
        profile=args.profile, timeout=args.request_timeout or args.timeout or REQUEST_TIMEOUT, select=args.select,
        skip=args.skip, load=args.load, max_ttft=args.max_ttft, min_tokens_per_second=args.min_tokens_per_second,
        workers=args.workers, time_limit=args.timeout, max_tokens=args.max_tokens,
    )  # fmt: skip
    select_checks(options)
    return options


def _watch(args: Namespace, targets: list[Target], options: Options) -> int:
    """Checks until Ctrl-C or `--rounds`. Returns the last exit code. With --json, prints a line of JSON each round."""
    before: dict[str, EndpointReport] = {}
    code, rounds = 0, 0
    try:
        while True:
            started = time.monotonic()
            with exit_on_interrupt():
                # only the first round waits: later rounds must report an endpoint that went down
                report = run_check(targets, options, 0.0 if rounds else args.wait)
            code, rounds = report.exit_code, rounds + 1
            if args.json:
                print(json.dumps(scrub_json(report.to_json())), flush=True)
            for endpoint in report.endpoints if not args.json else ():
                for line in change_lines(before.get(endpoint.name), endpoint, color=sys.stdout.isatty()):
                    print(scrub(f"{time.strftime('%H:%M:%S')}  {line}"), flush=True)
                before[endpoint.name] = endpoint
            _write_output_files(args, report)
            if rounds == args.rounds:
                return code
            time.sleep(max(MIN_WATCH_INTERVAL, args.watch - (time.monotonic() - started)))
    except KeyboardInterrupt:
        # Ctrl-C is the normal end of a watch, so the exit code is that of the last round
        if rounds:
            exit_now(code)
        exit_interrupted()


def _validate_arguments(args: Namespace) -> None:
    """Raises StackgenError or MachineError for invalid arguments, before any request is sent."""
    validate_seconds("wait", args.wait, zero=True)
    if args.watch is not None:
        validate_seconds("watch", args.watch, zero=True)
    if args.rounds is not None and args.rounds < 1:
        raise StackgenError(f"--rounds must be 1 or more, not {args.rounds}", "omit --rounds to watch until Ctrl-C")
    files = _output_files(args)
    for option, path in files.items():
        require_writable(path, option)
    # two documents in one stream would not be a valid document
    users = [option for option, path in files.items() if is_stdout(path)]
    users += ["--json"] * args.json + ["--watch"] * (args.watch is not None)
    if len(users) > 1 and any(is_stdout(path) for path in files.values()):
        raise StackgenError(f"{' and '.join(users)} can't share standard output", "write one of the outputs to a file")


def _output_files(args: Namespace) -> dict[str, str]:
    return {option: path for option, path in (("--junit", args.junit), ("--html", args.html)) if path}


def _write_output_files(args: Namespace, report: Report) -> None:
    """Writes the files of --junit and --html, and with --debug prints every request to stderr."""
    problem: MachineError | None = None
    for option, path in _output_files(args).items():
        try:
            write_text(path, as_junit(report) if option == "--junit" else as_html(report))
        except MachineError as error:
            # write the other file first, then raise
            problem = problem or error
    if args.debug:
        for line in exchange_lines(report):
            note(line)
    if problem:
        raise problem


def _list_checks(args: Namespace) -> int:
    """Prints every check: its name, the smallest profile that includes it, and what it checks."""
    rows = [{"name": one.name, "profile": PROFILES[one.depth], "about": one.about, "needs": list(one.needs),
             "per_model": one.per_model} for one in CHECKS]  # fmt: skip
    width = max(len(one.name) for one in CHECKS)
    print_data(args, {"checks": rows}, [f"{one['name']:{width}}  {one['profile']:7}  {one['about']}" for one in rows])
    return 0


def _print_progress(name: str, layer: str, message: str) -> None:
    # print only that stackgen waits: waiting takes long, and the report contains everything else
    if message.startswith(("waiting", "not waiting")):
        note(f"{name}  {layer}: {message}")
