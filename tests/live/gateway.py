"""A gateway under test: the rendered one, in front of fake engines (tests/resolve/addons/upstream.py)."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.render.templating import render
from stackgen.render.write import compare, write_files
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.resolve.pipeline import resolve
from stackgen.runtimes.compose.gateway import running_gateway
from stackgen.stack.envfile import create_env, read_env
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite

__all__ = [
    "HOSTILE", "Answer", "FakeEngineStack", "both_sizes", "find_log_line", "gateway_data", "parse_error", "repeat",
    "wait_for_status",
]  # fmt: skip

UPSTREAM = Path(__file__).parents[1] / "resolve" / "addons" / "upstream.py"
# text with a special meaning in a map, a log format, JSON, a shell or HAProxy's quoting
HOSTILE = [
    "it's", 'say "hi"', "a b", "$HOME", "${STACKGEN_ENGINE_KEY}", "%[env(PATH)]", "%b", "a,b;c", "{}", "{{x}}", "#x",
    "a\\b", "a\\", "\\n", "org/Model-1.5:latest", "a%20b", "`ls`", "x--y", "'; deny; '", "x" * 300, "<b>", "&amp;", "*",
]  # fmt: skip
# a body that fits HAProxy's buffer, and one that the gateway's second process handles
both_sizes = pytest.mark.parametrize("pad", [0, 100_000], ids=["small", "large"])


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

    def container(self, service: str) -> str:
        """Returns the name of the service's container. Plain Docker commands take a tenth of the time of Compose's."""
        return f"{self.data['name']}-{service}-1"

    def docker(self, *args: str) -> str:
        """Runs a Docker command, and returns its standard output and error in one."""
        command = ["docker", *args]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def run(self, service: str, *args: str) -> str:
        return self.docker("exec", self.container(service), *args)

    def logs(self, service: str = SERVICE) -> str:
        return self.docker("logs", self.container(service))

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
        """Loads changed files without losing a request, as stackgen's commands do."""
        gateway = running_gateway(self.data["name"])
        assert gateway
        gateway.reload()

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
        found: dict[str, Any] = json.loads(self.docker("inspect", self.container(service)))[0]
        return found

    def running_services(self) -> set[str]:
        """Returns the services whose container is running."""
        one_project = f"label=com.docker.compose.project={self.data['name']}"
        return set(self.docker("ps", "--filter", one_project, "--format",
                               '{{.Label "com.docker.compose.service"}}').split())  # fmt: skip

    def serving_replica(self, model: str) -> str:
        """Returns the replica that answers a completion, or "" if none does."""
        try:
            # a new session each time, because the gateway may route by session
            session = {"x-session-id": str(time.monotonic_ns())}
            answer = self.request("POST", "/v1/chat/completions", {"model": model, "messages": []}, headers=session)
        except OSError:  # the gateway doesn't listen yet
            return ""
        return answer.replica if answer.status == 200 else ""

    def received(self, service: str) -> list[dict[str, Any]]:
        """Returns the requests that a fake engine has received."""
        (network,) = self.inspect(service)["NetworkSettings"]["Networks"].values()
        connection = http.client.HTTPConnection(network["IPAddress"], 8000, timeout=20)
        try:
            connection.request("GET", "/seen")
            found: list[dict[str, Any]] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()


def gateway_data(name: str, port: int, image: str) -> dict[str, Any]:
    """The stack file of the test_gateway_* modules: three models, one of them with two replicas, and three keys."""
    keys = [{"name": "alice", "requests_per_minute": 5}, {"name": "bob", "concurrent_requests": 1}, {"name": "carol"}]
    return {
        "name": name, "port": port,
        "gateway": {"image": image, "keys": keys, "max_body": "2m", "max_queue": 2, "allow": ["/tokenize"]},
        "models": [
            {"model": "./a", "engine": "vllm", "replicas": 2, "served_names": ["alpha", "first", *HOSTILE[:12]]},
            {"model": "./b", "engine": "vllm", "served_names": ["beta", *HOSTILE[12:]], "max_num_seqs": 2},
            {"model": "./c", "engine": "fastchat", "served_names": ["chatty"]},
        ],
    }  # fmt: skip


@contextmanager
def repeat(work: Callable[[], object], clients: int) -> Iterator[None]:
    """Calls `work` again and again from several threads until the block ends, however it ends."""
    stopped = threading.Event()

    def client() -> None:
        while not stopped.is_set():
            work()

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client) for _ in range(clients)]
        try:
            yield
        finally:
            stopped.set()
        for one in running:
            one.result()


def parse_error(answer: Any) -> dict[str, Any]:
    """Returns the error, which must have OpenAI's format."""
    assert answer.headers["content-type"].startswith("application/json")
    found: dict[str, Any] = answer.json["error"]
    assert set(found) >= {"message", "type", "param", "code"}
    return found


def find_log_line(gateway: FakeEngineStack, answer: Answer) -> dict[str, Any]:
    """Returns the only log line of a request. It appears shortly after the answer."""
    end = time.monotonic() + 10
    while True:
        matching = [line for line in gateway.logs().splitlines() if answer.headers["x-request-id"] in line]
        if matching or time.monotonic() > end:
            break
        time.sleep(0.1)
    (line,) = matching
    found: dict[str, Any] = json.loads(line)
    return found


def wait_for_status(gateway: FakeEngineStack, model: str, status: int = 200, seconds: float = 60) -> float:
    """Waits until completions get `status`, and returns the seconds that it took."""
    started = time.monotonic()
    while gateway.chat(model).status != status:
        assert time.monotonic() - started < seconds, f"{model} did not answer with {status} within {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - started
