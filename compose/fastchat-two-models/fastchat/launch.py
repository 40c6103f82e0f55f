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
import json
import os
import signal
import sys
import threading
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
    from api_answers import count_last_token
    from conversations import patch_conversations
    from fastchat.serve import base_model_worker, model_worker
    from token_ids import IdsRefused, accept_ids, to_prompt

    patch_conversations(base_model_worker, model_worker)
    original = model_worker.ModelWorker.generate_stream_gate

    def generate(self, params):
        # for OpenAI, null means the default, but FastChat does not read it so
        params = {name: value for name, value in params.items() if value is not None}
        try:
            if "prompt" in params:
                params["prompt"] = to_prompt(params["prompt"], self.tokenizer, self.model)
            for chunk in original(self, params):
                yield count_last_token(chunk)
        except IdsRefused as error:
            yield json.dumps({"text": str(error), "error_code": 40001}).encode() + b"\0"
        # FastChat's worker does not recover from an exception that escapes here, so it becomes an error answer
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            yield json.dumps({"text": text, "error_code": 50001}).encode() + b"\0"

    model_worker.ModelWorker.generate_stream_gate = generate
    args, base_model_worker.worker = model_worker.create_model_worker()
    model_worker.worker = base_model_worker.worker
    with contextlib.suppress(TypeError):  # a tokenizer that can't be extended: `to_prompt` refuses token ids
        accept_ids(model_worker.worker.tokenizer)
    # 128 + SIGTERM, the exit code of a process that the signal stops; uvicorn raises it again after its shutdown
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    class Server(uvicorn.Server):
        def handle_exit(self, sig, frame):
            def leave():
                deregister(base_model_worker.worker)
                uvicorn.Server.handle_exit(self, sig, frame)

            # in a thread: the worker answers requests until the controller has stopped sending them
            threading.Thread(target=leave).start()

    server = Server(uvicorn.Config(model_worker.app, host=args.host, port=args.port, log_level="info"))
    server.run()
    # uvicorn's exit code for a failed start, such as a port in use
    sys.exit(0 if server.started else 3)


def deregister(worker):
    """Removes the worker from the controller's list, before it stops accepting requests."""

    def stopping():
        raise RuntimeError("the worker is stopping")

    # a late heartbeat would register the worker again
    worker.send_heart_beat = lambda: None
    # the controller has no call to remove one worker, but a refresh drops all whose status request fails
    worker.get_status = stopping
    request = urllib.request.Request(f"{worker.controller_addr}/refresh_all_workers", method="POST")
    with contextlib.suppress(OSError):  # best effort: otherwise it gets requests until its heartbeat expires
        urllib.request.urlopen(request, timeout=5).close()


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
        fail("the variable API_KEYS is set: FastChat can't use it; use STACKGEN_API_KEY")
    keys = read_keys()
    expected = [name for name in pop_flag("--expect-models", "").split(",") if name]

    import uvicorn
    from api_answers import record_usage
    from api_server import Adapter, Guard
    from conversations import patch_prompt
    from fastchat.serve import openai_api_server as module

    async def list_models():
        return await module.fetch_remote(f"{module.app_settings.controller_address}/list_models", None, "models")

    patch_prompt()
    record_usage(module)
    # before FastChat adds its own middleware, which then is outside of ours
    module.app.add_middleware(Adapter, list_models=list_models, expected=expected)
    args = module.create_openai_api_server()
    module.app_settings.api_keys = keys
    wait_for_models(args.controller_address, expected)
    uvicorn.run(Guard(module.app, keys), host=args.host, port=args.port, log_level="info")


def wait_for_models(address, expected, limit=600):
    """Waits until the controller lists one of the expected models, and prints which are missing.

    After `limit` seconds it returns without a model. Other workers register later, or have failed.
    """
    deadline = time.monotonic() + limit
    while expected:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{address}/list_models", method="POST"), timeout=5
            ) as got:
                missing = sorted(set(expected) - set(json.load(got)["models"]))
        except (OSError, ValueError, KeyError) as error:
            missing = [f"the controller ({error})", *expected]
        if len(missing) < len(set(expected)) or time.monotonic() > deadline:
            if missing:
                print(f"stackgen: starting without {', '.join(missing)}", file=sys.stderr)
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
