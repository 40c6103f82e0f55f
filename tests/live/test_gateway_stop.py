"""A stop under load finishes the requests in flight: of the whole stack, and of one engine.

The engines are stand-ins that abort their requests on SIGTERM unless vLLM's --shutdown-timeout is set, as vLLM does.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.live.containers import wait_until
from tests.live.small_stacks import vllm_entry
from tests.live.stacks import LiveStack

pytestmark = pytest.mark.docker
PORT = 18168
# tokens of a stream, and seconds per token
TOKENS, PACE = 30, 0.04


@pytest.fixture(scope="module")
def stack(standin_image: str, haproxy_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    folder = tmp_path_factory.mktemp("stop")
    (folder / "model").mkdir()
    more = {"max_num_seqs": 2, "extra_env": {"STANDIN_TOKEN_SECONDS": str(PACE)}}
    models = [vllm_entry(standin_image, folder / "model", **{**more, "served_names": [name]}) for name in ("a", "b")]
    data = {"name": "sgtest-stop", "port": PORT, "gateway": {"image": haproxy_image}, "models": models}
    with LiveStack(folder, data) as running:
        running.up()
        yield running


def stream(stack: LiveStack, model: str, tokens: int) -> int:
    """Returns the number of tokens of a complete stream; 0 if it failed or ended early."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    body = {"model": model, "messages": [], "max_tokens": tokens, "stream": True}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Authorization": f"Bearer {stack.key}"})
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
    return text.count('"content":"') - 1 if text.endswith("data: [DONE]\n\n") and '"error"' not in text else 0


def is_answering() -> bool:
    """Whether the gateway takes requests."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def send_slowly(stack: LiveStack, model: str, seconds: float) -> bytes:
    """Sends a body that goes through the second process, and returns the status line."""
    body = json.dumps({"messages": ["x" * 100_000], "model": model, "max_tokens": 1}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.key}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", PORT), 30) as connection:
        connection.sendall(head.encode() + body[:50_000])
        time.sleep(seconds)
        connection.sendall(body[50_000:])
        return connection.recv(65536).partition(b"\r\n")[0]


def test_stopping_one_engine_finishes_its_requests(stack: LiveStack) -> None:
    with ThreadPoolExecutor() as pool:
        # longer than supervise.sh waits for a gateway that keeps running
        answer = pool.submit(stream, stack, "b", int(3 / PACE))
        time.sleep(0.5)
        assert stack.compose("stop", "vllm-b").returncode == 0
        assert answer.result() == int(3 / PACE)
    assert stack.inspect("vllm-b")["State"]["ExitCode"] == 143


def test_stopping_the_stack_loses_no_request(stack: LiveStack) -> None:
    """With two at a time, streams wait in the gateway's queue when the stop begins, and for some seconds after it."""
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(stream, stack, "a", TOKENS) for _ in range(12)]
        late = pool.submit(send_slowly, stack, "a", 1.5)
        time.sleep(0.5)
        stopping = pool.submit(stack.compose, "stop")
        wait_until(lambda: not is_answering(), 20, "the gateway still takes requests")
        assert stream(stack, "a", 1) == 0
        assert not all(one.done() for one in answers)
        assert [one.result() for one in answers] == [TOKENS] * 12
        assert late.result() == b"HTTP/1.1 200 OK"
        done = stopping.result()
    assert done.returncode == 0, done.stderr
    ended = {name: stack.inspect(name)["State"] for name in ("gateway", "vllm-a")}
    # nothing was killed, and no supervisor or restart policy started anything again
    assert {name: (one["Status"], one["ExitCode"]) for name, one in ended.items()} == {
        "gateway": ("exited", 0), "vllm-a": ("exited", 143)
    }  # fmt: skip
    assert ended["gateway"]["FinishedAt"] < ended["vllm-a"]["FinishedAt"]
    log = subprocess.run(["docker", "logs", "sgtest-stop-gateway-1"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in log.splitlines() if line.startswith("{") and int(json.loads(line)["status"]) >= 400]
