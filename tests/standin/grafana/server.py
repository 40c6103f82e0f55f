"""Answers every GET request on port 3000 with 200."""

import os
import signal
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


# as process 1, Python ignores SIGTERM
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
HTTPServer(("0.0.0.0", 3000), Handler).serve_forever()
