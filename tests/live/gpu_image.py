"""A fake image for tests: this machine's Python and shell, and a `vllm` that answers HTTP and computes nothing."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from functools import lru_cache
from pathlib import Path

__all__ = ["FAKE_IMAGE", "fake_image"]

FAKE_IMAGE = "stackgen-test/fake:1"
IMAGE_PROGRAMS = ("sh", "bash", "cat", "cp", "cut", "date", "env", "grep", "head", "id", "ls", "mkdir", "mktemp", "mv",
                  "rm", "sed", "sleep", "stat", "tail", "touch", "tr", "wc")  # fmt: skip

# Instead of vLLM: lists its served names and answers every request. As `hf` it only exits with 0.
SERVER = r"""#!/usr/bin/python3
import http.server, json, os, signal, sys
args = sys.argv[1:]
if os.path.basename(sys.argv[0]) == "hf":
    sys.exit(0)
port = int(args[args.index("--port") + 1]) if "--port" in args else 8000
names = [args[1]] if len(args) > 1 else []
if "--served-model-name" in args:
    rest = args[args.index("--served-model-name") + 1:]
    names = rest[:next((at for at, arg in enumerate(rest) if arg.startswith("--")), None)]
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}
        self.answer(b"" if self.path in ("/health", "/metrics") else json.dumps(body).encode())
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(json.dumps({"choices": [{"text": "1", "finish_reason": "length"}]}).encode())
    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *args):
        pass
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
http.server.ThreadingHTTPServer(("", port), Answer).serve_forever()
"""


def _libraries(files: list[str]) -> set[str]:
    """Returns the shared libraries that `files` are linked with, including the loader."""
    text = subprocess.run(["ldd", *files], capture_output=True, text=True, check=False, timeout=30).stdout
    return set(re.findall(r"(/\S+) \(0x", text))


# the gateway's start script needs bash, which the official HAProxy image has
DEFAULT_PROGRAMS = (*(f"usr/bin/{name}" for name in IMAGE_PROGRAMS), "bin/sh", "bin/bash")


@lru_cache(maxsize=8)
def fake_image(python: str = "usr/bin/python3", paths: tuple[str, ...] = DEFAULT_PROGRAMS) -> bytes:
    """Returns a root file system (tar) with this machine's Python, shell and a few programs: 1 second, no download.

    `python` is the interpreter's path, in a folder of /usr. `paths` are those of the other programs in the image.
    """
    stdlib = Path(sysconfig.get_path("stdlib"))
    # the real file: through a virtual environment's link, Python would look for its libraries next to the link
    programs = {python: os.path.realpath(sys.executable)}
    programs |= {path: os.path.realpath(found) for path in paths if (found := shutil.which(Path(path).name))}
    linked = [*programs.values(), *map(str, (stdlib / "lib-dynload").glob("*.so"))]
    texts = {
        "usr/local/bin/vllm": SERVER,
        "usr/local/bin/hf": SERVER,
        # the paths in stackgen's own FastChat image
        "opt/stackgen/launch.py": SERVER,
        "opt/stackgen/health.py": "",
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
        # `group_add` by name is looked up in the image; ROCm's images have both groups
        "etc/group": "root:x:0:\nvideo:x:44:\nrender:x:109:\n",
    }
    excluded = {"test", "idlelib", "tkinter", "ensurepip", "lib2to3", "site-packages", "dist-packages", "__pycache__"}

    def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = set(member.name.split("/"))
        return None if parts & excluded or any(part.startswith("config-") for part in parts) else member

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as tar:
        for target, source in {**programs, **{path.lstrip("/"): path for path in sorted(_libraries(linked))}}.items():
            tar.add(source, target)
        tar.add(stdlib, f"usr/lib/{stdlib.name}", filter=keep)
        for target, text in texts.items():
            member = tarfile.TarInfo(target)
            member.size, member.mode = len(text.encode()), 0o755
            tar.addfile(member, io.BytesIO(text.encode()))
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
    return buffer.getvalue()
