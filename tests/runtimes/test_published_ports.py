"""A published port that accepts no connection, although Docker reports its container as healthy."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stackgen.cli import main as cli
from stackgen.runtimes.compose import lifecycle
from stackgen.runtimes.compose.published_ports import find_unreachable_ports

STACK = "name: demo\nmodels: [{model: ./weights, engine: vllm, served_names: [tiny]}]\n"


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def inspected(*ports: int, host: str = "127.0.0.1", health: str = "healthy", status: str = "running",
              gateway: str = "127.0.0.1", protocol: str = "tcp") -> dict[str, Any]:  # fmt: skip
    """`docker inspect` of a container; the address of the bridge shows whether the engine runs on this machine."""
    bindings = {f"{8000 + number}/{protocol}": [{"HostIp": host, "HostPort": str(port)}]
                for number, port in enumerate(ports)}  # fmt: skip
    return {
        "State": {"Status": status, "ExitCode": 0, "OOMKilled": False, "FinishedAt": "", "Health": {"Status": health}},
        "RestartCount": 0,
        "NetworkSettings": {
            "Ports": {**bindings, "9000/tcp": None},
            "Networks": {"demo_default": {"Gateway": gateway}},
        },
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", ""])
def test_a_port_without_a_forwarder_is_found(open_port: int, closed_port: int, host: str) -> None:
    assert find_unreachable_ports(inspected(open_port, closed_port, host=host)) == (f"{host}:{closed_port}",)
    assert find_unreachable_ports(inspected(open_port, host=host)) == ()


@pytest.mark.parametrize(
    "changes",
    [
        # without docker-proxy, an engine that is still loading refuses connections
        {"health": "starting"},
        {"health": "unhealthy"},
        {"health": ""},
        {"status": "paused"},
        # DOCKER_HOST is another machine (the address is reserved for documentation), or a virtual machine
        {"gateway": "198.51.100.7"},
        # the network mode `host` publishes nothing
        {"gateway": ""},
        {"protocol": "udp"},
    ],
    ids=str,
)
def test_what_can_not_be_judged_is_not_reported(closed_port: int, changes: dict[str, str]) -> None:
    assert find_unreachable_ports(inspected(closed_port, **changes)) == ()


@pytest.mark.parametrize("is_open", [True, False])
def test_status_fails_and_names_the_port(
    is_open: bool, open_port: int, closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "stack.yaml").write_text(STACK)
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    capsys.readouterr()
    port = open_port if is_open else closed_port
    listed = [{"Labels": {"com.docker.compose.service": "vllm-tiny"}, "Id": "a"}]
    api = SimpleNamespace(containers=lambda **_: listed, inspect_container=lambda _: inspected(port))
    monkeypatch.setattr(lifecycle, "connect", lambda *_: SimpleNamespace(api=api))
    assert cli.main(["status", str(tmp_path), "--json"]) == (0 if is_open else 1)
    states = {one["service"]: one for one in json.loads(capsys.readouterr().out)["services"]}
    assert states["vllm-tiny"]["unreachable_ports"] == ([] if is_open else [f"127.0.0.1:{port}"])
    assert cli.main(["status", str(tmp_path)]) == (0 if is_open else 1)
    assert (f"127.0.0.1:{port} (accepts no connections" in capsys.readouterr().out) is not is_open
