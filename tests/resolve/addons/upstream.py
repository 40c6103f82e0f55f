"""A stub upstream for the gateway's tests: reports what reached it, as slowly or as wrongly as requested. Runs alone.

Used only for cases that a real engine can't be made to show; tests/live uses real engines.
"""

import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = os.environ["HOSTNAME"]
seen: list[dict[str, object]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/seen":
            self.reply(200, seen)
        elif self.path == "/v1/models":
            # the fields of vLLM 0.32, or of llama.cpp's server 11434
            context = {"meta": {"n_ctx": 2048, "n_ctx_train": 8192}} if "llama" in NAME else {"max_model_len": 4096}
            self.reply(200, {"data": [{"id": "x", "created": 1795824000, "root": "/a"} | context]})
        elif self.path == "/health":
            self.reply(503 if os.path.exists("/tmp/down") else 200, {})
        else:
            self.reply(200, {"open": self.path})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"] or 0)) if "content-length" in self.headers else b""
        while "transfer-encoding" in self.headers and (size := int(self.rfile.readline(), 16)):
            raw += self.rfile.read(size + 2)[:size]
        form = re.search(rb'name="model"\r\n\r\n(.*?)\r\n', raw)
        body = {"model": form[1].decode()} if form else json.loads(raw)
        behavior = body.get("test", {})
        note: dict[str, object] = {"path": self.path, "model": body.get("model"), "bytes": len(raw),
                                   "headers": dict(self.headers.items()), "ended": "answered"}  # fmt: skip
        if behavior.get("probe") is not False and body.get("max_tokens") == 1 and os.path.exists("/tmp/wedged"):
            time.sleep(60)
        if self.headers["host"] != "gateway":  # set only by the gateway's probes
            seen.append(note)
        time.sleep(behavior.get("sleep", 0))
        if behavior.get("die") in (True, NAME):
            os._exit(1)
        if behavior.get("hang_up"):
            self.close_connection = True
            return
        if not behavior.get("chunks"):
            answer = {"by": NAME, "model": body.get("model"), "bytes": len(raw)}
            self.reply(behavior.get("status", 200), behavior.get("raw", answer), behavior.get("headers", {}))
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            events: list[object] = [{"n": number, "by": NAME} for number in range(behavior["chunks"])]
            # llama.cpp sends several usages
            usages = behavior.get("usages", [behavior["usage"]] if "usage" in behavior else [])
            for one in [*events, *({"usage": usage} for usage in usages)]:
                event = f"data: {json.dumps(one)}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                self.wfile.flush()
                time.sleep(behavior.get("every", 0.05))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            note["ended"] = "client gone"

    def reply(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        text = (value if isinstance(value, str) else json.dumps(value)).encode()
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
# llama.cpp's port
threading.Thread(target=ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever).start()
ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
