#!/usr/bin/env python3
"""Health check of a vLLM service, run inside its container: exits 0 if the engine generates.

`/health` doesn't prove that inference works, so the check generates one token, or one embedding if the model can only
embed, or transcribes a second of silence if the model can only do that (Whisper). An engine that is too busy to answer
in time counts as healthy as long as its token counters rise.
Verified on vLLM 0.32.0. Usage: vllm_health.py http://127.0.0.1:8000
"""

import io
import json
import os
import sys
import time
import urllib.error
import urllib.request
import wave
from pathlib import Path

READY = Path(os.environ.get("STACKGEN_READY_FILE", "/tmp/stackgen.ready"))
COUNTERS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")
# requests to loopback must not go through a proxy that the user set for downloads
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(base, path, body=None, timeout=5.0, kind="application/json"):
    """Returns the response body. Raises OSError (for instance HTTPError) if the status isn't 200."""
    headers = {"Authorization": f"Bearer {os.environ.get('VLLM_API_KEY', '')}", "Content-Type": kind}
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else None
    with OPENER.open(urllib.request.Request(base + path, data, headers), timeout=timeout) as response:
        return response.read().decode()


def first_model(base, timeout=5.0):
    """The first name of the served model."""
    return json.loads(call(base, "/v1/models", timeout=timeout))["data"][0]["id"]


def generate(base, model, timeout=30):
    """Requests one token, or one embedding if the model has no completions, or one transcription if it has neither."""
    try:
        body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
        call(base, "/v1/completions", body, timeout)
    except urllib.error.HTTPError as error:
        # the statuses of a model that does not generate text
        if error.code not in (400, 404, 405, 501):
            raise
        try:
            call(base, "/v1/embeddings", {"model": model, "input": "1"}, min(timeout, 20))
        except urllib.error.HTTPError as refusal:
            # vLLM has only the paths of the tasks that the model supports
            if refusal.code != 404:
                raise
            transcribe(base, model, timeout)


def transcribe(base, model, timeout):
    """Requests the transcription of a second of silence, as a form."""
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(32000))
    part = "--stackgen\r\nContent-Disposition: form-data; name="
    head = f'{part}"model"\r\n\r\n{model}\r\n{part}"file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    form = head.encode() + sound.getvalue() + b"\r\n--stackgen--\r\n"
    call(base, "/v1/audio/transcriptions", form, timeout, "multipart/form-data; boundary=stackgen")


def count_tokens(base):
    """Sum of the token counters, which rises as long as the engine generates tokens."""
    lines = call(base, "/metrics").splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(COUNTERS))


def is_generating(base):
    before = count_tokens(base)
    time.sleep(2)
    return count_tokens(base) > before


def main(base):
    try:
        call(base, "/health")
        try:
            generate(base, first_model(base))
        except TimeoutError:
            # a restart would lose the requests in flight on a busy engine
            if not is_generating(base):
                raise
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.url} answered {error.code}: {error.read(300).decode(errors='replace')}")
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    # from this file, supervise.sh knows that the service was healthy
    READY.touch()


if __name__ == "__main__":
    main(sys.argv[1])
