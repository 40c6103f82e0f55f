"""`stackgen exporter`: metrics and a status page, until it is told to end."""

from __future__ import annotations

import json
import signal
from argparse import Namespace
from dataclasses import replace

from stackgen.check.limits import seconds
from stackgen.check.options import Options
from stackgen.cli.commands.check import targets_of
from stackgen.cli.commands.output import ends_on_interrupt, interrupted, leave, note, print_data
from stackgen.exporter import monitoring, render_metrics, serve, state_of
from stackgen.providers.probe import run_check

__all__ = ["exporter"]


def exporter(args: Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C; with `--once` prints the metrics of one round and tells by the exit code.

    With `--json` it is the state as `/api/status` sends it, or the address that is served, in a line of stdout.
    """
    seconds("timeout", args.timeout)
    targets = targets_of(args)
    watched = any(target.observer for target in targets)
    quick = monitoring(args.timeout, observed=watched)
    options = quick if args.profile == "quick" else Options(profile=args.profile, timeout=args.timeout)
    options = replace(options, skip=args.skip)
    if args.once:
        try:
            with ends_on_interrupt():
                report = run_check(targets, options)
        except KeyboardInterrupt:
            interrupted()
        if args.json:
            print_data(args, state_of(report, interval=args.interval, profile=args.profile), [])
        else:
            print(render_metrics(report), end="")
        return report.exit_code

    def ready(url: str) -> None:
        if args.json:
            print(json.dumps({"url": url}), flush=True)
        else:
            note(f"status page and metrics: {url}")

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not serve(targets, options, listen=args.listen, interval=args.interval, allow_remote=args.allow_remote,
                 profile=args.profile, on_ready=ready):  # fmt: skip
        # Python would wait for the thread of a check that a silent server holds, up to its time-out
        leave(0)
    return 0
