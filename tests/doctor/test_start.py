"""What `up` verifies before it pulls an image: certain failures stop it, anything unknown does not."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stackgen.cli.commands import neighbours, preflight
from stackgen.cli.main import main
from stackgen.doctor.collect import collect_start_inputs
from stackgen.doctor.facts import Container, Disk, Host, Listener
from stackgen.doctor.table import find_start_failures
from stackgen.runtimes.compose import lifecycle
from stackgen.runtimes.observation import machine as observed
from stackgen.stack.folder import open_stack
from tests.doctor.hosts import EIGHT_80, IMAGES, MIXED, NO_GPU, NOTHING_KNOWN, ONE_24, write_stack

FULL = Disk("/var/lib/docker", 2**20, 1)
OWN = Container("t-vllm-m-1", "t", (("127.0.0.1", 8000),))
FOREIGN = Container("web", "web", (("127.0.0.1", 8000),))


def failures(machine: Host, path: Path) -> set[str]:
    return {one.id for one in find_start_failures(collect_start_inputs(machine, open_stack(str(path))))}


@pytest.mark.parametrize(
    ("machine", "fields", "expected"),
    [
        (replace(ONE_24, runtimes=("runc",), toolkit=False), {}, {"SG-P032"}),
        (ONE_24, {"gpus": 2}, {"SG-P033"}),
        (replace(ONE_24, gpus=()), {}, {"SG-P030", "SG-P033"}),
        (replace(ONE_24, containers=(FOREIGN,)), {}, {"SG-P020"}),
        (replace(ONE_24, listeners=(Listener("0.0.0.0", 8000, "nginx (pid 7)"),)), {}, {"SG-P020"}),
        (replace(ONE_24, docker_disk=FULL, images=()), {}, {"SG-P006"}),
        (ONE_24, {"model": "./absent"}, {"SG-P058"}),
        (ONE_24, {"chat_template": "./absent.jinja"}, {"SG-P058"}),
        (ONE_24, {"stack_ca_certificates": "./absent.pem"}, {"SG-P058"}),
        (ONE_24, {"stack_gateway": {"tls": {"certificate": "./c.pem", "key": "./k.pem"}}}, {"SG-P058"}),
        (ONE_24, {"model": "Qwen/Qwen3-8B", "stack_storage": {"path": "/absent", "offline": True}}, {"SG-P058"}),
        (NO_GPU, {"gpus": "none", "cpuset": "0-99"}, {"SG-P010"}),
    ],
)
def test_what_certainly_ends_a_start_stops_it(
    machine: Host, fields: dict[str, Any], expected: set[str], tmp_path: Path
) -> None:
    assert failures(machine, write_stack(tmp_path, **fields)) == expected


@pytest.mark.parametrize(
    ("machine", "fields"),
    [
        (ONE_24, {}),
        (EIGHT_80, {"gpus": 8}),
        (MIXED, {}),
        # nothing is known
        (NOTHING_KNOWN, {"gpus": 8, "port": 1}),
        # this stack itself uses the port, or Docker's proxy does for an unknown container
        (replace(ONE_24, containers=(OWN,), listeners=(Listener("127.0.0.1", 8000, "docker-proxy (pid 7)"),)), {}),
        (replace(ONE_24, containers=None, listeners=(Listener("127.0.0.1", 8000, "docker-proxy (pid 7)"),)), {}),
        # the model is a folder, so nothing mounts the storage
        (ONE_24, {"stack_storage": {"path": "/absent", "offline": True}}),
        # nothing must be downloaded
        (replace(ONE_24, docker_disk=FULL, images=IMAGES), {}),
        # Docker 29 gives GPUs to containers through CDI
        (replace(ONE_24, runtimes=("runc",), toolkit=False, cdi=("nvidia.com/gpu",), engine="29.0.1"), {}),
        # memory and drivers may change until the engine starts
        (replace(ONE_24, driver="470.1", gpus=tuple(replace(one, memory_free=1) for one in ONE_24.gpus or ())), {}),
    ],
)
def test_anything_else_does_not(machine: Host, fields: dict[str, Any], tmp_path: Path) -> None:
    assert failures(machine, write_stack(tmp_path, **fields)) == set()


@pytest.mark.parametrize(
    ("machine", "code"),
    [(replace(ONE_24, runtimes=("runc",), toolkit=False), 3), (replace(ONE_24, containers=(FOREIGN,)), 1)],
)
def test_up_stops_before_it_reaches_docker(
    machine: Host, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_docker(*_: object, **__: object) -> None:
        raise AssertionError("Docker was asked")

    path = write_stack(tmp_path)
    monkeypatch.setattr("stackgen.cli.commands.up.check_ownership", lambda *_: None)
    monkeypatch.setattr(preflight, "collect_host_facts", lambda *_: machine)
    monkeypatch.setattr("stackgen.cli.commands.up.plan_start", no_docker)
    monkeypatch.setattr(lifecycle, "connect", no_docker)
    assert main(["up", str(path)]) == code
    shown = capsys.readouterr().err
    assert "Nothing was downloaded or started" in shown and "✗ SG-P0" in shown and "fix: " in shown
    with pytest.raises(AssertionError, match="Docker was asked"):
        main(["--debug", "up", str(path), "--skip-doctor"])


def test_a_fact_that_takes_too_long_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow() -> dict[str, Any]:
        time.sleep(1)
        return {"compose": "2.40.3"}

    monkeypatch.setattr(observed, "_compose_facts", slow)
    monkeypatch.setattr(observed, "_docker_facts", lambda *_: {"engine_state": "ok"})
    start = time.monotonic()
    found = observed.collect_host_facts(limit=0.3)
    assert time.monotonic() - start < 0.9
    assert found.compose is None and found.memory_total


def test_render_warns_of_gpus_that_another_stack_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machine is made up, because it has GPUs. `render` starts nothing, so it only warns."""
    path = write_stack(tmp_path)
    taken = Container("first-vllm-1", "first", (), 1, (), 0.92)
    monkeypatch.setattr(neighbours, "collect_neighbour_facts", lambda *_: replace(EIGHT_80, containers=(taken,)))
    assert main(["render", str(path)]) == 0
    shown = capsys.readouterr().err
    assert "warning: models[0].gpus: on this machine, a container of another stack uses the same GPU" in shown
    assert "container first-vllm-1 of the stack first" in shown and "`gpus: [1]`" in shown
    # without an answer of the engine, `render` says nothing
    monkeypatch.setattr(neighbours, "collect_neighbour_facts", lambda *_: NOTHING_KNOWN)
    assert main(["render", str(path)]) == 0
    assert "on this machine" not in capsys.readouterr().err
