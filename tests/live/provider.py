"""A fake cloud that speaks Together AI's dialect, because the tests can't reach the real one. Runs in a container.

GET /seen returns the requests that it received, and /seen/last the last one.
Answers follow docs.together.ai/reference/chat-completions-1.
Arguments: the port for HTTP, then PORT=FOLDER for each HTTPS port, with cert.pem and key.pem in FOLDER.
"""

import hashlib
import json
import os
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = os.environ["PROVIDER_KEY"]
seen: list[dict[str, object]] = []
names: dict[int, str | None] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply(200, seen[-1] if self.path == "/seen/last" else seen)

    def do_POST(self) -> None:
        if "content-length" in self.headers:
            raw = self.rfile.read(int(self.headers["content-length"]))
        else:
            raw = b""
            while size := int(self.rfile.readline(), 16):
                raw += self.rfile.read(size + 2)[:size]
            self.rfile.readline()
        body = json.loads(raw)
        seen.append({"path": self.path, "sha256": hashlib.sha256(raw).hexdigest(),
                     "body": body if len(raw) < 5000 else None, "model": body.get("model"),
                     "bytes": len(raw), "headers": {name.lower(): text for name, text in self.headers.items()},
                     "sni": getattr(self.connection, "sni", None)})  # fmt: skip
        if self.headers["authorization"] != f"Bearer {KEY}":
            self.reply(401, {"id": "x", "error": {"message": "Invalid API key provided", "code": "invalid_api_key"}})
        elif "fail" in body:
            self.reply(body["fail"], {"id": "x", "error": {"message": "failed on request", "code": None}})
        elif body.get("stream"):
            self.stream(body["model"])
        else:
            choice = {"index": 0, "finish_reason": "eos", "message": {"role": "assistant", "content": "from afar"}}
            self.reply(200, {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"],
                             "choices": [choice], "prompt": [], "usage": None})  # fmt: skip

    def stream(self, model: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for token in ("from", " ", "afar", "!"):
            delta = {"index": 0, "delta": {"role": "assistant", "content": token}, "finish_reason": None}
            self.event(json.dumps({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": model,
                                   "choices": [delta]}))  # fmt: skip
            # long enough for a test to see whether the stream was buffered
            time.sleep(0.3)
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def reply(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        # headers of the cloud's own front end, which a client must not take for the gateway's
        for name, text in {
            "set-cookie": "cf=1",
            "alt-svc": 'h3=":443"',
            "strict-transport-security": "max-age=1",
        }.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def record_sni(connection: ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
    connection.sni = name  # type: ignore[attr-defined]


for argument in sys.argv[2:]:
    port, folder = argument.split("=")
    server = ThreadingHTTPServer(("0.0.0.0", int(port)), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
    context.sni_callback = record_sni
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
