"""`stackgen exporter`: serves metrics and a status page until SIGTERM or Ctrl-C."""

from __future__ import annotations

import json
import signal
from argparse import Namespace
from dataclasses import replace

from stackgen.check.limits import validate_seconds
from stackgen.check.options import Options
from stackgen.cli.commands.check import find_observed_targets
from stackgen.cli.commands.output import exit_interrupted, exit_now, exit_on_interrupt, note, print_data
from stackgen.cli.scrub import scrub
from stackgen.exporter import monitoring_options, render_metrics, report_status, serve
from stackgen.providers.probe import run_check

__all__ = ["exporter"]


def exporter(args: Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C. With `--once`, checks once, prints the metrics and returns the check's exit code.

    `--json` prints one line: with `--once` the state as in `/api/status`, otherwise the URL of the status page.
    """
    validate_seconds("timeout", args.timeout)
    targets = find_observed_targets(args)
    # if the containers can be observed too, an observation needs no request to the engine
    has_observer = any(target.observer for target in targets)
    quick = monitoring_options(args.timeout, observed=has_observer)
    options = quick if args.profile == "quick" else Options(profile=args.profile, timeout=args.timeout)
    options = replace(options, skip=args.skip)
    if args.once:
        try:
            with exit_on_interrupt():
                report = run_check(targets, options)
        except KeyboardInterrupt:
            exit_interrupted()
        if args.json:
            print_data(args, report_status(report, interval=args.interval, profile=args.profile), [])
        else:
            print(scrub(render_metrics(report)), end="")
        return report.exit_code

    def ready(url: str) -> None:
        if args.json:
            # flush: a program that reads the URL from a pipe would wait until the server ends
            print(json.dumps({"url": url}), flush=True)
        else:
            note(f"status page and metrics: {url}")

    # `docker stop` sends SIGTERM, which must end the server like Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not serve(targets, options, listen=args.listen, interval=args.interval, allow_remote=args.allow_remote,
                 profile=args.profile, on_ready=ready):  # fmt: skip
        # not sys.exit, which would wait for a check of a silent server until the check's timeout
        exit_now(0)
    return 0
