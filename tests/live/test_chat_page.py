"""The chat page behind the real gateway: TLS, WebSockets, and a page that is down. A stub stands in for Open WebUI."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackgen.cli.main import main
from tests.live.containers import docker, wait_until

pytestmark = pytest.mark.docker

# answers with the headers it got; after an upgrade, it sends back what it gets
STUB = """
import http.server, json
class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.headers.get("upgrade"):
            self.send_response(101); self.send_header("connection", "upgrade"); self.send_header("upgrade", "websocket")
            self.send_header("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="); self.end_headers()
            self.wfile.write(self.rfile.readline()); self.wfile.flush()
            self.close_connection = True
            return
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 8080), Page).serve_forever()
"""


@pytest.fixture
def page(
    tmp_path: Path, haproxy_image: str, standin_image: str, free_port: int
) -> Iterator[tuple[int, ssl.SSLContext, str]]:
    """The port of a running gateway, the TLS context of a client, and the name of the stub's container."""
    (tmp_path / "stack.yaml").write_text(
        "name: page\ngateway: {tls: generate}\nui: {bind: 0.0.0.0}\nmodels: [{model: ./m, engine: vllm}]\n"
    )
    assert main(["render", str(tmp_path), "--no-validate"]) == 0
    tmp_path.chmod(0o755)
    network, stub, gateway = (f"sgtest-page-{kind}-{os.getpid()}" for kind in ("net", "stub", "gateway"))
    docker("network", "create", network)
    try:
        docker("run", "-d", "--name", stub, "--network", network, "--network-alias", "open-webui", "--entrypoint",
               "python3", standin_image, "-u", "-c", STUB)  # fmt: skip
        tls = tmp_path / "gateway" / "tls"
        docker("run", "-d", "--name", gateway, "--network", network, "--user", "0:0",
               "-p", f"127.0.0.1:{free_port}:8010",
               "-v", f"{tmp_path}/gateway:/gateway:ro", "-v", f"{tmp_path}/scripts:/stackgen:ro",
               "-v", f"{tls}/site.crt:/tls/site.crt:ro", "-v", f"{tls}/site.key:/tls/site.crt.key:ro",
               "-e", "STACKGEN_API_KEY=k", "-e", "STACKGEN_ENGINE_KEY=e", "--entrypoint", "/bin/bash", haproxy_image,
               "/stackgen/gateway_start.sh")  # fmt: skip
        yield free_port, ssl.create_default_context(cafile=str(tls / "site.crt")), stub
    finally:
        subprocess.run(["docker", "rm", "-f", "-v", stub, gateway], capture_output=True)
        subprocess.run(["docker", "network", "rm", network], capture_output=True)


def get(port: int, context: ssl.SSLContext) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/", timeout=5, context=context) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def wait_for(port: int, context: ssl.SSLContext, status: int) -> str:
    """Returns the body of the first answer with `status`."""
    wait_until(lambda: get(port, context)[0] == status, 30, lambda: get(port, context))
    return get(port, context)[1]


def test_the_page_is_served_with_the_gateways_certificate(page: tuple[int, ssl.SSLContext, str]) -> None:
    port, context, stub = page
    headers = json.loads(wait_for(port, context, 200))
    assert headers["x-forwarded-proto"] == "https" and headers["x-forwarded-for"]
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        assert connection.selected_alpn_protocol() in (None, "http/1.1")
        connection.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert b"101 Switching Protocols" in connection.recv(4096)
        connection.sendall(b"hello\n")
        assert connection.recv(4096) == b"hello\n"
    # a page that is down is an error of the page alone: the gateway still answers
    docker("kill", stub)
    assert "The chat page is not running" in wait_for(port, context, 503)
