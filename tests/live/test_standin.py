"""The stand-in of tests/standin answers like a real vLLM 0.32.0: status, headers, fields and types of every answer.

What is proven here lets tests of the gateway and of rollouts run on the stand-in. `test_diagnose.py` compares how both
refuse an unknown flag.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "standin" / "vllm.py"
FLAGS = ROOT / "stackgen" / "flags" / "vllm-0.32.0.json"
CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "ignore_eos": True}
TEXT = {"model": "smollm2", "prompt": "def main", "max_tokens": 3, "ignore_eos": True}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
REQUESTS: dict[str, tuple[str, str, Any, bool]] = {
    "health": ("GET", "/health", None, False),
    "version": ("GET", "/version", None, False),
    "models": ("GET", "/v1/models", None, True),
    "models without a key": ("GET", "/v1/models", None, False),
    "chat": ("POST", "/v1/chat/completions", CHAT, True),
    "chat under an alias": ("POST", "/v1/chat/completions", CHAT | {"model": "smol"}, True),
    "chat stream": ("POST", "/v1/chat/completions", CHAT | {"stream": True}, True),
    "chat stream with usage": ("POST", "/v1/chat/completions", CHAT | USAGE, True),
    "chat without a key": ("POST", "/v1/chat/completions", CHAT, False),
    "completion": ("POST", "/v1/completions", TEXT, True),
    "completion stream": ("POST", "/v1/completions", TEXT | USAGE, True),
    "unknown model": ("POST", "/v1/chat/completions", CHAT | {"model": "nope"}, True),
    "wrong method": ("GET", "/v1/chat/completions", None, True),
    "unknown path": ("GET", "/v1/no-such-path", None, True),
    "tokenize": ("POST", "/tokenize", {"model": "smollm2", "prompt": "def main"}, True),
}
# values that are the same on both, and not only of the same type
CONSTANT = frozenset({"object", "owned_by", "finish_reason", "role", "code", "param", "type", "detail", "error",
                      "version", "id_prefix", "organization", "completion_tokens"})  # fmt: skip


@dataclass(frozen=True)
class Server:
    port: int
    key: str

    def send(self, method: str, path: str, body: Any, with_key: bool) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if with_key else {})
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text


@pytest.fixture(scope="module")
def standin() -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    arguments = ["serve", "/m", "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "smollm2", "smol",
                 "--max-model-len", "2048"]  # fmt: skip
    environment = {**os.environ, "VLLM_API_KEY": "k", "STANDIN_FLAGS": str(FLAGS)}
    process = subprocess.Popen([sys.executable, str(PROGRAM), *arguments], env=environment, stdout=subprocess.DEVNULL)
    started = time.monotonic()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() - started < 10
            time.sleep(0.02)
    yield Server(port, "k")
    process.terminate()
    assert process.wait(10) == 0


def shape(value: Any, name: str = "") -> Any:
    """Every field with the type of its value, and the value itself where it is a constant of the API."""
    if isinstance(value, dict):
        return {key: shape(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        # token ids and words differ in number; cards and choices don't
        return [shape(value[0], name)] if value and not isinstance(value[0], dict) else [shape(v) for v in value]
    if name in CONSTANT:
        return value
    if name == "id" and isinstance(value, str):
        return re.sub(r"[0-9a-f]{16,}", "#", value)
    return type(value).__name__


def answer_shape(status: int, headers: dict[str, str], text: str) -> dict[str, Any]:
    kind = headers.get("content-type", "")
    bodies = [line[6:] for line in text.splitlines() if line.startswith("data: ")] if "event-stream" in kind else [text]
    parsed = [shape(json.loads(body)) if body.startswith("{") else body for body in bodies]
    # on a busy machine, vLLM sends several tokens in one chunk
    parsed = [body for body, before in zip(parsed, [None, *parsed], strict=False) if body != before]
    return {"status": status, "type": kind, "server": headers["server"], "allow": headers.get("allow"),
            "framing": "transfer-encoding" in headers, "bodies": parsed}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_standin_answers_like_vllm(name: str, vllm_stack: LiveStack, standin: Server) -> None:
    real = Server(18101, vllm_stack.key).send(*REQUESTS[name])
    assert answer_shape(*standin.send(*REQUESTS[name])) == answer_shape(*real)


def test_standin_counts_tokens_under_the_metric_names_of_vllm(vllm_stack: LiveStack, standin: Server) -> None:
    _, _, real = Server(18101, vllm_stack.key).send("GET", "/metrics", None, False)
    standin.send(*REQUESTS["completion"])
    _, _, own = standin.send("GET", "/metrics", None, False)
    samples = {line.split("{")[0]: float(line.split()[-1]) for line in own.splitlines() if not line.startswith("#")}
    assert samples["vllm:generation_tokens_total"] >= 3
    assert samples.keys() <= {line.split("{")[0] for line in real.splitlines() if not line.startswith("#")}
