#!/usr/bin/env python3
"""Health checks for FastChat's three programs. They run inside the containers and exit 0 only if the program works.

    health.py controller http://127.0.0.1:21001
    health.py worker http://worker:21002 http://controller:21001     is registered and generates one token
    health.py api http://127.0.0.1:8000 MODEL…                       lists the models (sends the API key)

Measured with FastChat 0.2.36: a worker whose semaphore has leaked stays registered and keeps sending heartbeats, so
only a probe that generates detects it. An API server without workers answers 200 with an empty list.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

READY = Path(os.environ.get("STACKGEN_READY_FILE", "/tmp/stackgen.ready"))
# requests inside the stack must not go through a proxy that the user set for downloads
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(url, body=None, timeout=10, key=None, method=None):
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = json.dumps(body).encode() if body is not None else None
    with OPENER.open(urllib.request.Request(url, data, headers, method=method), timeout=timeout) as response:
        return response.read()


def controller(base):
    call(f"{base}/test_connection")


def worker(own, controller_address):
    # the controller answers every heartbeat; `exist` is false if the worker isn't registered
    beat = {"worker_name": own, "queue_length": 0}
    if not json.loads(call(f"{controller_address}/receive_heart_beat", beat)).get("exist"):
        sys.exit(f"the controller does not know {own}")
    prompt = {"prompt": "1", "max_new_tokens": 1, "temperature": 0, "echo": False}
    answer = json.loads(call(f"{own}/worker_generate", prompt, timeout=50).split(b"\0")[0])
    if answer.get("error_code") != 0:
        sys.exit(f"the worker does not generate: {answer.get('text', answer)}")


def api(base, *names):
    file = os.environ.get("STACKGEN_API_KEY_FILE")
    text = os.environ.get("STACKGEN_API_KEY") or (Path(file).read_text() if file else "")
    # any of several keys works
    key = text.split(",")[0].strip()
    listed = {model["id"] for model in json.loads(call(f"{base}/v1/models", key=key))["data"]}
    # each worker has its own check, and the server is healthy if one of its models can answer
    if not listed or (names and listed.isdisjoint(names)):
        sys.exit(f"not served: {', '.join(names) or 'any model'}")


try:
    {"controller": controller, "worker": worker, "api": api}[sys.argv[1]](*sys.argv[2:])
except urllib.error.HTTPError as error:
    sys.exit(f"{error.url} answered {error.code}")
except (OSError, ValueError, LookupError, TypeError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
# tells supervise.sh that the service was healthy
READY.touch()
