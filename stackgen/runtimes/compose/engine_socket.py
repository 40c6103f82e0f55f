"""Archives of images read from the engine's own socket, without the `docker` command in between.

`docker save` copies each byte once more, and the engine sends it in chunks of 32 KB. A request of HTTP/1.0 gets the bare
bytes. Measured with 2.9 GB: 24 s of processor time in both processes instead of 29 s (docs/decisions/bundle.md).

Sources: Engine API 1.51, `GET /images/get`; docs.docker.com, environment variables and contexts of the CLI.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

__all__ = ["ImageStream", "find_socket", "open_archive"]

DEFAULT = "/var/run/docker.sock"
HEAD_BYTES = 64 * 2**10


def find_socket() -> str:
    """The path of the socket that the `docker` command uses; "" if it uses a context, TCP or SSH."""
    if host := os.environ.get("DOCKER_HOST", ""):
        return host.removeprefix("unix://") if host.startswith("unix:///") else ""
    if os.environ.get("DOCKER_CONTEXT", "default") != "default":
        return ""
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        config = json.loads((folder / "config.json").read_text())
        return DEFAULT if config.get("currentContext", "default") == "default" else ""
    except FileNotFoundError:
        return DEFAULT
    except (OSError, ValueError, AttributeError):
        return ""


def open_archive(names: Sequence[str]) -> ImageStream | None:
    """Requests the archive of images; the engine prepares it at once. None if its socket can't be opened here."""
    path = find_socket()
    if not path:
        return None
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(path)
        query = urlencode([("names", name) for name in names])
        # 1.0: the answer is not cut into chunks, and ends with the connection
        link.sendall(f"GET /images/get?{query} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
    except OSError:
        # `docker save` says what is wrong
        link.close()
        return None
    return ImageStream(link)


class ImageStream:
    """The archive that the engine sends: `read` and `readinto` return fewer bytes than requested only at its end."""

    def __init__(self, link: socket.socket) -> None:
        self._link, self._rest = link, b""
        self._has_head = False
        # the message of the engine if it refuses
        self.error = ""

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer, and returns how many bytes there were."""
        if not self._has_head:
            self._read_head()
        if self.error:
            return 0
        done = min(len(self._rest), len(buffer))
        buffer[:done], self._rest = self._rest[:done], self._rest[done:]
        while done < len(buffer):
            count = self._link.recv_into(buffer[done:])
            if not count:
                break
            done += count
        return done

    def read(self, size: int) -> bytes:
        """Returns `size` bytes."""
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def close(self) -> None:
        """Ends the request; the engine stops its work."""
        with suppress(OSError):
            self._link.close()

    def _read_head(self) -> None:
        self._has_head = True
        data = b""
        while b"\r\n\r\n" not in data and len(data) < HEAD_BYTES:
            more = self._link.recv(HEAD_BYTES)
            if not more:
                break
            data += more
        head, _, self._rest = data.partition(b"\r\n\r\n")
        status = head.split(b"\r\n")[0].split(b" ")[1:2]
        if status == [b"200"]:
            return
        while more := self._link.recv(HEAD_BYTES):
            self._rest += more
        text = self._rest.decode("utf-8", "replace").strip()
        with suppress(ValueError, AttributeError):
            text = json.loads(text).get("message", text)
        self.error = text or "the Docker engine closed the connection without an answer"
