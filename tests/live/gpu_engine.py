"""A second Docker engine for tests, with stub GPUs on a machine that has none.

`GpuEngine` starts `dockerd` in its own network, mount and PID namespaces. Its bridges, firewall rules and published
ports are invisible to the host, and when its first process exits, so do all others. A stub of NVIDIA's hook makes
dockerd register its real `nvidia` driver (moby: daemon/nvidia_linux.go). Device requests are therefore handled as on a
GPU machine, up to the point where the hook would open the driver.

All images in it are fake (see `gpu_image`).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from tests.live.gpu_compose import Compose
from tests.live.gpu_image import FAKE_IMAGE, fake_image

__all__ = ["CDI_KIND", "FAKE_IMAGE", "GpuEngine", "gpu_uuid", "reason_to_skip"]

CDI_KIND = "example.com/gpu"
START_TIMEOUT = 30  # seconds; measured: 0.3
STOP_TIMEOUT = 20  # seconds; measured: 0.5
HOST_PROGRAMS = ("dockerd", "containerd", "docker", "unshare", "nsenter", "ip", "mount", "mountpoint", "mknod", "ldd")

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


def gpu_uuid(index: int) -> str:
    """The UUID of GPU `index`, in the form of `nvidia-smi -L`."""
    return f"GPU-aaaaaaaa-bbbb-cccc-dddd-{index:012d}"


def reason_to_skip() -> str:
    """Returns why this machine can't run such an engine, or "" if it can."""
    if os.geteuid() != 0:
        return "a second Docker engine needs root"
    absent = [name for name in HOST_PROGRAMS if not shutil.which(name)]
    return f"not installed: {', '.join(absent)}" if absent else ""


class _Connection(http.client.HTTPConnection):
    """HTTP over the engine's socket."""

    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


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
            self.docker("import", "--change", 'ENTRYPOINT ["vllm", "serve"]', "-", FAKE_IMAGE, stdin=fake_image())
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

    def api(self, method: str, path: str, check: bool = True, **query: Any) -> Any:
        """Calls the engine's API, which takes milliseconds, and returns the parsed response; None if it has no body."""
        text = urlencode({key: json.dumps(value) if isinstance(value, dict) else value for key, value in query.items()})
        end = time.monotonic() + 20
        while True:
            connection = _Connection(f"{self.root}/docker.sock")
            try:
                connection.request(method, f"{path}?{text}")
                answer = connection.getresponse()
                body = answer.read()
            finally:
                connection.close()
            # a volume is in use until the engine has finished removing its container
            if not (method == "DELETE" and answer.status == 409 and time.monotonic() < end):
                break
            time.sleep(0.2)
        assert not check or answer.status < 400, f"{method} {path}: {answer.status} {body.decode()}"
        return json.loads(body) if body else None

    @property
    def network(self) -> str:
        """The file of the engine's network namespace."""
        assert self._process
        return f"/proc/{self._process.pid}/ns/net"

    def inside(self, *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a program of the host in the engine's network, where the published ports are."""
        return subprocess.run(
            ["nsenter", f"--net={self.network}", *args],
            capture_output=True, text=True, timeout=timeout, env=self.environment(), check=False,
        )  # fmt: skip

    def shut_down(self) -> None:
        """Stops dockerd with SIGTERM, as a machine that shuts down does, and waits until it has ended."""
        daemon = next(
            int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline")
            if path.read_bytes().split(b"\0")[:3] == [b"dockerd", b"--config-file", f"{self.root}/daemon.json".encode()]
        )  # fmt: skip
        end = time.monotonic() + START_TIMEOUT
        os.kill(daemon, signal.SIGTERM)
        while Path(f"/proc/{daemon}/exe").exists():
            assert time.monotonic() < end, f"dockerd still runs {START_TIMEOUT} s after SIGTERM"
            time.sleep(0.1)

    def hook_calls(self) -> list[dict[str, Any]]:
        """Returns the hook's calls, oldest first: container, args, visible, capabilities."""
        lines = self._calls.read_text("utf-8").splitlines() if self._calls.exists() else []
        return [json.loads(line) for line in lines]

    def container_environment(self, container: str) -> dict[str, str]:
        """Returns the environment of a container's first process: `docker exec env` lacks what device requests add."""
        assert self._process
        pid = self.api("GET", f"/containers/{container}/json")["State"]["Pid"]
        # the mount namespace has the /proc of the PID namespace
        enter = ["nsenter", f"--mount=/proc/{self._process.pid}/ns/mnt", "cat", f"/proc/{pid}/environ"]
        end = time.monotonic() + 20
        while True:
            text = subprocess.run(enter, capture_output=True, text=True, check=True, timeout=60).stdout
            found = dict(pair.partition("=")[::2] for pair in text.split("\0") if pair)
            # for a moment after the start, it is still runc or its shim with an environment of its own
            if "HOSTNAME" in found and not any(name.startswith("_LIBCONTAINER") for name in found):
                return found
            assert time.monotonic() < end, found
            time.sleep(0.1)

    @contextlib.contextmanager
    def project(self, compose_file: Path, name: str) -> Iterator[Compose]:
        """The Compose project of `compose_file` with fake images. The project is removed at the end."""
        compose = Compose(self, compose_file, name)
        for image, platform in compose.images().items():
            if platform in ("", self.platform):
                repository, _, tag = image.rpartition(":")
                self.api("POST", f"/images/{FAKE_IMAGE}/tag", repo=repository, tag=tag)
            else:  # for a platform that can't run here, an empty image is enough for `create`
                self.docker("import", "--platform", platform, "-", image, stdin=bytes(10240))
        try:
            yield compose
        finally:
            compose.remove()

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
                containers = [self.api("GET", f"/containers/{one}/json") for one in compose.containers()]
        return {item["Config"]["Labels"]["com.docker.compose.service"]: item["HostConfig"] for item in containers}

    def device_requests(self, compose_file: Path, project: str) -> dict[str, list[dict[str, Any]]]:
        """Returns the `DeviceRequests` that the engine received by service; an empty list for none."""
        configs = self.host_configs(compose_file, project)
        return {service: config["DeviceRequests"] or [] for service, config in configs.items()}
