#!/usr/bin/env python3
"""A stand-in for a FastChat worker, and for llama-server: web server and model in one process, one place for requests.

    worker_server.py PORT READY_FILE

The prompt `hold N` keeps the place for N s without computing, as a client that reads slowly does. `compute N` computes
for N s. Requests without a place wait. GET /pid is the process's pid, and
GET /slots counts the requests that are done.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    place = threading.Lock()

    def do_GET(self):
        if self.path == "/slots":
            slot = {"id": 0, "is_processing": self.place.locked(), "n_decoded": self.server.done}
            self.answer(json.dumps([slot], separators=(",", ":")))
        else:
            self.answer(str(os.getpid()))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/worker_get_status":
            self.answer(json.dumps({"queue_length": int(self.place.locked())}))
            return
        word, _, amount = body["prompt"].partition(" ")
        with self.place:
            end = time.monotonic() + float(amount or 0)
            while word == "compute" and time.monotonic() < end:
                sum(range(1000))
            if word == "hold":
                time.sleep(float(amount))
            self.server.done += 1
        self.answer("{}")

    def answer(self, text):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        """Suppresses the access log."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads, server.done = True, 0
    Path(sys.argv[2]).touch()
    server.serve_forever(0.05)
