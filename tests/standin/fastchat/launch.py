#!/usr/bin/env python3
"""A stand-in for FastChat's three programs that starts at once: for tests of the start order, not of FastChat.

    launch.py controller|worker|api [flags of templates/images/fastchat/launch.py]

A worker whose model path contains `broken` exits with 3. The controller lists the models of the workers that have
registered. The API server waits for a model as the real launch.py does, and answers /v1/models and chats. All answer
what templates/images/fastchat/health.py asks them.
"""

import json
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar


def flag(name):
    return sys.argv[sys.argv.index(name) + 1]


def post(url, body=None):
    request = urllib.request.Request(url, json.dumps(body or {}).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=5))


class Handler(BaseHTTPRequestHandler):
    models: ClassVar[set[str]] = set()

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if self.path == "/register":
            self.models.update(body["models"])
            self.answer(200, {})
        elif self.path == "/list_models":
            self.answer(200, {"models": sorted(self.models)})
        elif self.path == "/receive_heart_beat":
            self.answer(200, {"exist": True})
        elif self.path == "/worker_generate":
            self.answer(200, {"error_code": 0})
        elif body.get("model") in listed():
            self.answer(200, {"model": body["model"]})
        else:
            self.answer(400, {"code": 40301})

    def do_GET(self):
        self.answer(200, {"data": [{"id": name} for name in (listed() if sys.argv[1] == "api" else ())]})

    def log_message(self, *_):
        pass


def listed():
    return post(f"{flag('--controller-address')}/list_models")["models"]


role = sys.argv[1]
if role == "worker":
    if "broken" in flag("--model-path"):
        sys.exit(3)
    post(f"{flag('--controller-address')}/register", {"models": flag("--model-names").split(",")})
elif role == "api":
    while not set(listed()) & set(flag("--expect-models").split(",")):
        time.sleep(0.2)
ThreadingHTTPServer((flag("--host"), int(flag("--port"))), Handler).serve_forever()
