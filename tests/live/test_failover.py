"""A killed replica and a rolling update under load, on stand-ins for vLLM. test_front_updates.py has real replicas."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.live.containers import wait_until
from tests.live.load import Load
from tests.live.rolling import FIRST, SECOND, assert_no_failures, container_id, edit_model, rolling_data, update
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

PORT = 18816


@pytest.fixture(scope="module")
def running(
    standin_image: str, haproxy_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveStack]:
    """Two replicas behind the gateway, both up. Tests leave both up, and stack.yaml as it runs."""
    data = rolling_data(standin_image, haproxy_image, tiny_model) | {"name": "roll-failover", "port": PORT}
    with LiveStack(tmp_path_factory.mktemp("rolling"), data) as started:
        started.stackgen("up", str(started.folder), "--timeout", "120")
        yield started


def test_a_killed_replica_interrupts_only_its_own_streams(
    running: LiveStack, capsys: pytest.CaptureFixture[str]
) -> None:
    with Load(PORT, [running.key]) as traffic:
        running.compose("kill", SECOND)
        traffic.wait_for_requests(60)
        before = traffic.servers.get(SECOND, 0)
        traffic.wait_for_requests(20)
        assert traffic.servers.get(SECOND, 0) == before
        # `update` starts stopped services too
        update(running)
        traffic.wait_for_requests(60)
    assert_no_failures(capsys, traffic, "kill one of two, and start it again")
    assert traffic.interrupted <= 4
    assert traffic.servers[SECOND] > before


def test_a_rolling_update_loses_no_request(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    before = container_id(running, FIRST), container_id(running, SECOND), container_id(running, "gateway")
    edit_model(running, max_num_seqs=8)
    with Load(PORT, [running.key]) as traffic:
        done = update(running)
        traffic.wait_for_requests(20)
    assert_no_failures(capsys, traffic, "rolling update of a flag")
    after = container_id(running, FIRST), container_id(running, SECOND), container_id(running, "gateway")
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True]
    assert traffic.interrupted == 0
    assert "downtime:" not in done.stderr
    assert "8" in running.inspect(FIRST)["Config"]["Cmd"]
    assert "the running services match the rendered files" in update(running).stdout


def test_a_published_port_without_its_forwarder_is_noticed(running: LiveStack) -> None:
    """Docker's forwarder of the gateway's port ends; Docker still lists the port, and the container stays healthy."""
    forwarders = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _is_forwarder((entry / "cmdline"), PORT)
    ]
    assert forwarders, "this Docker engine forwards ports without docker-proxy"
    for pid in forwarders:
        os.kill(pid, signal.SIGTERM)
    try:
        wait_until(
            lambda: running.run_stackgen("status", str(running.folder)).returncode == 1, 15, "status does not notice it"
        )
        shown = running.stackgen("status", str(running.folder), code=1)
        assert f"127.0.0.1:{PORT} (accepts no connections" in shown
        # Docker itself does not notice
        assert running.inspect("gateway")["State"]["Health"]["Status"] == "healthy"
        report = json.loads(running.stackgen("check", str(running.folder), "--quick", "--json", code=1))
        found = report["endpoints"][0]["results"][0]
        assert (found["name"], found["status"]) == ("containers", "fail")
        assert f"gateway is healthy, but its published port 127.0.0.1:{PORT} accepts no connections" in found["message"]
        assert "docker compose restart gateway" in found["hint"]
    finally:
        # what the hint says
        running.compose("restart", "--timeout", "2", "gateway")
    wait_until(
        lambda: running.run_stackgen("status", str(running.folder)).returncode == 0, 30, "the port does not come back"
    )


def _is_forwarder(cmdline: Path, port: int) -> bool:
    try:
        words = cmdline.read_bytes().decode(errors="replace").split("\0")
    # the process has ended
    except OSError:
        return False
    return words[0].endswith("docker-proxy") and ("-host-port", str(port)) in pairwise(words)
