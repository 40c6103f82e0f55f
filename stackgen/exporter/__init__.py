"""A server that checks endpoints again and again: Prometheus metrics on `/metrics`, a status page on `/`.

serve(targets, options)     until told to stop
Exporter(targets, options)  the same as an object, for programs and tests
render_metrics(report)      one report as metrics text, without a server
state_of(report)            the same as `/api/status` sends it
"""

from __future__ import annotations

from stackgen.exporter.metrics import render_metrics
from stackgen.exporter.rounds import monitoring
from stackgen.exporter.server import Exporter, serve
from stackgen.exporter.status import state_of
from stackgen.providers.endpoints import unique

__all__ = ["Exporter", "monitoring", "render_metrics", "serve", "state_of", "unique"]
