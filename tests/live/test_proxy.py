"""A proxy that intercepts TLS: the download service and builds of images go through it and trust its authority."""

from __future__ import annotations

import contextlib
import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stackgen.cli.main import main

pytestmark = [
    pytest.mark.docker, pytest.mark.timeout(120),
    pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl"),
]  # fmt: skip
# containers and builds reach the host under the address of Docker's default bridge
BRIDGE = "172.17.0.1"
# no name server knows it, so an answer can come only through the proxy
HOST = "packages.invalid"
FETCH = f"import urllib.request; print(urllib.request.urlopen('https://{HOST}/simple', timeout=20).read().decode())"


class InterceptingProxy:
    """An HTTP proxy that answers for every host itself, with a certificate of its own authority."""

    def __init__(self, folder: Path) -> None:
        key, certificate = folder / "key.pem", folder / "corp.pem"
        # its own authority, valid for HOST
        command = ("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout "
                   f"{key} -out {certificate} -subj /CN={HOST} -addext subjectAltName=DNS:{HOST}")  # fmt: skip
        subprocess.run(command.split(), check=True, capture_output=True, timeout=30)
        certificate.chmod(0o644)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        self.tunnels: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                outer.tunnels.append(self.path)
                self.send_response(200)
                self.end_headers()
                # an untrusted certificate makes the client hang up
                with contextlib.suppress(OSError), outer.context.wrap_socket(self.connection, server_side=True) as tls:
                    tls.recv(65536)
                    tls.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\nthrough")
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((BRIDGE, 0), Handler)
        self.url = f"http://{BRIDGE}:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[InterceptingProxy]:
    made = InterceptingProxy(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_downloads_and_builds_leave_through_the_proxy(
    proxy: InterceptingProxy, tmp_path: Path, standin_image: str
) -> None:
    models = [{"engine": "llamacpp", "model": "org/g", "file": "g.gguf"}]
    data = {"name": "sgtest-proxy", "models": models, "proxy": proxy.url, "ca_certificates": "./corp.pem",
            "storage": {"path": "./store"}}  # fmt: skip
    (tmp_path / "store").mkdir()
    (tmp_path / "stack.yaml").write_text(json.dumps(data))
    assert main(["render", str(tmp_path), "--no-validate"]) == 0
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=sk-a\n")
    # the real Dockerfile would compile llama.cpp; this one reads proxy and certificates as pip does, and never comes
    # from the build cache
    (tmp_path / "llamacpp/Dockerfile").write_text(
        f"FROM {standin_image}\nUSER 0\nRUN --mount=type=secret,id=pip_ca SSL_CERT_FILE=/run/secrets/pip_ca "
        f'python3 -c "{FETCH}" > /fetched && : {time.time_ns()}\nENTRYPOINT []\n'
    )
    image = yaml_image(tmp_path)
    # a stack of the same version must not take this image for llama.cpp's
    text = (tmp_path / "compose.yaml").read_text().replace(image, "sgtest-proxy-build")
    (tmp_path / "compose.yaml").write_text(text)

    def compose(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["docker", "compose", "--project-directory", str(tmp_path), *arguments],
                              capture_output=True, text=True, timeout=100)  # fmt: skip

    try:
        done = compose("build")
        assert done.returncode == 0, done.stdout + done.stderr
        assert proxy.tunnels == [f"{HOST}:443"]
        # neither the URL nor the certificates stay in the image
        history = subprocess.run(["docker", "history", "--no-trunc", "sgtest-proxy-build"], capture_output=True,
                                 text=True, check=True, timeout=60)  # fmt: skip
        assert proxy.url not in history.stdout
        done = compose("run", "--rm", "--no-deps", "--entrypoint", "python3", "download", "-c", FETCH)
        assert (done.returncode, done.stdout.strip()) == (0, "through"), done.stderr
        assert proxy.tunnels == [f"{HOST}:443"] * 2
    finally:
        compose("down", "--timeout", "1")
        subprocess.run(["docker", "rmi", "--force", "sgtest-proxy-build"], capture_output=True, timeout=60)


def yaml_image(folder: Path) -> str:
    """The image that the stack builds."""
    lines = (folder / "compose.yaml").read_text().splitlines()
    return next(line.split()[-1] for line in lines if "image: stackgen/llamacpp" in line)
