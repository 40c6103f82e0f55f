"""A made-up Docker engine with Compose and a gateway, for faults and orders that a real one is too slow to show.

Containers come from the compose.yaml on disk, so a way back that is none shows. What the real ones refuse is refused:
a GPU that is held, a port that is taken, a router that reaches no replica, a certificate that is not mounted.
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

from stackgen.runtimes.compose import gateway
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.compose.command import compose_command
from stackgen.runtimes.observation import evidence
from stackgen.runtimes.rollout import drift, steps

__all__ = ["World"]

PREFIX = "com.docker.compose."
ENGINES = ("vllm-", "fastchat-", "llamacpp-")


def digest(definition: dict[str, Any]) -> str:
    said = {name: value for name, value in definition.items() if name not in ("build", "depends_on")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


@dataclass
class Container:
    """One container; the gateway's runs a made-up HAProxy."""

    world: World
    id: str
    service: str
    definition: dict[str, Any]
    state: str = "created"
    files: dict[str, IO[bytes]] = field(default_factory=dict)
    servers: list[tuple[str, str]] = field(default_factory=list)
    drained: set[str] = field(default_factory=set)
    began: float = 0.0
    pid: int = 0

    @property
    def networks(self) -> set[str]:
        return set(self.definition.get("networks") or ["default"])

    @property
    def gpus(self) -> set[str]:
        devices = self.definition.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        return {id for one in devices for id in one.get("device_ids", ())}

    @property
    def ports(self) -> set[str]:
        return {port.rpartition(":")[0] for port in self.definition.get("ports", ())}

    @property
    def healthy(self) -> bool:
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
                "Health": {"Status": "healthy" if self.healthy else "starting"},
            },
        }  # fmt: skip

    def others(self) -> list[Container]:
        return [one for one in self.world.containers.values() if one is not self]

    def reaches(self, other: Container, prefix: str = "") -> bool:
        return other.service.startswith(prefix) and other.healthy and bool(self.networks & other.networks)

    def begin(self) -> None:
        """Starts it: it runs then, or has ended because of what it lacks."""
        held = any(self.gpus & one.gpus for one in self.others() if one.state == "running")
        engine = self.service.startswith(ENGINES)
        self.state = "exited" if (engine and held) or self.world.broken(self.service, self.definition) else "running"
        mounts = self.definition.get("volumes", ())
        sources = {one["target"]: self.world.folder / one["source"] for one in mounts if one["type"] == "bind"}
        opened = self.world.handles.enter_context
        # the file itself, as a mount holds it, and not its name
        self.files = {target: opened(path.open("rb")) for target, path in sources.items() if path.is_file()}
        if self.service == "gateway" and self.state == "running":
            self.load()

    def load(self) -> None:
        """The configuration on disk; a worker that is new knows nothing of what was drained after a start."""
        text = (self.world.folder / "gateway" / "haproxy.cfg").read_text()
        if not self.valid(text):
            self.state = "exited"
            return
        backend, self.servers = "", []
        for line in text.splitlines():
            if found := re.match(r"backend (\S+)", line):
                backend = found[1]
            elif found := re.match(r" +server (\S+)", line):
                self.servers.append((backend, found[1]))
        self.began, self.pid = time.time(), self.pid + 1

    def valid(self, text: str) -> bool:
        return "ssl crt /tls/site.crt" not in text or "/tls/site.crt" in self.files

    # what the Docker SDK's containers do

    def exec_run(self, words: list[str]) -> tuple[int, bytes]:
        if self.state != "running":
            raise docker.errors.APIError(f"container {self.id} is not running")
        said, code = "", 0
        if words[:2] == ["bash", "-c"] and "cat /proc" in words[2]:
            said = "haproxy haproxy haproxy haproxy"
        elif words == ["bash", "-c", "kill -USR2 1"]:
            self.world.say("reload")
            self.load()
        elif words[:2] == ["bash", "-c"]:
            said = self.admin(words[-1])
        elif words[:2] == ["sh", "-c"] and "haproxy -c" in words[2]:
            code = 0 if self.valid((self.world.folder / "gateway" / "haproxy.cfg").read_text()) else 1
            said = "[ALERT] unable to stat SSL certificate" if code else ""
        elif words[0] == "sha256sum":
            handle = self.files[words[1]]
            handle.seek(0)
            said = f"{hashlib.sha256(handle.read()).hexdigest()}  {words[1]}"
        return code, said.encode()

    def admin(self, command: str) -> str:
        if command == "show info":
            return f"Pid: {self.pid}\nStart_time_sec: {self.began}\n"
        if found := re.match(r"set server (\S+)/(\S+) state (\w+)", command):
            self.world.say(f"{found[3]} {found[2]}", once=True)
            (self.drained.add if found[3] == "drain" else self.drained.discard)(found[2])
            return "\n"
        rows = ["# pxname,svname,scur,qcur,status"]
        for backend, name in self.servers:
            up = any(one.service == name and self.reaches(one) for one in self.others())
            rows.append(f"{backend},{name},0,0,{'DRAIN' if name in self.drained else 'UP' if up else 'DOWN'}")
        return "\n".join(rows) + "\n"

    def stop(self, timeout: int) -> None:
        if self.state == "running":
            self.world.say(f"stop {self.service}")
            self.state = "exited"

    def start(self) -> None:
        self.world.say(f"start again {self.service}")
        self.drained.clear()
        self.begin()

    def restart(self, timeout: int) -> None:
        self.world.say(f"restart {self.service}")
        self.drained.clear()
        self.begin()

    def remove(self, v: bool) -> None:
        self.world.say(f"remove {self.service}")
        self.state = "removed"
        del self.world.containers[self.service]


class World:
    """The stack `n` in `folder`. `said` is what was done; `broken` tells which definitions do not come up."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.containers: dict[str, Container] = {}
        self.handles = ExitStack()
        self.said: list[str] = []
        self.broken: Callable[[str, dict[str, Any]], bool] = lambda service, definition: False
        self._ids, self._now = itertools.count(1), 0.0
        api = SimpleNamespace(
            containers=lambda all=True, filters=None: [self._row(one) for one in self.containers.values()],
            inspect_container=lambda id: self._get(id).attrs,
            images=lambda: [],
            logs=lambda id, **words: b"2026-01-01T00:00:41Z Application startup complete.\n",
        )
        listed = SimpleNamespace(get=self._get, list=lambda filters: self._running(filters["label"][-1]))
        client = SimpleNamespace(ping=lambda: True, api=api, containers=listed)
        clock = SimpleNamespace(sleep=self._sleep, monotonic=lambda: self._now)
        monkeypatch.setattr("docker.from_env", lambda **words: client)
        for module in (gateway, compose, steps):
            monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(steps, "subprocess", SimpleNamespace(Popen=self._compose))
        monkeypatch.setattr(drift, "_hashes", lambda folder, text, env=None: self._hashes(text))
        monkeypatch.setattr(evidence, "explain_failure", lambda *words: None)

    def up(self) -> None:
        """Starts what is rendered, on a clean machine."""
        self.containers.clear()
        assert self._up([]) == ""
        self.said.clear()

    def say(self, line: str, once: bool = False) -> None:
        if not (once and self.said[-1:] == [line]):
            self.said.append(line)

    def runs(self) -> dict[str, str]:
        """What runs, by the hash of its definition."""
        return {name: digest(one.definition) for name, one in self.containers.items() if one.state == "running"}

    def order(self, *lines: str) -> bool:
        """Whether these were done, in this order."""
        rest = iter(self.said)
        return all(line in rest for line in lines)

    def _compose(self, words: list[str], stdout: IO[str], **_: Any) -> Any:
        assert words[:4] == compose_command(self.folder)[:4]
        names = words[words.index("--no-deps") + 1 :]
        self.say(f"up {' '.join(names)}")
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
            if old and old.state == "running" and digest(old.definition) == digest(definition):
                continue
            if old:
                old.state = "removed"
            new = Container(self, f"id{next(self._ids)}", name, definition)
            self.containers[name] = new
            if any(new.ports & one.ports for one in new.others() if one.state == "running"):
                return "Bind for 127.0.0.1:8000 failed: port is already allocated"
            new.begin()
        return ""

    def _hashes(self, text: str) -> dict[str, str]:
        return {name: digest(one) for name, one in yaml.safe_load(text)["services"].items()}

    def _row(self, one: Container) -> dict[str, Any]:
        labels = {f"{PREFIX}service": one.service, f"{PREFIX}config-hash": digest(one.definition)}
        return {"Id": one.id, "Labels": labels}

    def _get(self, id: str) -> Container:
        found = next((one for one in self.containers.values() if one.id == id), None)
        if found is None:
            raise docker.errors.NotFound(f"No such container: {id}")
        return found

    def _running(self, label: str) -> list[Container]:
        name = label.rpartition("=")[2]
        return [one for one in self.containers.values() if one.service == name and one.state == "running"]

    def _sleep(self, seconds: float) -> None:
        self._now += seconds
