"""Archives of images from the engine's socket. Live tests of bundles use the real one; here it fails, or cuts them.

The engine is a stub: a real one ends an archive early only when its disk is full, or when it is stopped.
"""

from __future__ import annotations

import io
import socket
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stackgen.bundle.tar_headers import stream_tar
from stackgen.errors import MachineError, StackgenError
from stackgen.runtimes.compose.engine_socket import find_socket
from stackgen.runtimes.compose.image_archive import save_archive


def archive(size: int = 3_000_000) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("blobs/sha256/" + "a" * 64)
        entry.size = size
        tar.addfile(entry, io.BytesIO(bytes(range(250)) * (size // 250)))
    return out.getvalue()


@contextmanager
def engine(answer: bytes, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[list[bytes]]:
    """An engine that answers one request with these bytes; yields what it was asked."""
    asked: list[bytes] = []
    path = str(folder / "docker.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve() -> None:
            link, _ = server.accept()
            with link:
                asked.append(link.recv(65536))
                link.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        yield asked
        thread.join(10)


def read_all() -> dict[str, bytes]:
    with save_archive(["example/a:1", "b"]) as stream:
        return {name: b"".join(map(bytes, content)) for name, _, content in stream_tar(stream)}


def test_archive_is_read_byte_for_byte(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with engine(
        b"HTTP/1.0 200 OK\r\nContent-Type: application/x-tar\r\n\r\n" + archive(), monkeypatch, tmp_path
    ) as asked:
        found = read_all()
    assert found == {"blobs/sha256/" + "a" * 64: bytes(range(250)) * 12_000}
    assert asked[0].startswith(b"GET /images/get?names=example%2Fa%3A1&names=b HTTP/1.0\r\n")


def test_archive_that_ends_early_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for data in (archive()[:1_000_000], archive()[:300], archive()[: 512 + 3_000_000 + 300], b""):
        with engine(b"HTTP/1.0 200 OK\r\n\r\n" + data, monkeypatch, tmp_path):
            with pytest.raises(StackgenError, match="docker save failed: the archive "):
                read_all()
        (tmp_path / "docker.sock").unlink()


def test_message_of_the_engine_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = b'{"message":"write /tmp/x: no space left on device"}\n'
    with engine(b"HTTP/1.0 500 Internal Server Error\r\n\r\n" + body, monkeypatch, tmp_path):
        with pytest.raises(MachineError, match="the disk of the Docker engine is full"):
            read_all()
    (tmp_path / "docker.sock").unlink()
    with engine(b"", monkeypatch, tmp_path), pytest.raises(StackgenError, match="without an answer"):
        read_all()


def test_other_endpoints_are_left_to_the_docker_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    for host, wanted in (("tcp://127.0.0.1:2375", ""), ("ssh://host", ""), ("unix:///run/x.sock", "/run/x.sock")):
        monkeypatch.setenv("DOCKER_HOST", host)
        assert find_socket() == wanted
    monkeypatch.delenv("DOCKER_HOST")
    assert find_socket() == "/var/run/docker.sock"
    (tmp_path / "config.json").write_text('{"currentContext": "far"}')
    assert find_socket() == ""
    (tmp_path / "config.json").write_text("{}")
    assert find_socket() == "/var/run/docker.sock"
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    assert find_socket() == ""
