#!/usr/bin/env python3
"""Starts one of FastChat's three programs, after patching what is broken in FastChat 0.2.36.

    launch.py controller --host 0.0.0.0 --port 21001
    launch.py worker --model-path … --worker-address http://worker:21002 --controller-address …
    launch.py api --controller-address … [--expect-models a,b]

All other flags are FastChat's own. The API key is read from the variable STACKGEN_API_KEY or from the file named by
STACKGEN_API_KEY_FILE; separate several keys with commas. There is no flag for it, because flags are visible in the
process list and FastChat prints them to its log.
"""

import contextlib
import hmac
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request


def fail(message):
    sys.exit(f"stackgen: {message}")


def pop_flag(name, default=None):
    """Removes one of our own flags from sys.argv and returns its value."""
    if name in sys.argv:
        index = sys.argv.index(name)
        value = sys.argv[index + 1]
        del sys.argv[index : index + 2]
        return value
    return default


def controller():
    import uvicorn
    from fastchat.serve import controller as module

    # FastChat's request handlers read the controller from this module variable
    args, module.controller = module.create_controller()
    uvicorn.run(module.app, host=args.host, port=args.port, log_level="info")


def worker():
    import uvicorn
    from conversations import patch_conversations
    from fastchat.serve import base_model_worker, model_worker

    patch_conversations(base_model_worker, model_worker)
    original = model_worker.ModelWorker.generate_stream_gate

    def generate(self, params):
        # null raises outside FastChat's handlers and leaks a semaphore: after five, requests hang, heartbeats go on
        params = {name: value for name, value in params.items() if value is not None}
        try:
            yield from original(self, params)
        # any exception that escapes here leaks the semaphore as well, so it becomes an error answer
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            yield json.dumps({"text": text, "error_code": 50001}).encode() + b"\0"

    model_worker.ModelWorker.generate_stream_gate = generate
    args, base_model_worker.worker = model_worker.create_model_worker()
    model_worker.worker = base_model_worker.worker
    signal.signal(signal.SIGTERM, lambda *_: deregister(base_model_worker.worker))
    uvicorn.run(model_worker.app, host=args.host, port=args.port, log_level="info")


def deregister(worker):
    """Removes the stopped worker from the controller's list. Runs on SIGTERM, after uvicorn has shut down."""
    # a late heartbeat would register the worker again
    worker.send_heart_beat = lambda: None
    # the controller has no call to remove one worker, but a refresh drops all that don't answer
    request = urllib.request.Request(f"{worker.controller_addr}/refresh_all_workers", method="POST")
    with contextlib.suppress(OSError):  # best effort: otherwise it gets requests until its heartbeat expires
        urllib.request.urlopen(request, timeout=5).close()
    # 128 + SIGTERM, the exit code of a process that the signal stops
    sys.exit(143)


def read_keys():
    """Returns the API keys and removes them from the environment, which libraries could print."""
    text, file = os.environ.pop("STACKGEN_API_KEY", ""), os.environ.get("STACKGEN_API_KEY_FILE")
    if file and not text:
        try:
            with open(file) as stream:
                text = stream.read()
        except OSError as error:
            fail(f"STACKGEN_API_KEY_FILE: {error.strerror}: {file}")
    keys = [key.strip() for key in text.split(",") if key.strip()]
    if not keys:
        fail("STACKGEN_API_KEY is empty: put a key into .env")
    return keys


def api():
    if os.environ.get("API_KEYS"):
        fail("the variable API_KEYS is set: FastChat crashes on it, or ignores it and stays open; use STACKGEN_API_KEY")
    keys = read_keys()
    expected = [name for name in pop_flag("--expect-models", "").split(",") if name]

    import uvicorn
    from conversations import patch_prompt
    from fastchat.serve import openai_api_server as module

    patch_prompt()
    args = module.create_openai_api_server()
    module.app_settings.api_keys = keys
    wait_for_models(args.controller_address, expected)
    uvicorn.run(Guard(module.app, keys), host=args.host, port=args.port, log_level="info")


class Guard:
    """ASGI middleware that requires the key on every path. FastChat leaves /api/v1/… open, completions included."""

    def __init__(self, app, keys):
        self.app = app
        self.keys = [f"Bearer {key}".encode() for key in keys]

    async def __call__(self, scope, receive, send):
        # browsers send CORS preflights (OPTIONS) without a key
        if scope["type"] == "http" and scope["method"] != "OPTIONS" and not self._allowed(scope):
            error = {"message": "send the key as `Authorization: Bearer …`", "type": "invalid_request_error"}
            body = {"detail": {"error": error | {"param": None, "code": "invalid_api_key"}}}
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(body).encode()})
            return
        await self.app(scope, receive, send)

    def _allowed(self, scope):
        given = dict(scope["headers"]).get(b"authorization", b"")
        # constant time, so that response times reveal nothing about the key
        return any(hmac.compare_digest(given, key) for key in self.keys)


def wait_for_models(address, expected, limit=600):
    """Waits until the controller lists all expected models. After `limit` seconds it prints a warning and returns."""
    deadline = time.monotonic() + limit
    while expected:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{address}/list_models", method="POST"), timeout=5
            ) as got:
                missing = sorted(set(expected) - set(json.load(got)["models"]))
        except (OSError, ValueError, KeyError) as error:
            missing = [f"the controller ({error})"]
        if not missing:
            return
        if time.monotonic() > deadline:
            print(f"stackgen: starting without {', '.join(missing)}: missing after {limit} s", file=sys.stderr)
            return
        print(f"stackgen: waiting for {', '.join(missing)}", file=sys.stderr)
        time.sleep(2)


if __name__ == "__main__":
    roles = {"controller": controller, "worker": worker, "api": api}
    if len(sys.argv) < 2 or sys.argv[1] not in roles:
        fail(f"the first argument must be one of {', '.join(roles)}")
    role = sys.argv.pop(1)
    # argparse prints this name in its error messages
    sys.argv[0] = f"launch.py {role}"
    roles[role]()
