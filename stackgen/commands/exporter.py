"""`stackgen exporter`: metrics and a status page, until it is told to end."""

from __future__ import annotations

import os
import signal
from argparse import Namespace

from stackgen.commands.output import note

__all__ = ["exporter"]


def exporter(words: Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C; with `--once` prints the metrics of one round and tells by the exit code."""
    from dataclasses import replace

    from stackgen.check.options import Options
    from stackgen.commands.check import targets_of
    from stackgen.exporter import monitoring, render_metrics, serve, unique
    from stackgen.probe import run_check

    targets = unique(targets_of(words))
    watched = any(target.observer for target in targets)
    quick = monitoring(words.timeout, observed=watched)
    options = quick if words.profile == "quick" else Options(profile=words.profile, timeout=words.timeout)
    options = replace(options, skip=words.skip)
    if words.once:
        report = run_check(targets, options)
        print(render_metrics(report), end="")
        return report.exit_code
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not serve(targets, options, listen=words.listen, interval=words.interval, allow_remote=words.allow_remote,
                 profile=words.profile, on_ready=lambda url: note(f"status page and metrics: {url}")):  # fmt: skip
        # Python would wait for the thread of a check that a silent server holds, up to its time-out
        os._exit(0)
    return 0
