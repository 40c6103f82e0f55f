"""Fake images with the layout of the real ones (tests/images/layouts.py), for the second Docker engine.

Each engine is a program that only parses its flags, against the flags that stackgen knows. Every other program writes
to the folders that the real one writes to, and answers HTTP.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from functools import cache
from typing import TYPE_CHECKING

from stackgen.flags import load_flags
from tests.images.layouts import Layout, layout_of
from tests.live.gpu_image import fake_image

if TYPE_CHECKING:
    from tests.live.gpu_compose import Compose
    from tests.live.gpu_engine import GpuEngine

__all__ = ["PARSED", "STARTED", "use_layouts"]

# on no PATH, so that a layout decides whether it has Python
PYTHON = "usr/standin/python3"
PARSED, STARTED = "flags parsed", "has written, and answers on port"
ENGINES = {
    "vllm/": "vllm", "ghcr.io/ggml-org/": "llamacpp", "stackgen/fastchat:": "fastchat", "lmsysorg/sglang:": "sglang",
}  # fmt: skip
PROGRAM = f"""#!/{PYTHON}
import json, os, signal, sys
known = json.load(open("/usr/standin/flags.json"))[{{engine!r}}]
unknown = [arg for arg in sys.argv[1:] if arg.startswith("--") and arg.partition("=")[0] not in known]
if unknown:
    sys.exit(f"unrecognized arguments: {{{{' '.join(unknown)}}}}")
print("{PARSED}, uid", os.getuid(), "in", os.getcwd(), flush=True)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
signal.pause()
"""
SERVER = f"""#!/{PYTHON}
import http.server, os, signal
for folder in {{written!r}}:
    open(f"{{{{folder}}}}/standin", "w").close()
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = b'{{{{"status": true}}}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *args):
        pass
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server = http.server.ThreadingHTTPServer(("", {{port}}), Answer)
# a health check may close its connection before it has read the response
server.handle_error = lambda *_: None
print("uid", os.getuid(), "in", os.getcwd(), "{STARTED}", {{port}}, flush=True)
server.serve_forever()
"""


@cache
def _known_flags() -> str:
    found = {engine: load_flags(engine) for engine in sorted(set(ENGINES.values()))}
    names = {
        engine: sorted({name for flag in flags.by_name.values() for name in flag["names"]} | set(flags.by_name))
        for engine, flags in found.items()
        if flags
    }
    return json.dumps(names)


def _files(layout: Layout, engine: str) -> bytes:
    """The files of a layout, as a tar for `docker cp`."""
    buffer = io.BytesIO()
    program = PROGRAM.format(engine=engine) if engine else SERVER.format(written=layout.written, port=layout.port)
    texts = {layout.own: program, "/usr/standin/flags.json": _known_flags(), **layout.scripts}
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, uid in layout.folders.items():
            folder = tarfile.TarInfo(name.lstrip("/"))
            folder.type, folder.uid, folder.mode = tarfile.DIRTYPE, uid, 0o755
            tar.addfile(folder)
        for name, text in texts.items():
            member = tarfile.TarInfo(name.lstrip("/"))
            member.size, member.mode = len(text.encode()), 0o755
            tar.addfile(member, io.BytesIO(text.encode()))
        if layout.python:
            link = tarfile.TarInfo(layout.python.lstrip("/"))
            link.type, link.linkname = tarfile.SYMTYPE, f"/{PYTHON}"
            tar.addfile(link)
    return buffer.getvalue()


def _base(engine: GpuEngine, layout: Layout) -> str:
    """An image with the programs of a layout that are this machine's, and Python outside of its PATH."""
    others = {layout.own, layout.python, *layout.scripts}
    programs = tuple(sorted(name.lstrip("/") for name in layout.programs if name not in others))
    image = f"stackgen-test/layout-base:{hashlib.sha256(repr(programs).encode()).hexdigest()[:12]}"
    if engine.docker("image", "inspect", image, check=False).returncode:
        engine.docker("import", "-", image, stdin=fake_image(PYTHON, programs))
    return image


def _build(engine: GpuEngine, image: str, layout: Layout) -> None:
    kind = next((kind for prefix, kind in ENGINES.items() if image.startswith(prefix)), "")
    container = engine.docker("create", _base(engine, layout), "/bin/sh").stdout.strip()
    engine.docker("cp", "-", f"{container}:/", stdin=_files(layout, kind))
    changes = [f"ENTRYPOINT {json.dumps(layout.entrypoint)}", f"CMD {json.dumps(layout.command)}"]
    changes += [f"WORKDIR {layout.workdir}", f"ENV PATH={layout.path}", f"USER {layout.user}"]
    changes += [f"ENV {one}" for one in layout.variables]
    engine.docker("commit", *(word for change in changes for word in ("--change", change)), container, image)
    engine.docker("rm", container)


def use_layouts(engine: GpuEngine, compose: Compose) -> None:
    """Replaces the images of a project that have a layout. `GpuEngine.project` sets them again for each project."""
    for image in compose.images():
        if layout := layout_of(image):
            _build(engine, image, layout)
