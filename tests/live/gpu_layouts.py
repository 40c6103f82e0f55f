"""Fake images with the layout of the real ones: paths, PATH, user, working directory, entrypoint and missing programs.

Read from the Dockerfiles of vllm-project/vllm (docker/Dockerfile, Dockerfile.rocm, Dockerfile.cpu: stages vllm-openai)
and ggml-org/llama.cpp (.devops/cuda.Dockerfile, rocm.Dockerfile, vulkan.Dockerfile: stage server) in November 2026, and
of sgl-project/sglang (docker/Dockerfile: SGLang is installed from a folder of the image, and there is no entrypoint).
Each engine is a program that only parses its flags, against the flags that stackgen knows.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from stackgen.flags import load_flags
from tests.live.gpu_image import fake_image

if TYPE_CHECKING:
    from tests.live.gpu_compose import Compose
    from tests.live.gpu_engine import GpuEngine

__all__ = ["LAYOUTS", "PARSED", "use_layouts"]

BASE = "stackgen-test/layout-base:1"
# on no PATH, so that a layout decides whether it has Python
PYTHON = "usr/standin/python3"
PARSED = "flags parsed"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
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


@dataclass(frozen=True)
class Layout:
    """An image: its program, where Python is ("" if there is none), and its configuration."""

    engine: str
    program: str
    python: str
    entrypoint: tuple[str, ...]
    workdir: str
    path: str = DEFAULT_PATH
    user: str = ""
    variables: tuple[str, ...] = ()


VENV = f"/opt/venv/bin:{DEFAULT_PATH}"
VLLM = ("vllm", "serve")
SGLANG = "sgl-workspace/sglang/python"
# by the beginning of the image's name; the longest that matches counts
LAYOUTS = {
    "vllm/vllm-openai:": Layout("vllm", "usr/local/bin/vllm", "usr/bin/python3", VLLM, "/vllm-workspace"),
    "vllm/vllm-openai-rocm:": Layout("vllm", "usr/local/bin/vllm", "usr/bin/python3", VLLM, "/app"),
    "vllm/vllm-openai-cpu:": Layout("vllm", "opt/venv/bin/vllm", "opt/venv/bin/python3", VLLM, "/vllm-workspace", VENV),
    "ghcr.io/ggml-org/llama.cpp:server": Layout("llamacpp", "app/llama-server", "", ("/app/llama-server",), "/app"),
    "stackgen/fastchat:": Layout("fastchat", "opt/stackgen/launch.py", "opt/venv/bin/python3",
                                 ("python3", "/opt/stackgen/launch.py"), "/home/fastchat", VENV),
    # the launcher imports the program; the real package is found through its editable installation
    "lmsysorg/sglang:": Layout("sglang", f"{SGLANG}/sglang/cli/main.py", "usr/bin/python3", (),
                               "/sgl-workspace/sglang", variables=(f"PYTHONPATH=/{SGLANG}",)),
}  # fmt: skip


@cache
def _known_flags() -> str:
    found = {engine: load_flags(engine) for engine in ("vllm", "llamacpp", "fastchat", "sglang")}
    names = {
        engine: sorted({name for flag in flags.by_name.values() for name in flag["names"]} | set(flags.by_name))
        for engine, flags in found.items()
        if flags
    }
    return json.dumps(names)


def _files(layout: Layout) -> bytes:
    """The files of a layout, as a tar for `docker cp`."""
    buffer = io.BytesIO()
    texts = {layout.program: PROGRAM.format(engine=layout.engine), "usr/standin/flags.json": _known_flags()}
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in texts.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), 0o755
            tar.addfile(member, io.BytesIO(text.encode()))
        if layout.python:
            link = tarfile.TarInfo(layout.python)
            link.type, link.linkname = tarfile.SYMTYPE, f"/{PYTHON}"
            tar.addfile(link)
    return buffer.getvalue()


def _build(engine: GpuEngine, layout: Layout, repository: str, tag: str) -> None:
    if engine.docker("image", "inspect", BASE, check=False).returncode:
        engine.docker("import", "-", BASE, stdin=fake_image(PYTHON))
    container = engine.docker("create", BASE, "/bin/sh").stdout.strip()
    engine.docker("cp", "-", f"{container}:/", stdin=_files(layout))
    changes = [f"ENTRYPOINT {json.dumps(layout.entrypoint)}", f"WORKDIR {layout.workdir}", f"ENV PATH={layout.path}"]
    changes += [f"ENV {one}" for one in layout.variables]
    engine.docker("commit", *(word for change in changes for word in ("--change", change)), container,
                  f"{repository}:{tag}")  # fmt: skip
    engine.docker("rm", container)


def use_layouts(engine: GpuEngine, compose: Compose) -> None:
    """Replaces the images of a project that have a layout. `GpuEngine.project` sets them again for each project."""
    for image in compose.images():
        prefixes = [prefix for prefix in LAYOUTS if image.startswith(prefix)]
        if prefixes:
            repository, _, tag = image.rpartition(":")
            _build(engine, LAYOUTS[max(prefixes, key=len)], repository, tag)
