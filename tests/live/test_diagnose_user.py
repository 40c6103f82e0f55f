"""Faults around an engine that works: another server on its port, a proxy that buffers, no free network.

The engine is the stand-in, because none of the faults is in the engine.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.check.fake import raw_server
from tests.live.gpu_engine import FAKE_IMAGE, GpuEngine, reason_to_skip
from tests.live.small_stacks import first_finding, standin_stack
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

PORT = 18126
# proxy_buffering is on by default, but nginx 1.30.6 still passes event streams on at once
NGINX = """daemon off; worker_processes 1; pid /tmp/nginx.pid; error_log stderr; events {}
http { access_log off; gzip GZIP; gzip_types text/event-stream;
client_body_temp_path /tmp; proxy_temp_path /tmp; fastcgi_temp_path /tmp; uwsgi_temp_path /tmp; scgi_temp_path /tmp;
server { listen 8080; location / { proxy_pass http://vllm-tiny:8000; } } }
"""


@pytest.fixture(scope="module")
def unpublished(standin_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    """A healthy engine whose port isn't published, so that a test can put something else on it.

    It takes 40 ms for a token, as SmolLM2 does: slow enough to show whether a proxy passes each token on.
    """
    folder = tmp_path_factory.mktemp("unpublished")
    slow = {"STANDIN_TOKEN_SECONDS": "0.04"}
    with standin_stack(folder, "diaguser", standin_image, port=PORT, extra_env=slow) as stack:
        edited = "services: {vllm-tiny: {ports: !reset [], healthcheck: {start_interval: 1s}}}\n"
        (folder / "edited.yaml").write_text(edited)
        done = stack.compose("-f", str(folder / "edited.yaml"), "up", "--detach", "--wait")
        assert done.returncode == 0, done.stderr
        yield stack


def wait_for_port(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"nothing listens on {port}")


def test_another_web_server_on_the_port_is_diagnosed(unpublished: LiveStack, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-m", "http.server", str(PORT), "--bind", "127.0.0.1"], cwd=tmp_path,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:  # fmt: skip
        try:
            wait_for_port(PORT)
            found = first_finding(unpublished)
        finally:
            server.terminate()
    assert found["id"] == "SG-C004" and str(PORT) in found["cause"] + " ".join(found["evidence"]), found


def test_a_server_without_http_on_the_port_is_diagnosed(unpublished: LiveStack) -> None:
    """With a fake mail server's greeting."""

    def greet(connection: socket.socket) -> None:
        connection.sendall(b"220 mail.example.org ESMTP\r\n")
        connection.recv(65536)
        connection.sendall(b"502 5.5.2 Error: command not recognized\r\n")

    with raw_server(greet, PORT):
        found = first_finding(unpublished)
    assert found["id"] == "SG-C004" and str(PORT) in found["cause"] + " ".join(found["evidence"]), found


@contextmanager
def nginx(image: str, stack: LiveStack, config: str) -> Iterator[None]:
    """Runs nginx in the stack's network, on the stack's published port."""
    (stack.folder / "nginx.conf").write_text(config)
    project = stack.data["name"]
    name = f"{project}-nginx"
    subprocess.run(["docker", "rm", "--force", name], capture_output=True)
    started = subprocess.run(
        ["docker", "run", "--detach", "--name", name, "--network", f"{project}_default", "--publish",
         f"127.0.0.1:{PORT}:8080", "--volume", f"{stack.folder}/nginx.conf:/nginx.conf:ro", image, "nginx", "-c",
         "/nginx.conf"], capture_output=True, text=True,
    )  # fmt: skip
    try:
        assert started.returncode == 0, started.stderr
        wait_for_port(PORT)
        yield
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True)


def test_a_proxy_that_buffers_streams_is_diagnosed(unpublished: LiveStack, nginx_image: str) -> None:
    """nginx with gzip buffers, without gzip it doesn't."""
    with nginx(nginx_image, unpublished, NGINX.replace("GZIP", "on")):
        found = first_finding(unpublished)
        assert found["id"] == "SG-S008" and "gzip off" in found["fix"], found
        print("\nstream through gzip:", *found["evidence"])
    with nginx(nginx_image, unpublished, NGINX.replace("GZIP", "off")):
        report = json.loads(unpublished.stackgen("diagnose", str(unpublished.folder), "--json"))
        assert report["findings"] == []


def test_exhausted_network_addresses_are_diagnosed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a second Docker engine that has addresses for its bridge and one network only."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    pools = [{"base": "10.213.0.0/28", "size": 29}]
    with GpuEngine(gpus=0, config={"default-address-pools": pools}) as engine:
        assert engine.docker("network", "create", "taken").returncode == 0
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        model = {"model": "acme/tiny", "engine": "vllm", "image": FAKE_IMAGE, "gpus": "none", "served_names": ["tiny"]}
        (tmp_path / "stack.yaml").write_text(json.dumps({"name": "full", "port": 18133, "models": [model]}))
        done = subprocess.run([sys.executable, "-m", "stackgen", "up", str(tmp_path), "--timeout", "30"],
                              capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "error[SG-D009]" in done.stderr and "docker network ls" in done.stderr
