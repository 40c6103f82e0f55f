#!/usr/bin/env python3
"""A stand-in for `vllm serve` 0.32.0 that starts in 0.3 s: for tests of the gateway, rollouts and keys, not of vLLM.

    vllm serve MODEL [flags of vLLM 0.32.0]

It refuses unknown flags as vLLM's argument parser does, asks for VLLM_API_KEY on /v1, and answers models, chat and text
completions (whole and streamed), tokenize, health, version and metrics with the fields that vLLM 0.32.0 sends. The text
is made up. `tests/live/test_standin.py` compares it with a real vLLM 0.32.0, field by field.

Environment, for faults that tests need: STANDIN_START_SECONDS (time until the port opens), STANDIN_TOKEN_SECONDS (time
per token). SIGTERM ends it with exit code 0. It finishes the requests in flight only with --shutdown-timeout. Without
the flag, vLLM 0.32.0 aborts them, and ends their streams with an error and `[DONE]`.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

VERSION = "0.32.0"
FINGERPRINT = f"vllm-{VERSION}-standin0"
WORDS = ("ier", " time", "4", " us", "ier", " time", " for", " true", " server", "nce")
FLAGS = Path(os.environ.get("STANDIN_FLAGS", "/usr/local/share/vllm-standin/flags.json"))
USAGE = "usage: vllm serve [model_tag] [options]\n"


def parse_arguments(arguments):
    """Flags by their first name, in the forms `--flag value`, `--flag=value` and `--flag`. Exits 2 as argparse does."""
    known = {name: flag for flag in json.loads(FLAGS.read_text())["flags"] for name in flag["names"]}
    values, unknown, rest = {}, [], list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name.replace("_", "-") not in known:
            unknown.append(name + equals + value)
            continue
        flag = known[name.replace("_", "-")]
        collected = [value] if equals else []
        # names of models and LoRA modules: a flag may take several values
        while flag.get("value") and rest and not rest[0].startswith("--") and not equals:
            collected.append(rest.pop(0))
        values[flag["names"][0]] = collected
    if unknown:
        sys.stderr.write(f"{USAGE}vllm: error: unrecognized arguments: {' '.join(unknown)}\n")
        sys.exit(2)
    return values


class Engine:
    """What the server reports and counts."""

    def __init__(self, model, values):
        self.model = model
        self.names = values.get("--served-model-name") or [model]
        self.max_model_len = int((values.get("--max-model-len") or ["2048"])[0])
        self.key = os.environ.get("VLLM_API_KEY") or ""
        self.lock = threading.Lock()
        self.prompt_tokens = self.generation_tokens = self.running = self.requests = 0
        self.token_seconds = float(os.environ.get("STANDIN_TOKEN_SECONDS", "0.005"))
        self.is_draining = int((values.get("--shutdown-timeout") or ["0"])[0]) > 0
        self.is_aborting = False

    def count(self, prompt, generated):
        with self.lock:
            self.prompt_tokens += prompt
            self.generation_tokens += generated
            self.requests += 1

    def metrics(self):
        labels = f'{{engine="0",model_name="{self.names[0]}"}}'
        rows = {
            "vllm:num_requests_running": ("gauge", self.running),
            "vllm:num_requests_waiting": ("gauge", 0),
            "vllm:kv_cache_usage_perc": ("gauge", 0),
            "vllm:prompt_tokens_total": ("counter", self.prompt_tokens),
            "vllm:generation_tokens_total": ("counter", self.generation_tokens),
        }
        return "".join(
            f"# TYPE {name.removesuffix('_total')} {kind}\n{name}{labels} {float(value)}\n"
            for name, (kind, value) in rows.items()
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/v1") and not self.is_authorized():
            return
        if path in ("/health", "/ping"):
            self.send(200, b"", None)
        elif path == "/version":
            self.send_json(200, {"version": VERSION})
        elif path == "/metrics":
            self.send(200, self.engine.metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")
        elif path == "/v1/models":
            self.send_json(200, {"object": "list", "data": [self.card(name) for name in self.engine.names]})
        elif path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
            self.send_json(405, {"detail": "Method Not Allowed"}, {"allow": "POST"})
        else:
            self.send_json(404, {"detail": "Not Found"})

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["content-length"] or 0))
        path = self.path.partition("?")[0]
        if path.startswith("/v1") and not self.is_authorized():
            return
        if path not in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
            self.send_json(404, {"detail": "Not Found"})
            return
        body = json.loads(raw)
        model = body.get("model", self.engine.names[0])
        if model not in self.engine.names:
            aliases = ", ".join(self.engine.names)
            message = f"The model `{model}` does not exist. Valid aliases: {aliases}."
            error = {"message": message, "type": "NotFoundError", "param": "model", "code": 404}
            self.send_json(404, {"error": error})
        elif path == "/tokenize":
            tokens = [len(word) for word in body["prompt"].split()]
            self.send_json(200, {"count": len(tokens), "max_model_len": self.engine.max_model_len, "tokens": tokens,
                                 "token_strs": None})  # fmt: skip
        else:
            self.complete(body, chat=path == "/v1/chat/completions")

    def complete(self, body, chat):
        text = json.dumps(body["messages"]) if chat else body["prompt"]
        prompt = max(1, len(text) // 8)
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        words = [WORDS[number % len(WORDS)] for number in range(limit)]
        with self.engine.lock:
            self.engine.running += 1
        try:
            if body.get("stream"):
                self.stream(body, chat, prompt, words)
            else:
                time.sleep(self.engine.token_seconds * limit)
                self.send_json(200, self.whole(chat, prompt, words))
        finally:
            with self.engine.lock:
                self.engine.running -= 1
            self.engine.count(prompt, limit)

    def whole(self, chat, prompt, words):
        ending = {"finish_reason": "length", "stop_reason": None, "token_ids": None, "routed_experts": None}
        answer = {**self.head("chat.completion" if chat else "text_completion", chat), "choices": []}
        if chat:
            message = {"role": "assistant", "content": "".join(words), "refusal": None, "annotations": None,
                       "audio": None, "function_call": None, "reasoning": None}  # fmt: skip
            answer["choices"] = [{"index": 0, "message": message, "logprobs": None, **ending}]
        else:
            answer["choices"] = [{"index": 0, "text": "".join(words), "logprobs": None, **ending,
                                  "prompt_logprobs": None, "prompt_token_ids": None}]  # fmt: skip
        usage = {**self.usage(prompt, len(words)), "prompt_tokens_details": None, "completion_tokens_details": None}
        answer |= {"service_tier": None, "system_fingerprint": FINGERPRINT, "usage": usage}
        if chat:
            answer |= {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        return answer | {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}

    def stream(self, body, chat, prompt, words):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        head = self.head("chat.completion.chunk" if chat else "text_completion", chat)
        try:
            if chat:
                delta = {"role": "assistant", "content": ""}
                choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
                self.event({**head, "choices": [choice], "prompt_token_ids": None, "prompt_text": None})
            with_usage = (body.get("stream_options") or {}).get("include_usage")
            for number, word in enumerate(words, 1):
                time.sleep(self.engine.token_seconds)
                if self.engine.is_aborting:
                    self.event({"error": {"message": "EngineCore encountered an issue.", "code": 500}})
                    break
                is_last = number == len(words)
                event = {**head, "choices": [self.chunk_choice(chat, word, is_last)]}
                # the fingerprint is in the last event, and that is the usage where it was asked for
                self.event(event | ({"system_fingerprint": FINGERPRINT} if is_last and not with_usage else {}))
            if with_usage:
                usage = self.usage(prompt, len(words))
                self.event({**head, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT})
            self.chunk(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            # the client left
            self.close_connection = True

    def chunk_choice(self, chat, word, is_last):
        choice = {"index": 0, "delta": {"content": word}} if chat else {"index": 0, "text": word}
        choice |= {"logprobs": None, "finish_reason": "length" if is_last else None}
        if not chat or is_last:
            choice["stop_reason"] = None
        if not chat:
            choice["prompt_token_ids"] = None
        return choice | {"token_ids": None}

    def head(self, kind, chat):
        unique = uuid.uuid4().hex[:16]
        return {"id": f"{'chatcmpl' if chat else 'cmpl'}-{unique}", "object": kind, "created": int(time.time()),
                "model": self.engine.names[0]}  # fmt: skip

    def usage(self, prompt, generated):
        return {"prompt_tokens": prompt, "total_tokens": prompt + generated, "completion_tokens": generated}

    def card(self, name):
        created = int(time.time())
        permission = {
            "id": f"modelperm-{uuid.uuid4().hex[:16]}", "object": "model_permission", "created": created,
            "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True, "allow_search_indices": False,
            "allow_view": True, "allow_fine_tuning": False, "organization": "*", "group": None, "is_blocking": False,
        }  # fmt: skip
        return {"id": name, "object": "model", "created": created, "owned_by": "vllm", "root": self.engine.model,
                "parent": None, "max_model_len": self.engine.max_model_len, "permission": [permission]}  # fmt: skip

    def handle_one_request(self):
        with self.server.lock:
            self.server.idle.add(self.connection)
            self.close_connection = self.server.stopping
        if not self.close_connection:
            super().handle_one_request()

    def parse_request(self):
        with self.server.lock:
            self.server.idle.discard(self.connection)
        return super().parse_request()

    def is_authorized(self):
        if not self.engine.key or self.headers["authorization"] == f"Bearer {self.engine.key}":
            return True
        self.send_json(401, {"error": "Unauthorized"})
        return False

    def event(self, value):
        self.chunk(f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode())

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def send_json(self, status, value, headers=None):
        self.send(status, json.dumps(value, separators=(",", ":")).encode(), "application/json", headers)

    def send(self, status, data, kind, headers=None):
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        if kind:
            self.send_header("content-type", kind)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def version_string(self):
        return "uvicorn"

    def log_message(self, *_):
        """Suppresses the access log."""


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    # a stop waits for the requests in flight
    daemon_threads = False
    block_on_close = True

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.lock, self.idle, self.stopping = threading.Lock(), set(), False

    def stop(self):
        """Accepts nothing more and closes idle kept connections, as uvicorn does: a router keeps some open for long."""
        with self.lock:
            self.stopping = True
            for connection in self.idle:
                try:
                    connection.shutdown(socket.SHUT_RD)
                except OSError:
                    # the client has closed it
                    pass
        self.shutdown()


def main():
    command, *arguments = sys.argv[1:]
    if command == "--version":
        print(VERSION)
        return
    model = arguments.pop(0) if arguments and not arguments[0].startswith("--") else ""
    values = parse_arguments(arguments)
    print(f"INFO [serve.py] vLLM stand-in {VERSION} serving {model}", flush=True)
    time.sleep(float(os.environ.get("STANDIN_START_SECONDS", "0")))
    Handler.engine = Engine(model, values)
    # a kept connection that is idle must not hold the stop up: vLLM 0.32 closes one after 5 s
    Handler.timeout = 5
    host, port = (values.get("--host") or ["0.0.0.0"])[0], int((values.get("--port") or ["8000"])[0])
    server = Server((host, port), Handler)

    def stop(*_):
        Handler.engine.is_aborting = not Handler.engine.is_draining
        threading.Thread(target=server.stop).start()

    signal.signal(signal.SIGTERM, stop)
    print("INFO:     Application startup complete.", flush=True)
    server.serve_forever(poll_interval=0.05)
    server.server_close()


main()
