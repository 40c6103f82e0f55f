#!/usr/bin/env python3
"""Health check of a vLLM service, run inside its container: exits 0 if the engine generates.

`/health` doesn't prove that inference works, so the check generates one token, or one embedding if the model can only
embed. An engine that is too busy to answer in time counts as healthy as long as its token counters rise.
Verified on vLLM 0.32.0. Usage: vllm_health.py http://127.0.0.1:8000
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

BASE = sys.argv[1]
READY = Path(os.environ.get("STACKGEN_READY_FILE", "/tmp/stackgen.ready"))
COUNTERS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")
# requests to loopback must not go through a proxy that the user set for downloads
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(path, body=None, timeout=5.0):
    """Returns the response body. Raises OSError (for instance HTTPError) if the status isn't 200."""
    headers = {"Authorization": f"Bearer {os.environ.get('VLLM_API_KEY', '')}", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body else None
    with OPENER.open(urllib.request.Request(BASE + path, data, headers), timeout=timeout) as response:
        return response.read().decode()


def generate(model):
    """Requests one token, or one embedding if the model has no completions."""
    try:
        call("/v1/completions", {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}, timeout=30)
    except urllib.error.HTTPError as error:
        # the statuses of a model that does not generate text
        if error.code not in (400, 404, 405, 501):
            raise
        call("/v1/embeddings", {"model": model, "input": "1"}, timeout=20)


def count_tokens():
    """Sum of the token counters, which rises as long as the engine generates tokens."""
    lines = call("/metrics").splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(COUNTERS))


def is_generating():
    before = count_tokens()
    time.sleep(2)
    return count_tokens() > before


def main():
    try:
        call("/health")
        model = json.loads(call("/v1/models"))["data"][0]["id"]
        try:
            generate(model)
        except TimeoutError:
            # a restart would lose the requests in flight on a busy engine
            if not is_generating():
                raise
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.url} answered {error.code}: {error.read(300).decode(errors='replace')}")
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    # supervise.sh reads from this file that the service was healthy
    READY.touch()


main()
