"""A fake Docker engine with Compose and a gateway: for faults and orders that take too long with a real one.

Containers are created from the compose.yaml on disk, so an incomplete rollback shows. The fake rejects what the real
ones reject: a GPU in use, a port in use, a router that reaches no replica, a certificate that is not mounted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import docker.errors
import pytest
import yaml

from stackgen.cli.commands import preflight
from stackgen.doctor.facts import Host
from stackgen.runtimes.compose import gateway, haproxy_api, haproxy_worker, volumes
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.compose.command import compose_command
from stackgen.runtimes.rollout import drift, rolling, steps

__all__ = ["World"]

PREFIX = "com.docker.compose."
ENGINES = ("vllm-", "fastchat-", "llamacpp-")


def config_hash(definition: dict[str, Any]) -> str:
    # Compose leaves these out of its hash as well
    hashed = {name: value for name, value in definition.items() if name not in ("build", "depends_on")}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


@dataclass
class Container:
    """One container; the gateway's container runs a fake HAProxy."""

    world: World
    id: str
    service: str
    definition: dict[str, Any]
    state: str = "created"
    files: dict[str, IO[bytes]] = field(default_factory=dict)
    servers: list[tuple[str, str]] = field(default_factory=list)
    drained: set[str] = field(default_factory=set)
    keys: dict[str, str] = field(default_factory=dict)
    metrics: str = ""
    started: float = 0.0
    pid: int = 0

    @property
    def labels(self) -> dict[str, str]:
        return {f"{PREFIX}project.working_dir": str(self.world.folder)}

    @property
    def networks(self) -> set[str]:
        return set(self.definition.get("networks") or ["default"])

    @property
    def gpus(self) -> set[str]:
        devices = self.definition.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        return {id for one in devices for id in one.get("device_ids", ())}

    @property
    def shares_gpus(self) -> bool:
        # without a limit, an engine takes the whole memory of its GPUs
        return "--gpu-memory-utilization" in self.definition.get("command", ())

    @property
    def ports(self) -> set[str]:
        return {port.rpartition(":")[0] for port in self.definition.get("ports", ())}

    @property
    def is_healthy(self) -> bool:
        router = self.service.startswith("router-")
        return self.state == "running" and (not router or any(self.reaches(one, "vllm-") for one in self.others()))

    @property
    def attrs(self) -> dict[str, Any]:
        requests = [{"DeviceIDs": sorted(self.gpus), "Count": 0}] if self.gpus else []
        return {
            "Id": self.id,
            "Image": self.definition["image"],
            "Config": {"Env": [], "StopTimeout": 60},
            "HostConfig": {"DeviceRequests": requests},
            "NetworkSettings": {"Ports": {}},
            "RestartCount": 0,
            "State": {
                "Status": self.state, "ExitCode": 0 if self.state == "running" else 1, "OOMKilled": False,
                "FinishedAt": "never", "StartedAt": "2026-01-01T00:00:00Z",
                "Health": {"Status": "healthy" if self.is_healthy else "starting"},
            },
        }  # fmt: skip

    def others(self) -> list[Container]:
        return [one for one in self.world.containers.values() if one is not self]

    def reaches(self, other: Container, prefix: str = "") -> bool:
        return other.service.startswith(prefix) and other.is_healthy and bool(self.networks & other.networks)

    def boot(self) -> None:
        """Starts the process: it runs, or exits because something is missing."""
        taken = (one for one in self.others() if one.state == "running" and not (self.shares_gpus and one.shares_gpus))
        gpu_in_use = any(self.gpus & one.gpus for one in taken)
        is_engine = self.service.startswith(ENGINES)
        fails = (is_engine and gpu_in_use) or self.world.is_broken(self.service, self.definition)
        self.state = "exited" if fails else "running"
        mounts = self.definition.get("volumes", ())
        sources = {one["target"]: self.world.folder / one["source"] for one in mounts if one["type"] == "bind"}
        open_file = self.world.handles.enter_context
        # an open file, because a mount holds the inode and not the name
        self.files = {target: open_file(path.open("rb")) for target, path in sources.items() if path.is_file()}
        if self.service == "gateway" and self.state == "running":
            self.load()

    def load(self) -> None:
        """Loads the configuration on disk. What was drained stays drained: the server state file carries that over."""
        text = (self.world.folder / "gateway" / "haproxy.cfg").read_text()
        if not self.is_valid(text):
            self.state = "exited"
            return
        backend, self.servers = "", []
        for line in text.splitlines():
            if match := re.match(r"backend (\S+)", line):
                backend = match[1]
            elif match := re.match(r" +server (\S+)", line):
                self.servers.append((backend, match[1]))
        path = self.world.folder / "gateway" / "keys.map"
        lines = path.read_text().splitlines() if path.exists() else []
        self.keys = dict(line.split() for line in lines if not line.startswith("#"))
        self.started, self.pid = time.time(), self.pid + 1

    def is_valid(self, text: str) -> bool:
        return "ssl crt /tls/site.crt" not in text or "/tls/site.crt" in self.files

    # the methods of the Docker SDK's containers

    def exec_run(self, args: list[str]) -> tuple[int, bytes]:
        if self.state != "running":
            raise docker.errors.APIError(f"container {self.id} is not running")
        output, code = "", 0
        if args[:2] == ["bash", "-c"] and "cat /proc" in args[2]:
            output = "haproxy haproxy haproxy haproxy"
        elif args == ["bash", "-c", "kill -USR2 1"]:
            self.world.record("reload")
            self.load()
        elif args[:2] == ["bash", "-c"] and "8405" in args[2]:
            output = self.metrics
        elif args[:2] == ["bash", "-c"]:
            output = self.runtime_api(args[-1]) if "8406" in args[2] else ""
        elif args[:2] == ["sh", "-c"] and "haproxy -c" in args[2]:
            code = 0 if self.is_valid((self.world.folder / "gateway" / "haproxy.cfg").read_text()) else 1
            output = "[ALERT] unable to stat SSL certificate" if code else ""
        elif args[0] == "sha256sum":
            handle = self.files[args[1]]
            handle.seek(0)
            output = f"{hashlib.sha256(handle.read()).hexdigest()}  {args[1]}"
        return code, output.encode()

    def runtime_api(self, command: str) -> str:
        if command == "show info":
            return f"Name: HAProxy\nPid: {self.pid}\nStart_time_sec: {self.started}\n"
        if match := re.match(r"set server (\S+)/(\S+) state (\w+)", command):
            self.world.record(f"{match[3]} {match[2]}", once=True)
            (self.drained.add if match[3] == "drain" else self.drained.discard)(match[2])
            return "\n"
        if command.startswith("show map"):
            return "\n".join(f"0x1 {key} {value}" for key, value in self.keys.items()) + "\n"
        if changes := re.findall(r"(add|del) map \S+ (\w+) ?([^;]*)", command):
            for change, key, value in changes:
                self.world.record(f"{change} key", once=True)
                if change == "add":
                    self.keys[key] = value
                else:
                    del self.keys[key]
            return "\n"
        if command == "show servers state":
            # version and header come first; 8 is a drain by the administrator, also of a server that is down
            states = [f"1 {backend} 1 {name} - 2 {8 * (name in self.drained)}" for backend, name in self.servers]
            return "\n".join(["1", "# be_id …", *states]) + "\n"
        rows = ["# pxname,svname,scur,qcur,status"]
        for backend, name in self.servers:
            up = any(one.service == name and self.reaches(one) for one in self.others())
            rows.append(f"{backend},{name},0,0,{('DRAIN' if name in self.drained else 'UP') if up else 'DOWN'}")
        return "\n".join(rows) + "\n"

    def stop(self, timeout: int) -> None:
        if self.state == "running":
            self.world.record(f"stop {self.service}")
            self.state = "exited"

    def start(self) -> None:
        self.world.record(f"restart stopped {self.service}")
        self.drained.clear()
        self.boot()

    def restart(self, timeout: int) -> None:
        self.world.record(f"restart {self.service}")
        self.drained.clear()
        self.boot()

    def remove(self, v: bool) -> None:
        self.world.record(f"remove {self.service}")
        self.state = "removed"
        del self.world.containers[self.service]


class World:
    """The stack `n` in `folder`. `actions` records what was done; `is_broken` decides which services fail to start."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.containers: dict[str, Container] = {}
        self.handles = ExitStack()
        self.actions: list[str] = []
        self.is_broken: Callable[[str, dict[str, Any]], bool] = lambda service, definition: False
        self._ids, self._now = itertools.count(1), 0.0
        api = SimpleNamespace(
            containers=lambda all=True, filters=None: [self._row(one) for one in self.containers.values()],
            inspect_container=lambda id: self._get(id).attrs,
            images=lambda: [],
            volumes=lambda: {"Volumes": []},
            logs=lambda id, **options: b"2026-01-01T00:00:41Z Application startup complete.\n",
        )
        containers = SimpleNamespace(get=self._get, list=lambda filters: self._running_containers(filters["label"][-1]))
        client = SimpleNamespace(ping=lambda: True, api=api, containers=containers, close=lambda: None)
        clock = SimpleNamespace(sleep=self._sleep, monotonic=lambda: self._now)
        monkeypatch.setattr("docker.from_env", lambda **options: client)
        for module in (gateway, haproxy_api, haproxy_worker, compose, steps):
            monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(steps, "subprocess", SimpleNamespace(Popen=self._compose))
        monkeypatch.setattr(drift, "_config_hashes", lambda folder, text, env=None: self._hashes(text))
        monkeypatch.setattr(rolling, "explain_failure", lambda *args: None)
        monkeypatch.setattr(preflight, "collect_host_facts", lambda *args: Host())
        monkeypatch.setattr(volumes, "_docker", lambda *args, **options: "")

    def up(self) -> None:
        """Starts what is rendered, on a clean machine."""
        self.containers.clear()
        assert self._up([]) == ""
        self.actions.clear()

    def record(self, action: str, once: bool = False) -> None:
        # `set server` comes once for each backend
        if not (once and self.actions[-1:] == [action]):
            self.actions.append(action)

    def running(self) -> dict[str, str]:
        """The hash of the definition of each running service."""
        return {name: config_hash(one.definition) for name, one in self.containers.items() if one.state == "running"}

    def happened_in_order(self, *actions: str) -> bool:
        """Whether these actions were taken in this order, possibly with others in between."""
        rest = iter(self.actions)
        return all(action in rest for action in actions)

    def _compose(self, args: list[str], stdout: IO[str], **_: Any) -> Any:
        assert args[:4] == compose_command(self.folder)[:4]
        names = args[args.index("--no-deps") + 1 :]
        self.record(f"up {' '.join(names)}")
        problem = self._up(names)
        stdout.write(problem)
        code = 1 if problem else 0
        return SimpleNamespace(
            returncode=code, wait=lambda timeout=None: code, poll=lambda: code, terminate=lambda: None
        )

    def _up(self, names: list[str]) -> str:
        services = yaml.safe_load((self.folder / "compose.yaml").read_text())["services"]
        for name in names or list(services):
            old, definition = self.containers.get(name), services[name]
            if old and old.state == "running" and config_hash(old.definition) == config_hash(definition):
                continue
            if old:
                old.state = "removed"
            new = Container(self, f"id{next(self._ids)}", name, definition)
            self.containers[name] = new
            if any(new.ports & one.ports for one in new.others() if one.state == "running"):
                return "Bind for 127.0.0.1:8000 failed: port is already allocated"
            new.boot()
        return ""

    def _hashes(self, text: str) -> dict[str, str]:
        return {name: config_hash(one) for name, one in yaml.safe_load(text)["services"].items()}

    def _row(self, one: Container) -> dict[str, Any]:
        labels = {f"{PREFIX}service": one.service, f"{PREFIX}config-hash": config_hash(one.definition)}
        return {"Id": one.id, "Labels": labels}

    def _get(self, id: str) -> Container:
        container = next((one for one in self.containers.values() if one.id == id), None)
        if container is None:
            raise docker.errors.NotFound(f"No such container: {id}")
        return container

    def _running_containers(self, label: str) -> list[Container]:
        name = label.rpartition("=")[2]
        return [one for one in self.containers.values() if one.service == name and one.state == "running"]

    def _sleep(self, seconds: float) -> None:
        self._now += seconds
