"""A gateway under test: the rendered one, in front of fake engines (tests/resolve/addons/upstream.py)."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stackgen.render.templating import render
from stackgen.render.write import compare, write_files
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.resolve.pipeline import resolve
from stackgen.stack.envfile import create_env, read_env
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite

__all__ = ["Answer", "FakeEngineStack"]

UPSTREAM = Path(__file__).parents[1] / "resolve" / "addons" / "upstream.py"


@dataclass(frozen=True)
class Answer:
    """A complete response. `replica` is the one that served it, from its x-stackgen-served-by header."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def replica(self) -> str:
        return self.headers.get("x-stackgen-served-by", "").rpartition("/")[2]


@dataclass
class FakeEngineStack:
    """A stack in `folder` with the rendered gateway and fake engines. `data` is the content of stack.yaml."""

    folder: Path
    data: dict[str, Any]
    python_image: str
    engines: tuple[str, ...] = ()
    keys: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> FakeEngineStack:
        create_env(self.folder)
        self.render()
        # a killed test run may have left it running
        self.compose("down", "--timeout", "1")
        done = self.compose("up", "--detach", *self.engines, SERVICE)
        assert done.returncode == 0, done.stderr[-3000:]
        end = time.monotonic() + 60
        # wait for each replica, not only each model: the gateway resolves the name of a late one seconds later
        waited = {one.models[0]: set(one.replicas) for one in self.plan.endpoints}
        while any(waited.values()):
            assert time.monotonic() < end, f"no request reached these replicas within a minute: {waited}"
            for name, replicas in waited.items():
                replicas.discard(self.serving_replica(name))
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.compose("down", "--timeout", "1", "--volumes")

    def render(self) -> None:
        """Writes the rendered files, and test.yaml, a Compose file with fake engines in place of the real ones."""
        self.plan = plan = resolve(build_spec(self.data, "test"), ComposeSite(self.folder, self.folder), "test")
        write_files(compare(render(plan), self.folder), self.folder)
        upstreams = {name for endpoint in plan.endpoints for name in endpoint.replicas}
        self.engines = tuple(sorted(upstreams))
        text = (self.folder / "compose.yaml").read_text()
        kept = {name: one for name, one in yaml.safe_load(text)["services"].items() if name == SERVICE}
        for name in self.engines:
            kept[name] = {
                "image": self.python_image,
                "hostname": name,
                "entrypoint": ["python3", "/upstream.py"],
                "volumes": [f"{UPSTREAM}:/upstream.py:ro"],
                # as process 1, Python would ignore SIGTERM
                "init": True,
            }
        (self.folder / "test.yaml").write_text(yaml.safe_dump({"name": self.data["name"], "services": kept}))

    def compose(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = ["docker", "compose", "-f", str(self.folder / "test.yaml"), "--project-directory", str(self.folder)]
        return subprocess.run([*command, *args], capture_output=True, text=True, timeout=300)

    def run(self, service: str, *args: str) -> str:
        done = self.compose("exec", "-T", service, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def key(self) -> str:
        return read_env(self.folder)["STACKGEN_API_KEY"]

    @property
    def engine_key(self) -> str:
        return read_env(self.folder)["STACKGEN_ENGINE_KEY"]

    def write_keys(self, **keys: str) -> None:
        """Writes keys.map as `stackgen keys` does, and reloads."""
        # the gateway compares hashes, so the file contains no key
        lines = [f"{hashlib.sha256(key.encode()).hexdigest().upper()} {name}" for name, key in keys.items()]
        (self.folder / "gateway" / "keys.map").write_text("\n".join(["managed 1", *lines]) + "\n")
        self.reload()

    def reload(self) -> None:
        """Reloads HAProxy and waits for its new worker."""
        before = self.haproxy_processes()
        self.run(SERVICE, "bash", "-c", "kill -USR2 1")
        end = time.monotonic() + 20
        while self.haproxy_processes() == before and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(0.5)

    def haproxy_processes(self) -> str:
        """Returns the folders in /proc of HAProxy's processes."""
        script = (
            "for p in /proc/[0-9]*; do read -r name <$p/comm; [ $name = haproxy ] && echo $p; done 2>/dev/null; true"
        )
        return self.compose("exec", "-T", SERVICE, "bash", "-c", script).stdout

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.data["port"], timeout=60)

    def request(
        self, method: str, path: str, body: Any = None, key: str | None = "", headers: dict[str, str] | None = None
    ) -> Answer:
        """Sends a request on a new connection. `key` "" means the key in .env, and None means no key."""
        sent = dict(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {key or self.key}"
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = self.connect()
        try:
            connection.request(method, path, raw, sent)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
            response.close()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, text)
        finally:
            connection.close()

    def chat(self, model: str, key: str | None = "", pad: int = 0, **test: Any) -> Answer:
        """Requests a completion. `test` controls the fake engine. `pad`: bytes in front of the model."""
        body = {"messages": ["x" * pad], "model": model, "test": test}
        return self.request("POST", "/v1/chat/completions", body, key)

    def inspect(self, service: str) -> dict[str, Any]:
        """Returns `docker inspect` of the service's container."""
        name = self.compose("ps", "--all", "--quiet", service).stdout.strip()
        done = subprocess.run(["docker", "inspect", name], capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found

    def running_services(self) -> set[str]:
        """Returns the services whose container is running."""
        return set(self.compose("ps", "--services", "--status", "running").stdout.split())

    def serving_replica(self, model: str) -> str:
        """Returns the replica that answers a completion, or "" if none does."""
        try:
            answer = self.chat(model)
        except OSError:  # the gateway doesn't listen yet
            return ""
        return answer.replica if answer.status == 200 else ""

    def received(self, service: str) -> list[dict[str, Any]]:
        """Returns the requests that a fake engine has received."""
        ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/seen').read().decode())"
        found: list[dict[str, Any]] = json.loads(self.run(service, "python3", "-c", ask))
        return found
