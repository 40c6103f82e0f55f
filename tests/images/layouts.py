"""The layouts of the images that rendered stacks name: programs, PATH, user, working directory, entrypoint, folders.

Read in November 2026 from the files that build the images. An image whose source isn't named by tag was read at the
latest version that could be had.

- prom/prometheus: prometheus/prometheus v3.5.3, Dockerfile, on busybox.
- grafana/grafana: grafana/grafana, Dockerfile (stage final-alpine, as of 2026) and packaging/docker/run.sh. The image
  without a suffix is the one on Alpine.
- nvcr.io/nvidia/k8s/dcgm-exporter: NVIDIA/dcgm-exporter 4.5.3-4.8.2, docker/Dockerfile, stage runtime-distroless.
- haproxy: docker-library/haproxy, 3.2/Dockerfile as of 3.2.21, on Debian trixie.
- ghcr.io/open-webui/open-webui: open-webui/open-webui, Dockerfile and backend/start.sh as of 2026, on Debian.
- vllm/vllm-openai*: vllm-project/vllm, docker/Dockerfile, Dockerfile.rocm, Dockerfile.cpu: stages vllm-openai.
- ghcr.io/ggml-org/llama.cpp: ggml-org/llama.cpp, .devops/cuda.Dockerfile, rocm.Dockerfile, vulkan.Dockerfile: stage
  server.
- lmsysorg/sglang: sgl-project/sglang, docker/Dockerfile. SGLang is installed from a folder of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["DEFAULT_PATH", "LAYOUTS", "Layout", "layout_of"]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# what scripts of ours may use in Debian and Ubuntu: bash, coreutils, dash, findutils, grep, libc-bin, sed, util-linux
NAMES = (
    "bash", "cat", "cp", "cut", "date", "env", "find", "getent", "grep", "head", "id", "ls", "mkdir", "mktemp", "mv",
    "printenv", "rm", "sed", "sh", "sha256sum", "sleep", "sort", "stat", "tail", "timeout", "touch", "tr", "uniq", "wc",
)  # fmt: skip
DEBIAN = (*(f"/usr/bin/{name}" for name in NAMES), "/bin/bash", "/bin/sh")
# busybox has more, but none of bash and curl
BUSYBOX = ("/bin/sh", "/bin/cat", "/bin/date", "/bin/grep", "/bin/ls", "/bin/sleep", "/bin/wget")
VENV = f"/opt/venv/bin:{DEFAULT_PATH}"


@dataclass(frozen=True)
class Layout:
    """An image. All paths are absolute.

    - `programs`: what our commands, health checks and scripts may start, the image's own program included.
    - `own`: the path of the image's own program.
    - `python`: the interpreter's path; "" if the image has none.
    - `user`: the image's user, as numbers.
    - `folders`: folders in the image, with the uid that may write to them. A new volume gets the owner of the folder
      that it is mounted on.
    - `port`: the port on which the program answers HTTP without flags; 0 for engines, which get flags.
    - `written`: folders that the program writes to, beside what flags name.
    - `scripts`: what stands between the entrypoint and the program, with the steps of the real script that can fail.
    """

    own: str
    programs: tuple[str, ...]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    python: str = ""
    user: str = "0:0"
    workdir: str = "/"
    path: str = DEFAULT_PATH
    variables: tuple[str, ...] = ()
    folders: Mapping[str, int] = field(default_factory=dict)
    port: int = 0
    written: tuple[str, ...] = ()
    scripts: Mapping[str, str] = field(default_factory=dict)


def _debian(own: str, python: str = "", *more: str, **fields: object) -> Layout:
    programs = (*DEBIAN, own, *more, *((python,) if python else ()))
    return Layout(own, programs, python=python, **fields)  # type: ignore[arg-type]


GRAFANA = "/usr/share/grafana"
SGLANG = "/sgl-workspace/sglang/python"
VLLM = ("vllm", "serve")
# by the beginning of the image's name; the longest that matches counts
LAYOUTS = {
    "vllm/vllm-openai:": _debian(
        "/usr/local/bin/vllm", "/usr/bin/python3", entrypoint=VLLM, workdir="/vllm-workspace",
        folders={"/home/vllm/.cache": 2000},
    ),
    "vllm/vllm-openai-rocm:": _debian(
        "/usr/local/bin/vllm", "/usr/bin/python3", entrypoint=VLLM, workdir="/app",
    ),
    "vllm/vllm-openai-cpu:": _debian(
        "/opt/venv/bin/vllm", "/opt/venv/bin/python3", entrypoint=VLLM, workdir="/vllm-workspace", path=VENV,
    ),
    "ghcr.io/ggml-org/llama.cpp:server": _debian(
        "/app/llama-server", "", "/usr/bin/curl", entrypoint=("/app/llama-server",), workdir="/app",
    ),
    # stackgen's own image; the others that stackgen builds are run as they are
    "stackgen/fastchat:": _debian(
        "/opt/stackgen/launch.py", "/opt/venv/bin/python3", entrypoint=("python3", "/opt/stackgen/launch.py"),
        workdir="/home/fastchat", path=VENV,
    ),
    # the launcher imports the program; the real package is found through its editable installation
    "lmsysorg/sglang:": _debian(
        f"{SGLANG}/sglang/cli/main.py", "/usr/bin/python3", workdir="/sgl-workspace/sglang",
        variables=(f"PYTHONPATH={SGLANG}",),
    ),
    "haproxy:": _debian(
        "/usr/local/sbin/haproxy", "", "/usr/local/bin/docker-entrypoint.sh", entrypoint=("docker-entrypoint.sh",),
        workdir="/var/lib/haproxy", user="99:99", folders={"/var/lib/haproxy": 99},
    ),
    "prom/prometheus:": Layout(
        "/bin/prometheus", (*BUSYBOX, "/bin/prometheus", "/bin/promtool"), entrypoint=("/bin/prometheus",),
        command=("--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"),
        user="65534:65534", workdir="/prometheus", folders={"/prometheus": 65534, "/etc/prometheus": 65534}, port=9090,
    ),
    "grafana/grafana:": Layout(
        f"{GRAFANA}/bin/grafana", (*BUSYBOX, f"{GRAFANA}/bin/grafana", "/bin/bash", "/usr/bin/curl", "/run.sh"),
        entrypoint=("/run.sh",), user="472:0", workdir=GRAFANA, path=f"{GRAFANA}/bin:{DEFAULT_PATH}",
        variables=(
            "GF_PATHS_CONFIG=/etc/grafana/grafana.ini", "GF_PATHS_DATA=/var/lib/grafana", f"GF_PATHS_HOME={GRAFANA}",
            "GF_PATHS_LOGS=/var/log/grafana", "GF_PATHS_PLUGINS=/var/lib/grafana/plugins",
            "GF_PATHS_PROVISIONING=/etc/grafana/provisioning",
        ),
        folders={"/var/lib/grafana": 472, "/var/lib/grafana/plugins": 472, "/var/log/grafana": 472,
                 "/etc/grafana/provisioning": 472},
        port=3000, written=("/var/lib/grafana", "/var/lib/grafana/plugins", "/tmp"),
        scripts={"/run.sh": '#!/bin/sh\nset -e\n[ -w "$GF_PATHS_DATA" ]\n[ -d "$GF_PATHS_PLUGINS" ] || '
                 'mkdir "$GF_PATHS_PLUGINS"\nexec grafana server --homepath="$GF_PATHS_HOME" "$@"\n'},
    ),
    # no cat, no HTTP client: only what the Dockerfile copies
    "nvcr.io/nvidia/k8s/dcgm-exporter:": Layout(
        "/usr/bin/dcgm-exporter", ("/usr/bin/dcgm-exporter", "/usr/bin/dcgm-exporter-entrypoint.sh", "/bin/sh",
                                   "/usr/bin/sh", "/usr/bin/env", "/usr/bin/bash"),
        entrypoint=("/usr/bin/dcgm-exporter-entrypoint.sh",), port=9400, written=("/tmp", "/run", "/var/log"),
        scripts={"/usr/bin/dcgm-exporter-entrypoint.sh": '#!/usr/bin/env bash\nexec /usr/bin/dcgm-exporter "$@"\n'},
    ),
    "ghcr.io/open-webui/open-webui:": _debian(
        "/app/backend/server.py", "/usr/local/bin/python3", "/usr/bin/curl", "/usr/bin/jq",
        command=("bash", "start.sh"), workdir="/app/backend", port=8080,
        folders={"/app/backend/data": 0, "/app/backend/open_webui/static": 0, "/root/.cache": 0},
        written=("/app/backend/data", "/app/backend/open_webui/static", "/root/.cache", "/tmp"),
        scripts={"/app/backend/start.sh": '#!/usr/bin/env bash\n[ -n "$WEBUI_SECRET_KEY" ]\n'
                 'exec python3 server.py "$@"\n'},
    ),
}  # fmt: skip


def layout_of(image: str) -> Layout | None:
    """The layout of `image` (`name:tag`), or None for an image that stackgen builds, or that is unknown."""
    found = [prefix for prefix in LAYOUTS if image.startswith(prefix)]
    return LAYOUTS[max(found, key=len)] if found else None
