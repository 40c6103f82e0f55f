"""The arguments of `stackgen exporter`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Subcommands, add_endpoint_arguments, split_names

__all__ = ["add_exporter"]


def add_exporter(subcommands: Subcommands) -> None:
    """Adds `stackgen exporter`."""
    exporter = subcommands.add(
        "exporter", "check endpoints at an interval, and serve Prometheus metrics and a status page"
    )
    add_endpoint_arguments(exporter)
    # loopback by default: the page has no authentication and shows responses of the models
    exporter.add_argument(
        "--listen", default="127.0.0.1:9464", metavar="HOST:PORT",
        help="address of the metrics and the status page (default: 127.0.0.1:9464)",
    )  # fmt: skip
    exporter.add_argument(
        "--interval", type=float, default=30.0, metavar="SECONDS",
        help="seconds from the start of one round of checks to the start of the next (default: 30)",
    )  # fmt: skip
    exporter.add_argument(
        "--profile", choices=("quick", "default", "deep"), default="quick",
        help="profile of the checks to run (default: quick); in the exporter, the profile `quick` also streams "
        "a few tokens to measure latency",
    )  # fmt: skip
    exporter.add_argument(
        "--skip", type=split_names, default=(), metavar="NAMES",
        help="skip these checks, for example `auth`: the `auth` check sends wrong keys, and a gateway counts such "
        "requests as rejected",
    )  # fmt: skip
    exporter.add_argument(
        "--allow-remote", action="store_true",
        help="let other machines read the status page, which shows responses of the models",
    )  # fmt: skip
    exporter.add_argument(
        "--once", action="store_true",
        help="check once, print the metrics (with `--json`, print the status instead), and exit with 0 or 1",
    )  # fmt: skip
