"""A fake of Together AI, which tests can't reach: it implements what the public reference says, and no more.

Sources:
- the bare array of models and its fields: https://docs.together.ai/reference/models-1 and openapi.yaml in
  github.com/togethercomputer/openapi (ModelInfoList, ModelInfo)
- completion and chunks: the types of the shipped `together` 3.1 (`together/types/chat/`) and recordings of real
  streams in llama-stack (tests/integration/recordings): `text`, `seed`, `token_id` in addition to the OpenAI fields
- errors {"id", "error": {"message", "type", "param", "code"}}: HeyPuter/puter issue 3168 quotes a real one
- 429 with the header x-ratelimit-reset: https://docs.together.ai/docs/rate-limits
Only the test marked `network` verifies that the real server does the same.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "tgp_v1_0123456789abcdef"
CHAT = "meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo"
DEDICATED = "mistralai/Mixtral-8x7B-Instruct-v0.1"
WORDS = ("The", " capital", " of", " France", " is", " Paris", ".")
LIMIT_HEADERS = {"retry-after": "7", "x-ratelimit-limit": "10", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "7"}


def model_entry(name: str, kind: str, context: int = 131072) -> dict[str, Any]:
    """One entry of the list of models."""
    return {
        "id": name,
        "object": "model",
        "created": 1721692800,
        "type": kind,
        "running": False,
        "display_name": name.rpartition("/")[2].replace("-", " "),
        "organization": name.partition("/")[0],
        "link": f"https://huggingface.co/{name}",
        "license": "llama-3.1",
        "context_length": context,
        "pricing": {"hourly": 0, "input": 0.18, "output": 0.18, "base": 0, "finetune": 0},
    }


MODELS = [
    model_entry("black-forest-labs/FLUX.1-schnell", "image"),
    model_entry(CHAT, "chat"),
    model_entry(DEDICATED, "chat", 32768),
]


@dataclass
class Together:
    """The running fake. `seen` collects (route, Authorization header, body) per request; `busy` makes it return 429."""

    port: int = 0
    busy: bool = False
    seen: list[tuple[str, str | None, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._record(None)
        if not self._allowed():
            return
        if self.path == "/v1/models":
            self._send(200, MODELS)
        else:
            self._error(404, "Not found", "invalid_request_error", "not_found")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            data = json.loads(body)
        except ValueError:
            data = None
        self._record(data)
        if not self._allowed():
            return
        together = self.server.together
        if self.path != "/v1/chat/completions":
            self._error(404, "Not found", "invalid_request_error", "not_found")
        elif together.busy:
            self._error(429, "You have reached the rate limit", "dynamic_request_limited", "rate_limit", LIMIT_HEADERS)
        elif not isinstance(data, dict) or "messages" not in data:
            self._error(400, "Invalid JSON", "invalid_request_error", "invalid_request")
        elif data.get("max_tokens", 1) < 1:
            self._error(
                422, "max_tokens must be positive", "invalid_request_error", "invalid_value", param="max_tokens"
            )
        elif data["model"] == DEDICATED:
            message = f"Unable to access non-serverless model {DEDICATED}. Please visit https://api.together.ai/models"
            self._error(400, message, "invalid_request_error", "model_not_available")
        elif data["model"] != CHAT:
            self._error(404, f"Unable to access model {data['model']}", "invalid_request_error", "model_not_available")
        elif data.get("stream"):
            self._stream(data)
        else:
            self._send(200, self._completion(data))

    def _allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {KEY}":
            return True
        self._error(401, "Invalid API key provided", "invalid_request_error", "invalid_api_key")
        return False

    def _completion(self, data: dict[str, Any]) -> dict[str, Any]:
        words = WORDS[: data.get("max_tokens", len(WORDS))]
        return {
            "id": "oBUtQrM-62bZhn-9801a1ac2a5f9b29",
            "object": "chat.completion",
            "created": 1795400000,
            "model": CHAT,
            "prompt": [],
            "choices": [
                {
                    # Together's own finish reason for a complete answer
                    "finish_reason": "eos" if len(words) == len(WORDS) else "length",
                    "seed": 42,
                    "index": 0,
                    "logprobs": None,
                    "message": {"role": "assistant", "content": "".join(words), "tool_calls": []},
                }
            ],
            "usage": {"prompt_tokens": 9, "completion_tokens": len(words), "total_tokens": 9 + len(words)},
        }

    def _stream(self, data: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream;charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        words = WORDS[: data.get("max_tokens", len(WORDS))]
        usage = {"prompt_tokens": 9, "completion_tokens": len(words), "total_tokens": 9 + len(words)}
        for index, word in enumerate(words):
            last = index == len(words) - 1
            reason = ("eos" if len(words) == len(WORDS) else "length") if last else None
            event = {
                "id": "oBUtQrM-62bZhn-9801a1ac2a5f9b29",
                "object": "chat.completion.chunk",
                "created": 1795400000,
                "choices": [
                    {
                        "index": 0,
                        "text": word,
                        "logprobs": None,
                        "finish_reason": reason,
                        "seed": 42 if last else None,
                        "delta": {"token_id": 791 + index, "role": "assistant", "content": word},
                    }
                ],
                "model": CHAT,
                # unlike OpenAI: in the last chunk with choices, whether requested or not
                "usage": usage if last else None,
            }
            self._chunk(json.dumps(event))
        self._chunk("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _error(
        self, status: int, message: str, kind: str, code: str, headers: dict[str, str] | None = None,
        param: str | None = None,
    ) -> None:  # fmt: skip
        error = {"message": message, "type": kind, "param": param, "code": code}
        self._send(status, {"id": "okkMWqL-2kFHot-a023f60e9b77ff7e", "error": error}, headers)

    def _send(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _record(self, data: Any) -> None:
        self.server.together.seen.append((f"{self.command} {self.path}", self.headers.get("Authorization"), data))

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    together: Together

    def handle_error(self, *_: object) -> None:
        """Prints nothing: a client that disconnects is not an error of the fake."""


@contextlib.contextmanager
def serve_together() -> Iterator[Together]:
    """Runs the fake on a free port of the loopback interface."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.together = Together(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.together
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
