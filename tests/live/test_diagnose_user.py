"""Faults of stacks that look healthy: an image with other packages, a foreign port, a proxy, no free network."""

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
from tests.live.stacks import LiveStack
from tests.live.test_diagnose import first_finding
from tests.live.test_faults import tiny_vllm_stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

PORT = 18120
# proxy_buffering is on by default, but nginx 1.30.6 still passes event streams on at once
NGINX = """daemon off; worker_processes 1; pid /tmp/nginx.pid; error_log stderr; events {}
http { access_log off; gzip GZIP; gzip_types text/event-stream;
client_body_temp_path /tmp; proxy_temp_path /tmp; fastcgi_temp_path /tmp; uwsgi_temp_path /tmp; scgi_temp_path /tmp;
server { listen 8080; location / { proxy_pass http://vllm-tiny:8000; } } }
"""
PYDANTIC = ("pydantic", "pydantic_core", "annotated_types", "typing_extensions.py", "typing_inspection")


def test_an_image_with_pydantic_2_is_diagnosed(
    fastchat_image: str, exporter_image: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Everything works until a stream is requested: it gets status 200 and no content."""
    site = "/opt/venv/lib/python3.11/site-packages"
    copies = "\n".join(f"COPY --from={exporter_image} {site}/{name} {site}/{name}" for name in PYDANTIC)
    text = f"FROM {fastchat_image}\nUSER 0:0\nRUN rm -r {site}/pydantic\n{copies}\nUSER 1000:1000\n"
    image = "sgtest-diag-pydantic2"
    built = subprocess.run(["docker", "build", "--quiet", "--tag", image, "-"], input=text, capture_output=True,
                           text=True, timeout=300)  # fmt: skip
    assert built.returncode == 0, built.stderr
    model = {"model": str(tiny_model), "engine": "fastchat", "served_names": ["tiny"], "image": image}
    try:
        with LiveStack(
            tmp_path, {"name": "sgtest-diagpyd", "port": 18130, "gateway": False, "models": [model]}
        ) as stack:
            done = stack.run_stackgen("up", str(tmp_path))
            assert done.returncode == 1, done.stdout
            found = first_finding(stack)
            assert found["id"] == "SG-F008", found
            assert "pydantic" in found["cause"] and "dumps_kwargs" in " ".join(found["evidence"])
    finally:
        subprocess.run(["docker", "rmi", "--force", image], capture_output=True)


@pytest.fixture(scope="module")
def unpublished(vllm_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    """A healthy engine whose port isn't published, so that a test can put something else on it."""
    folder = tmp_path_factory.mktemp("unpublished")
    with tiny_vllm_stack(folder, "diaguser", vllm_image, tiny_model, max_model_len=1024) as stack:
        (folder / "edited.yaml").write_text("services: {vllm-tiny: {ports: !reset []}}\n")
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


def test_a_proxy_that_buffers_streams_is_diagnosed(
    vllm_image: str, smollm2: Path, nginx_image: str, tmp_path: Path
) -> None:  # fmt: skip
    """nginx with gzip buffers, without gzip it doesn't. SmolLM2 is slow enough to show the difference."""
    with tiny_vllm_stack(tmp_path, "diagproxy", vllm_image, smollm2, max_model_len=1024, dtype="bfloat16") as stack:
        (tmp_path / "edited.yaml").write_text("services: {vllm-tiny: {ports: !reset []}}\n")
        done = stack.compose("-f", str(tmp_path / "edited.yaml"), "up", "--detach", "--wait")
        assert done.returncode == 0, done.stderr
        with nginx(nginx_image, stack, NGINX.replace("GZIP", "on")):
            found = first_finding(stack)
            assert found["id"] == "SG-S008" and "gzip off" in found["fix"], found
            print("\nstream through gzip:", *found["evidence"])
        with nginx(nginx_image, stack, NGINX.replace("GZIP", "off")):
            report = json.loads(stack.stackgen("diagnose", str(tmp_path), "--json"))
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
        (tmp_path / "stack.yaml").write_text(json.dumps({"name": "full", "port": 18131, "models": [model]}))
        done = subprocess.run([sys.executable, "-m", "stackgen", "up", str(tmp_path), "--timeout", "30"],
                              capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "error[SG-D009]" in done.stderr and "docker network prune" in done.stderr
