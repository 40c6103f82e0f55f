"""Checks endpoints at an interval and serves the results: Prometheus metrics on `/metrics`, a status page on `/`.

serve(targets, options)     runs an exporter until it is stopped
Exporter(targets, options)  an exporter as an object, for programs and tests
render_metrics(report)      returns one report as Prometheus metrics, without a server
report_status(report)       returns one report in the format of `/api/status`, without a server
"""

from __future__ import annotations

from stackgen.exporter.metrics import render_metrics
from stackgen.exporter.rounds import monitoring_options
from stackgen.exporter.server import Exporter, serve
from stackgen.exporter.status import report_status
from stackgen.providers.endpoints import with_unique_names

__all__ = ["Exporter", "monitoring_options", "render_metrics", "report_status", "serve", "with_unique_names"]
