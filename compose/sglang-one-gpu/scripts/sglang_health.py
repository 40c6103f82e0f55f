#!/usr/bin/env python3
"""Health check of an SGLang service, run inside its container: exits 0 if the engine generates.

/health_generate asks the scheduler for one token (one embedding if the model can only embed), and counts any answer of
the scheduler since then, so a busy engine is healthy. It answers 503 during the start, during a stop, and after 20 s
without an answer. /health does the same unless SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION is false.
Source: SGLang 0.5.23, entrypoints/http_server.py. Usage: sglang_health.py http://127.0.0.1:8000
"""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

READY = Path(os.environ.get("STACKGEN_READY_FILE", "/tmp/stackgen.ready"))
# requests to loopback must not go through a proxy that the user set for downloads
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(base, path, timeout=5.0):
    """Returns the response body. Raises OSError (for instance HTTPError) if the status isn't 200."""
    headers = {"Authorization": f"Bearer {os.environ.get('SGLANG_API_KEY', '')}"}
    with OPENER.open(urllib.request.Request(base + path, headers=headers), timeout=timeout) as response:
        return response.read().decode()


def generate(base, timeout=40.0):
    """Asks for one token, and waits for it longer than SGLang itself does."""
    call(base, "/health_generate", timeout)


def main(base):
    try:
        generate(base)
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.url} answered {error.code}: {error.read(300).decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    # from this file, supervise.sh knows that the service was healthy
    READY.touch()


if __name__ == "__main__":
    main(sys.argv[1])
