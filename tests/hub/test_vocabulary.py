"""The vocabulary of gpt-oss: downloaded once, checked by its checksum, and never mistaken for something else."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMON = Path(__file__).parents[2] / "templates/images/common"
VOCABULARY = b"YQ== 0\nYg== 1\n"
# the real file is not part of the tests, so its checksum is replaced by that of a small one
RUN = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
import vocabulary
vocabulary.CHECKSUMS["o200k_base"] = sys.argv[3]
vocabulary.URL = sys.argv[4]
vocabulary.time.sleep = lambda seconds: None
sys.exit(vocabulary.ensure_downloaded(pathlib.Path(sys.argv[2]), "o200k_base", 3))
"""


class Server:
    """Serves `answers` in order, then the last one again; `requests` are the paths and hosts that were asked for."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = [(200, VOCABULARY)]
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                status, body = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/encodings/"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def run(folder: Path, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    checksum = hashlib.sha256(VOCABULARY).hexdigest()
    return subprocess.run(
        [sys.executable, "-S", "-c", RUN, str(COMMON), str(folder), checksum, url],
        env={"PATH": os.environ["PATH"]} | environment, text=True, capture_output=True, timeout=60,
    )  # fmt: skip


def test_it_is_downloaded_once_under_the_name_that_the_engine_reads(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "tiktoken"
    assert run(folder, server.url).returncode == 0
    assert [path.name for path in folder.iterdir()] == ["o200k_base.tiktoken"]
    assert (folder / "o200k_base.tiktoken").read_bytes() == VOCABULARY
    assert server.requests == ["/encodings/o200k_base.tiktoken"]
    again = run(folder, "http://127.0.0.1:9/")
    assert (again.returncode, again.stdout) == (0, "stackgen: the vocabulary o200k_base is already there\n")


def test_a_damaged_file_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "o200k_base.tiktoken").write_bytes(VOCABULARY[:-1])
    assert run(tmp_path, server.url).returncode == 0
    assert (tmp_path / "o200k_base.tiktoken").read_bytes() == VOCABULARY


def test_a_portals_page_is_not_stored(server: Server, tmp_path: Path) -> None:
    server.answers = [(200, b"<html>log in</html>")]
    done = run(tmp_path, server.url)
    assert done.returncode == 12 and "another checksum" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_temporary_errors_are_retried_and_a_refusal_is_not(server: Server, tmp_path: Path) -> None:
    server.answers = [(503, b""), (200, VOCABULARY)]
    assert run(tmp_path / "a", server.url).returncode == 0
    assert len(server.requests) == 2
    server.answers = [(403, b"")]
    done = run(tmp_path / "b", server.url)
    assert done.returncode == 12 and "answers HTTP 403" in done.stderr
    # the way out when the host is blocked for good
    assert f"copy the file from another machine to {tmp_path}/b/o200k_base.tiktoken" in done.stderr
    assert len(server.requests) == 3


def test_the_download_goes_through_the_proxy(server: Server, tmp_path: Path) -> None:
    proxy = server.url.removesuffix("/encodings/")
    done = run(tmp_path, "http://vocabulary.invalid/", HTTP_PROXY=proxy, NO_PROXY="localhost")
    assert done.returncode == 0, done.stderr
    assert server.requests == ["http://vocabulary.invalid/o200k_base.tiktoken"]
