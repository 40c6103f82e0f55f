"""What the watch for hangs knows, as Prometheus metrics. Served only if monitoring sets STACKGEN_WATCH_PORT."""

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

# one line per hang, with its kind; it outlives the watch, which ends with each hang
HANGS = Path(os.environ.get("STACKGEN_HANG_FILE", "/tmp/stackgen.hang") + "s")
KINDS = ("stopped", "asleep", "computing")


def count(kind):
    """Remembers a hang."""
    with HANGS.open("a") as file:
        file.write(f"{kind}\n")


def render(watch):
    """The text of /metrics."""
    try:
        hangs = HANGS.read_text().split()
    except OSError:
        hangs = []
    probe = watch.probe
    # before the first passing health check, nothing is watched
    quiet = time.monotonic() - watch.since if watch.activity.samples else 0.0
    lines = [
        "# HELP stackgen_replica_hangs_total Hangs since the container started",
        "# TYPE stackgen_replica_hangs_total counter",
        *(f'stackgen_replica_hangs_total{{reason="{kind}"}} {hangs.count(kind)}' for kind in KINDS),
        "# HELP stackgen_replica_quiet_seconds Seconds since the last progress of the engine, or the last answer",
        "# TYPE stackgen_replica_quiet_seconds gauge",
        f"stackgen_replica_quiet_seconds {quiet:.1f}",
        "# HELP stackgen_replica_unresponsive 1: the latest request for one token got no answer",
        "# TYPE stackgen_replica_unresponsive gauge",
        f"stackgen_replica_unresponsive {int(probe is not None and probe.answered is False)}",
    ]
    return "\n".join(lines) + "\n"


def serve(watch, port):
    """Serves the metrics at `port`, in a thread."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self):
            data = render(watch).encode()
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            """Suppresses the access log."""

    threading.Thread(target=HTTPServer(("", port), Handler).serve_forever, daemon=True).start()
