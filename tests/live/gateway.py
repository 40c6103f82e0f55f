"""A gateway under test: rendered as for real, before engines that are made up (tests/resolve/addons/upstream.py)."""

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
from stackgen.stack.load import build
from stackgen.targets.compose import ComposeSite

__all__ = ["Answer", "MadeUp"]

UPSTREAM = Path(__file__).parents[1] / "addons" / "upstream.py"


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def by(self) -> str:
        return self.headers.get("x-stackgen-served-by", "").rpartition("/")[2]


@dataclass
class MadeUp:
    """The stack `data` in `folder`: its gateway is the rendered one, its engines are made up."""

    folder: Path
    data: dict[str, Any]
    python_image: str
    engines: tuple[str, ...] = ()
    keys: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> MadeUp:
        create_env(self.folder)
        self.render()
        self.compose("down", "--timeout", "1")
        done = self.compose("up", "--detach", *self.engines, SERVICE)
        assert done.returncode == 0, done.stderr[-3000:]
        end = time.monotonic() + 60
        # each replica, and not only each model: one that starts later is found by its name a few seconds later
        waited = {one.models[0]: set(one.replicas) for one in self.plan.endpoints}
        while any(waited.values()):
            assert time.monotonic() < end, f"without requests after a minute: {waited}"
            for name, replicas in waited.items():
                replicas.discard(self.served(name))
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.compose("down", "--timeout", "1", "--volumes")

    def render(self) -> None:
        """Writes the stack's files as they are, and a file that puts made-up engines in the real ones' places."""
        self.plan = plan = resolve(build(self.data, "test"), ComposeSite(self.folder, self.folder), "test")
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
                "init": True,
            }
        (self.folder / "test.yaml").write_text(yaml.safe_dump({"name": self.data["name"], "services": kept}))

    def compose(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["docker", "compose", "-f", str(self.folder / "test.yaml"), "--project-directory", str(self.folder)]
        return subprocess.run([*command, *words], capture_output=True, text=True, timeout=300)

    def run(self, service: str, *words: str) -> str:
        done = self.compose("exec", "-T", service, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def key(self) -> str:
        return read_env(self.folder)["STACKGEN_API_KEY"]

    @property
    def engine_key(self) -> str:
        return read_env(self.folder)["STACKGEN_ENGINE_KEY"]

    def write_keys(self, **keys: str) -> None:
        """keys.map as `stackgen keys` writes it, and a reload."""
        lines = [f"{hashlib.sha256(key.encode()).hexdigest().upper()} {name}" for name, key in keys.items()]
        (self.folder / "gateway" / "keys.map").write_text("\n".join(["managed 1", *lines]) + "\n")
        self.reload()

    def reload(self) -> None:
        before = self.workers()
        self.run(SERVICE, "bash", "-c", "kill -USR2 1")
        end = time.monotonic() + 20
        while self.workers() == before and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(0.5)

    def workers(self) -> str:
        """The numbers of HAProxy's processes."""
        words = (
            "for p in /proc/[0-9]*; do read -r name <$p/comm; [ $name = haproxy ] && echo $p; done 2>/dev/null; true"
        )
        return self.compose("exec", "-T", SERVICE, "bash", "-c", words).stdout

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.data["port"], timeout=60)

    def ask(
        self, method: str, path: str, body: Any = None, key: str | None = "", headers: dict[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own; `key` "" is that of .env, None is none."""
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
        """A completion, told how to end in `test`; `pad` bytes before the model's name make it large."""
        body = {"messages": ["x" * pad], "model": model, "test": test}
        return self.ask("POST", "/v1/chat/completions", body, key)

    def inspect(self, service: str) -> dict[str, Any]:
        """What Docker says of the service's container."""
        name = self.compose("ps", "--all", "--quiet", service).stdout.strip()
        done = subprocess.run(["docker", "inspect", name], capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found

    def running(self) -> set[str]:
        """The services whose container runs."""
        return set(self.compose("ps", "--services", "--status", "running").stdout.split())

    def served(self, model: str) -> str:
        """Which replica answers a completion; empty where none does."""
        try:
            answer = self.chat(model)
        except OSError:  # the gateway itself does not listen yet
            return ""
        return answer.by if answer.status == 200 else ""

    def seen(self, service: str) -> list[dict[str, Any]]:
        """What reached a made-up engine."""
        ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/seen').read().decode())"
        found: list[dict[str, Any]] = json.loads(self.run(service, "python3", "-c", ask))
        return found
