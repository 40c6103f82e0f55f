"""A stack on two machines: two Docker engines, each in a network of its own, with a cable between the two networks.

The engine for models is the stand-in, which starts in 0.3 s; docs/decisions/hosts.md has the same with real engines.
The tests have engines of their own, because no stack of the suite can lose a whole machine.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.live.gpu_engine import GpuEngine, reason_to_skip

pytestmark = [pytest.mark.docker, pytest.mark.gpu_stub, pytest.mark.timeout(240)]

PORT = 18470
FRONT, BOX = "10.213.77.1", "10.213.77.2"
STACKGEN = [sys.executable, "-m", "stackgen"]
# the load runs in the front's network, and ends when its standard input does
LOAD = """
import json, sys
from tests.live.load import Load
with Load({port}, [{key!r}], {model!r}, clients=8, pause=0.02) as load:
    print("running", flush=True)
    sys.stdin.read()
print(json.dumps([load.requests, load.failures, load.interrupted, load.servers, load.slowest]))
"""
ASK = """
import json, sys, urllib.error, urllib.request
body = json.dumps({{"model": {model!r}, "prompt": "hi", "max_tokens": 4}}).encode()
headers = {{"Authorization": "Bearer {key}", "Content-Type": "application/json"}}
request = urllib.request.Request("http://{address}/v1/completions", body, headers)
try:
    answer = urllib.request.urlopen(request, timeout=30)
except urllib.error.HTTPError as error:
    answer = error
print(json.dumps([answer.status, answer.read().decode(), answer.headers.get("x-stackgen-served-by")]))
"""


@dataclass
class Machines:
    """The stack in `folder` on both machines."""

    folder: Path
    front: GpuEngine
    box: GpuEngine

    @property
    def key(self) -> str:
        return read_env(self.folder / "front")["STACKGEN_API_KEY"]

    def run(self, engine: GpuEngine, *args: str | Path, code: int = 0) -> str:
        """Runs stackgen on the machine of `engine`; returns both outputs."""
        done = engine.inside(*STACKGEN, *map(str, args), timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def ask(self, model: str, address: str = f"127.0.0.1:{PORT}", key: str = "") -> tuple[int, str, str]:
        """Requests a completion from the front; returns status, body and the server that answered."""
        script = ASK.format(model=model, address=address, key=key or self.key)
        done = self.front.inside(sys.executable, "-c", script)
        assert done.returncode == 0, done.stderr
        status, body, server = json.loads(done.stdout)
        return status, body, server

    def wait_for(self, model: str, status: int) -> None:
        end = time.monotonic() + 30
        while (answer := self.ask(model))[0] != status:
            assert time.monotonic() < end, answer
            time.sleep(0.3)

    @contextlib.contextmanager
    def load(self, model: str) -> Iterator[list[Any]]:
        """Load on the front. The list is filled at the end: requests, failures, interrupted streams, servers."""
        script = LOAD.format(port=PORT, key=self.key, model=model)
        command = ["nsenter", f"--net={self.front.network}", sys.executable, "-c", script]
        result: list[Any] = []
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout and process.stdin
            assert process.stdout.readline() == "running\n"
            yield result
            process.stdin.close()
            result += json.loads(process.stdout.read())

    def cable(self, state: str) -> None:
        """Pulls the cable (`down`), which closes no connection, or plugs it in again (`up`)."""
        self.box.inside("ip", "link", "set", "cable", state)


def read_env(folder: Path) -> dict[str, str]:
    lines = (folder / ".env").read_text().splitlines()
    return dict(line.partition("=")[::2] for line in lines if "=" in line and not line.startswith("#"))


def connect(front: GpuEngine, box: GpuEngine) -> None:
    names = [str(Path(engine.network).parts[2]) for engine in (front, box)]
    subprocess.run(["ip", "link", "add", "sgt-hosts-a", "type", "veth", "peer", "name", "sgt-hosts-b"], check=True)
    for engine, link, pid, address in zip(
        (front, box), ("sgt-hosts-a", "sgt-hosts-b"), names, (FRONT, BOX), strict=True
    ):
        subprocess.run(["ip", "link", "set", link, "netns", pid], check=True)
        for args in (("link", "set", link, "name", "cable"), ("address", "add", f"{address}/24", "dev", "cable"),
                     ("link", "set", "cable", "up")):  # fmt: skip
            assert engine.inside("ip", *args).returncode == 0


def load_images(engines: tuple[GpuEngine, ...], images: tuple[str, ...], folder: Path) -> None:
    subprocess.run(["docker", "save", "--output", folder / "images.tar", *images], check=True)
    for engine in engines:
        engine.docker("load", "--input", str(folder / "images.tar"), timeout=120)
    (folder / "images.tar").unlink()


@pytest.fixture(scope="module")
def machines(
    standin_image: str, haproxy_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machines]:
    if reason := reason_to_skip():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("hosts")
    model = {"model": str(tiny_model), "engine": "vllm", "image": standin_image, "gpus": "none", "max_model_len": 512}
    data = {
        "name": "sgtest-hosts", "port": PORT, "gateway": {"image": haproxy_image},
        "hosts": {"front": {}, "box": {"address": BOX, "port": 18471}},
        "models": [model | {"served_names": ["both"], "host": ["front", "box"]},
                   model | {"served_names": ["alone"], "host": "box"}],
    }  # fmt: skip
    (folder / "stack.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    with GpuEngine(0) as front, GpuEngine(0) as box:
        connect(front, box)
        load_images((front, box), (standin_image, haproxy_image), folder)
        found = Machines(folder, front, box)
        found.run(front, "render", folder)
        # the engines remove their containers when they end
        yield found


def test_front_serves_without_the_other_machine_and_finds_it_when_it_starts(machines: Machines) -> None:
    text = machines.run(machines.front, "up", machines.folder / "front")
    assert "alone" in text and "box" in text
    assert machines.ask("both")[0] == 200
    status, body, _ = machines.ask("alone")
    assert status == 503 and "alone" in body
    assert "healthy" in machines.run(machines.box, "up", machines.folder / "box")
    machines.wait_for("alone", 200)
    assert machines.ask("alone")[2] == "vllm-alone/box"
    machines.run(machines.front, "check", machines.folder / "front")


def test_engines_are_reachable_through_the_gateway_of_their_machine_only(machines: Machines) -> None:
    assert machines.ask("alone", f"{BOX}:18471", "sk-wrong")[0] == 401
    # a client's key is not a key of the box
    assert machines.ask("alone", f"{BOX}:18471")[0] == 401
    published = machines.box.docker("ps", "--format", "{{.Ports}}").stdout
    assert [line for line in published.splitlines() if "->" in line] == [f"{BOX}:18471->8000/tcp"]


def test_lost_machine_costs_no_request_of_a_model_with_replicas_on_both(machines: Machines) -> None:
    machines.wait_for("alone", 200)
    with machines.load("both") as result:
        time.sleep(1)
        machines.cable("down")
        machines.wait_for("alone", 503)
        assert machines.ask("both")[2] == "vllm-both/vllm-both"
        time.sleep(1)
        machines.cable("up")
        machines.wait_for("alone", 200)
        time.sleep(1)
    requests, failures, interrupted, servers, slowest = result
    assert requests > 50 and not failures, result
    # streams that had begun on the lost machine break off: the gateway can't repeat what the client has seen
    assert interrupted <= 8 and servers["box"] and servers["vllm-both"], result
    print(requests, interrupted, servers, slowest)
