"""Words of `stackgen exporter`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Adder, endpoint_words

__all__ = ["add_exporter"]


def add_exporter(add: Adder) -> None:
    """`exporter`: which endpoints, how often, for whom."""
    exporter = add("exporter", "check again and again; serve Prometheus metrics and a status page")
    endpoint_words(exporter)
    exporter.add_argument(
        "--listen", default="127.0.0.1:9464", metavar="HOST:PORT", help="where to serve (default: 127.0.0.1:9464)"
    )
    exporter.add_argument(
        "--interval", type=float, default=30.0, metavar="SECONDS", help="from one look at an endpoint to the next (30)"
    )
    exporter.add_argument(
        "--profile", choices=("quick", "default", "deep"), default="quick",
        help="how deep to look; quick streams a few tokens as well, for their latency (default: quick)",
    )  # fmt: skip
    exporter.add_argument(
        "--skip", type=lambda text: tuple(filter(None, text.split(","))), default=(), metavar="NAMES",
        help="not these checks, e.g. auth, whose wrong keys a gateway counts",
    )  # fmt: skip
    exporter.add_argument(
        "--allow-remote", action="store_true", help="let others reach the page, which shows models' answers"
    )
    exporter.add_argument(
        "--once", action="store_true", help="one round; print the metrics (--json: the state), exit with 0 or 1"
    )
