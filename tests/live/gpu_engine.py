"""A second Docker engine for tests, with stub GPUs on a machine that has none.

`GpuEngine` starts `dockerd` in its own network, mount and PID namespaces. Its bridges, firewall rules and published
ports are invisible to the host, and when its first process exits, so do all others. A stub of NVIDIA's hook makes
dockerd register its real `nvidia` driver (moby: daemon/nvidia_linux.go). Device requests are therefore handled as on a
GPU machine, up to the point where the hook would open the driver.

All images in it are fake: this machine's Python and shell, and a `vllm` that answers HTTP and computes nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["CDI_KIND", "FAKE_IMAGE", "GpuEngine", "gpu_uuid", "reason_to_skip"]

FAKE_IMAGE = "stackgen-test/fake:1"
CDI_KIND = "example.com/gpu"
START_TIMEOUT = 30  # seconds; measured: 0.3
STOP_TIMEOUT = 20  # seconds; measured: 0.5
HOST_PROGRAMS = ("dockerd", "containerd", "docker", "unshare", "nsenter", "ip", "mount", "mountpoint", "mknod", "ldd")
IMAGE_PROGRAMS = ("sh", "bash", "cat", "cp", "cut", "date", "env", "grep", "head", "id", "ls", "mkdir", "mktemp", "mv",
                  "rm", "sed", "sleep", "stat", "tail", "touch", "tr", "wc")  # fmt: skip

# The first process of the namespaces. It stops everything when its standard input closes: the test has ended, or died.
LAUNCH = r"""
set -eu
root=$1 cgroup=$2
ip link set lo up
# hide the host's sockets, or dockerd would use the containerd of the host's engine
for folder in /run/docker /run/containerd; do mkdir -p "$folder"; mount -t tmpfs stackgen "$folder"; done
# our own /dev, so that AMD's device files exist where Compose files name them (226 is the DRM major)
mkdir "$root/dev"
mount -t tmpfs -o mode=755 stackgen "$root/dev"
cp -ax /dev/. "$root/dev/"
for folder in pts shm mqueue; do
  if mountpoint -q "/dev/$folder"; then mount --bind "/dev/$folder" "$root/dev/$folder"; fi
done
mkdir -p "$root/dev/dri"
[ -e "$root/dev/kfd" ] || mknod "$root/dev/kfd" c 226 127
[ -e "$root/dev/dri/renderD128" ] || mknod "$root/dev/dri/renderD128" c 226 128
mount --move "$root/dev" /dev
PATH=$root/bin:$PATH dockerd --config-file "$root/daemon.json" >"$root/dockerd.log" 2>&1 &
daemon=$!
cat >/dev/null
(sleep 10; kill -9 $daemon) 2>/dev/null &
docker -H "unix://$root/docker.sock" ps -aq | xargs -r docker -H "unix://$root/docker.sock" rm -fv >/dev/null || :
kill $daemon || :
wait $daemon || :
find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2>/dev/null || :
rm -rf "$root"
"""

# Instead of NVIDIA's hook. The real one reads the same two files and asks the driver; this one has a list of GPUs.
HOOK = r"""#!{python} -IS
import json, pathlib, sys
state = json.load(sys.stdin)
config = json.loads((pathlib.Path(state["bundle"]) / "config.json").read_text())
env = dict(pair.partition("=")[::2] for pair in config["process"]["env"])
visible = env.get("NVIDIA_VISIBLE_DEVICES", "")
call = dict(container=state["id"], args=sys.argv[1:], visible=visible,
            capabilities=env.get("NVIDIA_DRIVER_CAPABILITIES", ""))
with open({calls!r}, "a") as file:
    file.write(json.dumps(call) + "\n")
for name in visible.split(","):
    if name not in {known!r} and visible not in ("all", "none", "void", ""):
        sys.exit(f"Auto-detected mode as 'legacy'\nnvidia-container-cli: device error: {{name}}: unknown device")
"""

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


def gpu_uuid(index: int) -> str:
    """The UUID of GPU `index`, in the form of `nvidia-smi -L`."""
    return f"GPU-aaaaaaaa-bbbb-cccc-dddd-{index:012d}"


def reason_to_skip() -> str:
    """Returns why this machine can't run such an engine, or "" if it can."""
    if os.geteuid() != 0:
        return "a second Docker engine needs root"
    absent = [name for name in HOST_PROGRAMS if not shutil.which(name)]
    return f"not installed: {', '.join(absent)}" if absent else ""


def _libraries(files: list[str]) -> set[str]:
    """Returns the shared libraries that `files` are linked with, including the loader."""
    text = subprocess.run(["ldd", *files], capture_output=True, text=True, check=False, timeout=30).stdout
    return set(re.findall(r"(/\S+) \(0x", text))


def _image() -> bytes:
    """Returns a root file system (tar) with this machine's Python, shell and a few programs: 1 second, no download."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    # the real file: through a virtual environment's link, Python would look for its libraries next to the link
    programs = {"usr/bin/python3": os.path.realpath(sys.executable)}
    programs |= {f"usr/bin/{name}": os.path.realpath(path) for name in IMAGE_PROGRAMS if (path := shutil.which(name))}
    # the gateway's start script needs bash, which the official HAProxy image has
    programs |= {f"bin/{name}": programs[f"usr/bin/{name}"] for name in ("sh", "bash")}
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


class GpuEngine:
    """A second Docker engine with `gpus` stub GPUs (indices from 0, UUIDs from `gpu_uuid`). A context manager.

    `config` is merged into its daemon.json. On entry the engine is running and has the image `FAKE_IMAGE`. On exit all
    of its processes have ended and its folder is gone. Raises RuntimeError with the end of its log if it doesn't start.
    """

    def __init__(self, gpus: int = 8, config: Mapping[str, Any] | None = None) -> None:
        self.gpus = gpus
        self._config = dict(config or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> GpuEngine:
        # a short path, because the path of a socket has at most 107 bytes
        self.root = Path(tempfile.mkdtemp(prefix="sg-gpu-"))
        self.host = f"unix://{self.root}/docker.sock"
        self._calls = self.root / "hook.jsonl"
        self._write()
        command = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child", "--net", "--mount",
                 "sh", "-c", LAUNCH, "launch", str(self.root), self.root.name]  # fmt: skip
        with (self.root / "launch.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            self._wait()
            server = self.docker("version", "--format", "{{.Server.Os}}/{{.Server.Arch}}")
            self.platform = server.stdout.strip()
            self.docker("import", "--change", 'ENTRYPOINT ["vllm", "serve"]', "-", FAKE_IMAGE, stdin=_image())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process and process.stdin:
            process.stdin.close()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()  # with --kill-child, this kills the whole PID namespace
                process.wait(STOP_TIMEOUT)
        shutil.rmtree(self.root, ignore_errors=True)

    def _write(self) -> None:
        known = {str(index) for index in range(self.gpus)} | {gpu_uuid(index) for index in range(self.gpus)}
        hook = self.root / "bin" / "nvidia-container-runtime-hook"
        hook.parent.mkdir()
        python = os.path.realpath(sys.executable)
        hook.write_text(HOOK.format(python=python, calls=str(self._calls), known=known), encoding="utf-8")
        hook.chmod(0o755)
        self.write_cdi(CDI_KIND, {str(index): {"EXAMPLE_GPU": str(index)} for index in range(self.gpus)})
        every = [*map(str, range(self.gpus)), *map(gpu_uuid, range(self.gpus)), "all"]
        self.write_cdi("nvidia.com/gpu", {name: {"NVIDIA_CDI": name} for name in every})
        config = {
            "data-root": f"{self.root}/data", "exec-root": f"{self.root}/exec", "pidfile": f"{self.root}/dockerd.pid",
            "hosts": [self.host], "exec-opts": ["native.cgroupdriver=cgroupfs"], "cgroup-parent": f"/{self.root.name}",
            # on by default since engine 28.3; older ones need it set
            "features": {"cdi": True}, "cdi-spec-dirs": [f"{self.root}/cdi"], **self._config,
        }  # fmt: skip
        (self.root / "daemon.json").write_text(json.dumps(config), encoding="utf-8")

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while self.docker("version", check=False).returncode:
            if time.monotonic() > deadline or (self._process and self._process.poll() is not None):
                logs = [self.root / name for name in ("launch.log", "dockerd.log")]
                tails = [log.read_text("utf-8", "replace")[-1500:] for log in logs if log.exists()]
                raise RuntimeError("the second Docker engine did not start:\n" + "\n".join(tails))
            time.sleep(0.1)

    def write_cdi(self, kind: str, devices: Mapping[str, Mapping[str, str]]) -> None:
        """Writes the CDI spec of `kind` (`vendor.com/class`). `devices`: device name to the variables that it adds.

        Each device also adds a device file, `/dev/CLASS-NAME`. dockerd watches the folder, so this works while it runs.
        Format: the CNCF's Container Device Interface specification, 0.6.
        """
        _, _, short = kind.partition("/")
        spec = {
            "cdiVersion": "0.6.0",
            "kind": kind,
            "devices": [
                {"name": name, "containerEdits": {
                    "env": [f"{key}={value}" for key, value in variables.items()],
                    "deviceNodes": [{"path": f"/dev/{short}-{name}", "hostPath": "/dev/null"}],
                }}
                for name, variables in devices.items()
            ],
        }  # fmt: skip
        folder = self.root / "cdi"
        folder.mkdir(exist_ok=True)
        # JSON is valid YAML, and needs no library
        (folder / f"{kind.replace('/', '-')}.yaml").write_text(json.dumps(spec), encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """Returns the environment variables with which Docker's clients, including stackgen, use this engine."""
        # the caller's own settings may select another engine or project
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DOCKER_", "COMPOSE_"))}
        return kept | {"DOCKER_HOST": self.host}

    def docker(
        self,
        *args: str,
        check: bool = True,
        stdin: bytes | None = None,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `docker ARGS` on this engine. With `check`, raises AssertionError with its stderr if it fails."""
        settings = self.environment() | dict(env or {})
        done = subprocess.run(
            ["docker", *args], input=stdin, capture_output=True, timeout=timeout, env=settings, check=False
        )
        out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        assert not check or done.returncode == 0, f"docker {' '.join(args)}: {err}"
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def inside(self, *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a program of the host in the engine's network, where the published ports are."""
        assert self._process
        return subprocess.run(
            ["nsenter", f"--net=/proc/{self._process.pid}/ns/net", *args],
            capture_output=True, text=True, timeout=timeout, env=self.environment(), check=False,
        )  # fmt: skip

    def hook_calls(self) -> list[dict[str, Any]]:
        """Returns the hook's calls, oldest first: container, args, visible, capabilities."""
        lines = self._calls.read_text("utf-8").splitlines() if self._calls.exists() else []
        return [json.loads(line) for line in lines]

    def container_environment(self, container: str) -> dict[str, str]:
        """Returns the environment of a container's first process: `docker exec env` lacks what device requests add."""
        text = self.docker("exec", container, "cat", "/proc/1/environ").stdout
        return dict(pair.partition("=")[::2] for pair in text.split("\0") if pair)

    @contextlib.contextmanager
    def project(self, compose_file: Path, name: str) -> Iterator[Compose]:
        """The Compose project of `compose_file` with fake images. Everything is removed at the end."""
        compose = Compose(self, compose_file, name)
        images = compose.images()
        for image, platform in images.items():
            if platform in ("", self.platform):
                self.docker("tag", FAKE_IMAGE, image)
            else:  # for a platform that can't run here, an empty image is enough for `create`
                self.docker("import", "--platform", platform, "-", image, stdin=bytes(10240))
        try:
            yield compose
        finally:
            compose("down", "--volumes", "--remove-orphans", "--timeout", "0", check=False)
            if images:
                self.docker("rmi", *images, check=False)

    def host_configs(self, compose_file: Path, project: str) -> dict[str, dict[str, Any]]:
        """Returns the engine's `HostConfig` by service, from `docker compose create`: nothing is started or pulled.

        Works on a copy of the file's folder, which keeps files that Compose or the engine creates out of the original.
        """
        with tempfile.TemporaryDirectory(prefix="sg-gpu-") as copy:
            shutil.copytree(compose_file.parent, copy, dirs_exist_ok=True)
            with self.project(Path(copy) / compose_file.name, project) as compose:
                for source in compose.missing_binds():
                    # an absolute path of the author's machine: use a folder in the copy instead
                    here = source if source.is_relative_to(copy) else Path(f"{copy}{source}")
                    text = compose.file.read_text("utf-8").replace(f"source: {source}\n", f"source: {here}\n")
                    compose.file.write_text(text, encoding="utf-8")
                    here.mkdir(parents=True, exist_ok=True)
                compose("create", "--no-build", "--pull", "never")
                containers = json.loads(self.docker("inspect", *compose("ps", "-aq").stdout.split()).stdout)
        return {item["Config"]["Labels"]["com.docker.compose.service"]: item["HostConfig"] for item in containers}

    def device_requests(self, compose_file: Path, project: str) -> dict[str, list[dict[str, Any]]]:
        """Returns the `DeviceRequests` that the engine received by service; an empty list for none."""
        configs = self.host_configs(compose_file, project)
        return {service: config["DeviceRequests"] or [] for service, config in configs.items()}


class Compose:
    """`docker compose` for a file and project on a `GpuEngine`. Sets the variables that the file requires."""

    def __init__(self, engine: GpuEngine, file: Path, name: str) -> None:
        self.engine, self.file, self.name = engine, file, name
        text = file.read_text("utf-8")
        # `${NAME:?why}` anywhere, and secrets that come from the environment
        required = re.findall(r"(?<!\$)\$\{(\w+):?\?", text)
        required += re.findall(r"^\s+environment: \"?(\w+)\"?\s*(?:#.*)?$", text, re.M)
        self.env = dict.fromkeys(required, "sk-fake")

    def __call__(self, *args: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs `docker compose ARGS` with all profiles."""
        start = ("compose", "-f", str(self.file), "-p", self.name, "--profile", "*")
        return self.engine.docker(*start, *args, check=check, timeout=timeout, env=self.env)

    def up(self, wait: bool = False, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Starts all services. `wait`: until they are healthy, which takes a health check's `start_interval`."""
        until = ("--wait", "--wait-timeout", "60") if wait else ()
        return self("up", "-d", "--no-build", "--pull", "never", *until, check=check)

    def services(self) -> dict[str, dict[str, Any]]:
        """Returns the services as Compose parses them."""
        services: dict[str, dict[str, Any]] = json.loads(self("config", "--format", "json").stdout)["services"]
        return services

    def images(self) -> dict[str, str]:
        """Returns the platform by image of the services; "" means the engine's own platform."""
        wanted = {service["image"]: service.get("platform", "") for service in self.services().values()}
        wanted.pop(FAKE_IMAGE, None)
        return wanted

    def missing_binds(self) -> list[Path]:
        """Returns the host paths that services mount and that don't exist yet."""
        mounts = [mount for service in self.services().values() for mount in service.get("volumes", ())]
        paths = {Path(mount["source"]) for mount in mounts if mount["type"] == "bind"}
        return sorted(path for path in paths if not path.exists())

    def container(self, service: str) -> str:
        """Returns the id of the service's container, started or not."""
        return self("ps", "-aq", service).stdout.strip()
