#!/usr/bin/env python3
"""A stand-in for vLLM's two kinds of processes: a web server, and an engine process that computes.

    split_server.py PORT READY_FILE

Prompts decide what the engine process does: `compute N` computes for N s, `tokens N` sends N tokens in N x 0.2 s,
`hang N` computes for N s and then waits forever, anything else yields one token. As in vLLM, the metrics change only
when the engine process sends statistics, and the web server answers /metrics and /health whatever the engine process
does.
GET /pid is the engine process's pid. After GET /spin, another process computes until the end, as a rank that waits. The
environment variable SLEEPS marks an engine in sleep mode, and with REFUSES the web server answers each request with
401.
"""

import json
import multiprocessing
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def wait_forever():
    threading.Event().wait()


def compute(inbox, outbox):
    """The engine process: one request after the other."""
    while True:
        number, prompt = inbox.get()
        word, _, amount = prompt.partition(" ")
        outbox.put(("statistics", 1, 0))
        end = time.monotonic() + (float(amount) if word in ("compute", "hang") else 0)
        while time.monotonic() < end:
            sum(range(1000))
        if word == "hang":
            wait_forever()
        for _ in range(int(amount) if word == "tokens" else 1):
            time.sleep(0.2 if word == "tokens" else 0)
            outbox.put(("statistics", 1, 1))
        outbox.put(("done", number, 0))
        outbox.put(("statistics", 0, 0))


def spin():
    """A rank that waits for another rank, and uses the CPU meanwhile."""
    while True:
        sum(range(1000))


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", port), Handler)
        self.inbox, self.outbox = multiprocessing.Queue(), multiprocessing.Queue()
        self.engine = multiprocessing.Process(target=compute, args=(self.inbox, self.outbox), daemon=True)
        self.engine.start()
        self.tokens = self.running = self.count = 0
        self.waiting = {}
        threading.Thread(target=self.receive, daemon=True).start()

    def receive(self):
        while True:
            kind, first, second = self.outbox.get()
            if kind == "done":
                self.waiting.pop(first).set()
            else:
                self.running, self.tokens = first, self.tokens + second

    def metrics(self):
        awake = "0.0" if "SLEEPS" in os.environ else "1.0"
        return (
            f'vllm:num_requests_running{{engine="0"}} {self.running}.0\n'
            f'vllm:num_requests_waiting{{engine="0"}} 0.0\n'
            f'vllm:engine_sleep_state{{engine="0",sleep_state="awake"}} {awake}\n'
            f'vllm:generation_tokens_total{{engine="0"}} {self.tokens}.0\n'
        )


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/spin":
            multiprocessing.Process(target=spin, daemon=True).start()
        texts = {"/metrics": self.server.metrics(), "/pid": str(self.server.engine.pid)}
        self.answer(texts.get(self.path, json.dumps({"data": [{"id": "m"}]})))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "REFUSES" in os.environ:
            self.answer("{}", 401)
            return
        self.server.count += 1
        number, done = self.server.count, threading.Event()
        self.server.waiting[number] = done
        self.server.inbox.put((number, body["prompt"]))
        done.wait()
        self.answer("{}")

    def answer(self, text, status=200):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        """Suppresses the access log."""


if __name__ == "__main__":
    server = Server(int(sys.argv[1]))
    Path(sys.argv[2]).touch()
    server.serve_forever(0.05)
