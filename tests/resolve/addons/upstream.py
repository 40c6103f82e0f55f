"""A stub upstream for the gateway's tests: reports what reached it, as slowly or as wrongly as requested. Runs alone.

Used only for cases that a real engine can't be made to show; tests/live uses real engines.
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
        behaviour = body.get("test", {})
        note: dict[str, object] = {"path": self.path, "model": body.get("model"), "bytes": len(raw),
                                   "headers": dict(self.headers.items()), "ended": "answered"}  # fmt: skip
        if behaviour.get("probe") is not False and body.get("max_tokens") == 1 and os.path.exists("/tmp/wedged"):
            time.sleep(60)
        if self.headers["host"] != "gateway":  # set only by the gateway's probes
            seen.append(note)
        time.sleep(behaviour.get("sleep", 0))
        if behaviour.get("die") in (True, NAME):
            os._exit(1)
        if not behaviour.get("chunks"):
            answer = {"by": NAME, "model": body.get("model"), "bytes": len(raw)}
            self.reply(behaviour.get("status", 200), answer, behaviour.get("headers", {}))
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for number in range(behaviour["chunks"]):
                event = f"data: {json.dumps({'n': number, 'by': NAME})}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                self.wfile.flush()
                time.sleep(behaviour.get("every", 0.05))
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
        """Suppresses the access log."""


ThreadingHTTPServer.request_queue_size = 256
ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
