"""A made-up engine for the gateway's tests: says what reached it, as slowly or as wrongly as it is told. Runs alone.

It stands in for engines only where a real one can't be made to show the case; tests/live has the real ones.
"""

import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = os.environ["HOSTNAME"]
seen: list[dict[str, object]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/seen":
            self.reply(200, seen)
        elif self.path == "/health":
            self.reply(503 if os.path.exists("/tmp/down") else 200, {})
        else:
            self.reply(200, {"open": self.path})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"] or 0)) if "content-length" in self.headers else b""
        while "transfer-encoding" in self.headers and (size := int(self.rfile.readline(), 16)):
            raw += self.rfile.read(size + 2)[:size]
        body = json.loads(raw)
        wanted = body.get("test", {})
        note: dict[str, object] = {"path": self.path, "model": body.get("model"), "bytes": len(raw),
                                   "headers": dict(self.headers.items()), "ended": "answered"}  # fmt: skip
        if wanted.get("probe") is not False and body.get("max_tokens") == 1 and os.path.exists("/tmp/wedged"):
            time.sleep(60)
        if self.headers["host"] != "gateway":  # which only its own probes say
            seen.append(note)
        time.sleep(wanted.get("sleep", 0))
        if wanted.get("die") in (True, NAME):
            os._exit(1)
        if not wanted.get("chunks"):
            told = {"by": NAME, "model": body.get("model"), "bytes": len(raw)}
            self.reply(wanted.get("status", 200), told, wanted.get("headers", {}))
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for number in range(wanted["chunks"]):
                event = f"data: {json.dumps({'n': number, 'by': NAME})}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                self.wfile.flush()
                time.sleep(wanted.get("every", 0.05))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            note["ended"] = "client gone"

    def reply(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        for name, word in (headers or {}).items():
            self.send_header(name, word)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Silence."""


ThreadingHTTPServer.request_queue_size = 256
ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
