"""What users meet of a stack that looks well: an image with other packages, a foreign port, a proxy, full networks."""

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
from tests.live.gpu_engine import STAND_IN, GpuEngine, missing
from tests.live.stacks import LiveStack
from tests.live.test_diagnose import cause
from tests.live.test_faults import stack_of

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

PORT = 18120
# proxy_buffering is on unless it is turned off; nginx 1.30.6 passes event streams on at once all the same
NGINX = """daemon off; worker_processes 1; pid /tmp/nginx.pid; error_log stderr; events {}
http { access_log off; gzip GZIP; gzip_types text/event-stream;
client_body_temp_path /tmp; proxy_temp_path /tmp; fastcgi_temp_path /tmp; uwsgi_temp_path /tmp; scgi_temp_path /tmp;
server { listen 8080; location / { proxy_pass http://vllm-tiny:8000; } } }
"""
PYDANTIC = ("pydantic", "pydantic_core", "annotated_types", "typing_extensions.py", "typing_inspection")


def test_an_image_with_pydantic_2(fastchat_image: str, exporter_image: str, tiny_model: Path, tmp_path: Path) -> None:
    """All looks well until somebody asks for a stream: 200, and nothing in it."""
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
            done = stack.stackgen_raw("up", str(tmp_path))
            assert done.returncode == 1, done.stdout
            found = cause(stack)
            assert found["id"] == "SG-F008", found
            assert "pydantic" in found["cause"] and "dumps_kwargs" in " ".join(found["evidence"])
    finally:
        subprocess.run(["docker", "rmi", "--force", image], capture_output=True)


@pytest.fixture(scope="module")
def unpublished(vllm_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    """A healthy engine whose port of the machine is not its own: something else stands there."""
    folder = tmp_path_factory.mktemp("unpublished")
    with stack_of(folder, "diaguser", vllm_image, tiny_model, max_model_len=1024) as stack:
        (folder / "edited.yaml").write_text("services: {vllm-tiny: {ports: !reset []}}\n")
        done = stack.compose("-f", str(folder / "edited.yaml"), "up", "--detach", "--wait")
        assert done.returncode == 0, done.stderr
        yield stack


def listening(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"nothing listens on {port}")


def test_another_web_server_stands_on_the_port(unpublished: LiveStack, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-m", "http.server", str(PORT), "--bind", "127.0.0.1"], cwd=tmp_path,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:  # fmt: skip
        try:
            listening(PORT)
            found = cause(unpublished)
        finally:
            server.terminate()
    assert found["id"] == "SG-C004" and str(PORT) in found["cause"] + " ".join(found["evidence"]), found


def test_a_server_that_speaks_no_http_stands_on_the_port(unpublished: LiveStack) -> None:
    """A mail server's greeting, made up: no mail server is installed here."""

    def greet(connection: socket.socket) -> None:
        connection.sendall(b"220 mail.example.org ESMTP\r\n")
        connection.recv(65536)
        connection.sendall(b"502 5.5.2 Error: command not recognized\r\n")

    with raw_server(greet, PORT):
        found = cause(unpublished)
    assert found["id"] == "SG-C004" and str(PORT) in found["cause"] + " ".join(found["evidence"]), found


@contextmanager
def nginx(image: str, stack: LiveStack, config: str) -> Iterator[None]:
    """nginx in the stack's network and on its port of the machine."""
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
        listening(PORT)
        yield
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True)


def test_a_proxy_that_holds_streams_back(
    vllm_image: str, smollm2: Path, nginx_image: str, tmp_path: Path
) -> None:  # fmt: skip
    """nginx that compresses what it passes on; without it, tokens come one by one. The model is slow enough to tell."""
    with stack_of(tmp_path, "diagproxy", vllm_image, smollm2, max_model_len=1024, dtype="bfloat16") as stack:
        (tmp_path / "edited.yaml").write_text("services: {vllm-tiny: {ports: !reset []}}\n")
        done = stack.compose("-f", str(tmp_path / "edited.yaml"), "up", "--detach", "--wait")
        assert done.returncode == 0, done.stderr
        with nginx(nginx_image, stack, NGINX.replace("GZIP", "on")):
            found = cause(stack)
            assert found["id"] == "SG-S008" and "gzip off" in found["fix"], found
            print("\nstream through gzip:", *found["evidence"])
        with nginx(nginx_image, stack, NGINX.replace("GZIP", "off")):
            told = json.loads(stack.stackgen("diagnose", str(tmp_path), "--json"))
            assert told["findings"] == []


def test_no_room_for_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of its own whose addresses are enough for its bridge and one network."""
    if reason := missing():
        pytest.skip(reason)
    pools = [{"base": "10.213.0.0/28", "size": 29}]
    with GpuEngine(gpus=0, config={"default-address-pools": pools}) as engine:
        assert engine.docker("network", "create", "taken").returncode == 0
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        model = {"model": "acme/tiny", "engine": "vllm", "image": STAND_IN, "gpus": "none", "served_names": ["tiny"]}
        (tmp_path / "stack.yaml").write_text(json.dumps({"name": "full", "port": 18131, "models": [model]}))
        done = subprocess.run([sys.executable, "-m", "stackgen", "up", str(tmp_path), "--timeout", "30"],
                              capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "error[SG-D009]" in done.stderr and "docker network prune" in done.stderr
