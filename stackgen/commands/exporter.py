"""`stackgen exporter`: metrics and a status page, until it is told to end."""

from __future__ import annotations

import json
import signal
from argparse import Namespace

from stackgen.commands.output import ends_on_interrupt, interrupted, leave, note, print_data

__all__ = ["exporter"]


def exporter(words: Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C; with `--once` prints the metrics of one round and tells by the exit code.

    With `--json` it is the state as `/api/status` sends it, or the address that is served, in a line of stdout.
    """
    from dataclasses import replace

    from stackgen.check.limits import seconds
    from stackgen.check.options import Options
    from stackgen.commands.check import targets_of
    from stackgen.exporter import monitoring, render_metrics, serve, state_of
    from stackgen.probe import run_check

    seconds("timeout", words.timeout)
    targets = targets_of(words)
    watched = any(target.observer for target in targets)
    quick = monitoring(words.timeout, observed=watched)
    options = quick if words.profile == "quick" else Options(profile=words.profile, timeout=words.timeout)
    options = replace(options, skip=words.skip)
    if words.once:
        try:
            with ends_on_interrupt():
                report = run_check(targets, options)
        except KeyboardInterrupt:
            interrupted()
        if words.json:
            print_data(words, state_of(report, interval=words.interval, profile=words.profile), [])
        else:
            print(render_metrics(report), end="")
        return report.exit_code

    def ready(url: str) -> None:
        if words.json:
            print(json.dumps({"url": url}), flush=True)
        else:
            note(f"status page and metrics: {url}")

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not serve(targets, options, listen=words.listen, interval=words.interval, allow_remote=words.allow_remote,
                 profile=words.profile, on_ready=ready):  # fmt: skip
        # Python would wait for the thread of a check that a silent server holds, up to its time-out
        leave(0)
    return 0
