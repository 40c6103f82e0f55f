#!/usr/bin/env python3
"""Starts one of FastChat's three programs, with what 0.2.36 gets wrong put right before it runs.

    launch.py controller --host 0.0.0.0 --port 21001
    launch.py worker --model-path … --worker-address http://worker:21002 --controller-address …
    launch.py api --controller-address … [--expect-models a,b]

All other flags are FastChat's own. The API key comes from the variable STACKGEN_API_KEY, or from the file that
STACKGEN_API_KEY_FILE names (several keys: commas), never from a flag: flags show in the process list, and FastChat
prints them to its log.
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


def take_flag(name, default=None):
    """Removes a flag of our own from the command line and returns its value."""
    if name in sys.argv:
        place = sys.argv.index(name)
        value = sys.argv[place + 1]
        del sys.argv[place : place + 2]
        return value
    return default


def controller():
    import uvicorn
    from fastchat.serve import controller as module

    args, module.controller = module.create_controller()
    uvicorn.run(module.app, host=args.host, port=args.port, log_level="info")


def worker():
    import uvicorn
    from conversations import patch_conversations
    from fastchat.serve import base_model_worker, model_worker

    patch_conversations(base_model_worker, model_worker)
    original = model_worker.ModelWorker.generate_stream_gate

    def generate(self, params):
        # a null parameter raises past FastChat's own handlers, which then never give the worker's slot back: five
        # such requests and every later one hangs, while the heartbeat stays green
        params = {name: value for name, value in params.items() if value is not None}
        try:
            yield from original(self, params)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            yield json.dumps({"text": text, "error_code": 50001}).encode() + b"\0"

    model_worker.ModelWorker.generate_stream_gate = generate
    args, base_model_worker.worker = model_worker.create_model_worker()
    model_worker.worker = base_model_worker.worker
    signal.signal(signal.SIGTERM, lambda *_: leave(base_model_worker.worker))
    uvicorn.run(model_worker.app, host=args.host, port=args.port, log_level="info")


def leave(worker):
    """Runs once uvicorn has shut down: the controller, which has no call for this, looks who still answers."""
    # a late heartbeat would register it again
    worker.send_heart_beat = lambda: None
    request = urllib.request.Request(f"{worker.controller_addr}/refresh_all_workers", method="POST")
    with contextlib.suppress(OSError):  # without this the controller sends it requests until its heartbeat expires
        urllib.request.urlopen(request, timeout=5).close()
    sys.exit(143)


def read_keys():
    """The API keys; out of the environment from here on, where libraries could print it."""
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
    expected = [name for name in take_flag("--expect-models", "").split(",") if name]

    import uvicorn
    from conversations import patch_prompt
    from fastchat.serve import openai_api_server as module

    patch_prompt()
    args = module.create_openai_api_server()
    module.app_settings.api_keys = keys
    wait_for_models(args.controller_address, expected)
    uvicorn.run(Guard(module.app, keys), host=args.host, port=args.port, log_level="info")


class Guard:
    """Asks for the key on every path: FastChat leaves /api/v1/… open, which answers completions as well."""

    def __init__(self, app, keys):
        self.app = app
        self.keys = [f"Bearer {key}".encode() for key in keys]

    async def __call__(self, scope, receive, send):
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
        return any(hmac.compare_digest(given, key) for key in self.keys)


def wait_for_models(address, expected, limit=600):
    """Returns when the controller lists all expected models; goes on with a warning after `limit` seconds."""
    end = time.monotonic() + limit
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
        if time.monotonic() > end:
            print(f"stackgen: still missing after {limit} s: {', '.join(missing)}", file=sys.stderr)
            return
        print(f"stackgen: waiting for {', '.join(missing)}", file=sys.stderr)
        time.sleep(2)


if __name__ == "__main__":
    roles = {"controller": controller, "worker": worker, "api": api}
    if len(sys.argv) < 2 or sys.argv[1] not in roles:
        fail(f"the first word must be one of {', '.join(roles)}")
    role = sys.argv.pop(1)
    sys.argv[0] = f"launch.py {role}"
    roles[role]()
