"""Replicas are added, removed, killed and changed under load, and no request is lost. Prints the counts."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from stackgen.runtimes.compose.gateway import running_gateway
from tests.live.rolling import (
    FIRST,
    PORT,
    SECOND,
    assert_no_failures,
    container_id,
    edit_model,
    edit_stack,
    load,
    rolling_data,
    running_services,
    update,
)
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def stack(
    standin_image: str, haproxy_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveStack]:
    """Two replicas of the vLLM stand-in behind the gateway: what is tested is our gateway and our commands."""
    with LiveStack(
        tmp_path_factory.mktemp("rolling"), rolling_data(standin_image, haproxy_image, tiny_model)
    ) as started:
        yield started


@pytest.fixture
def running(stack: LiveStack) -> LiveStack:
    """Both replicas running as stack.yaml says. Tests must leave it like this, because a start takes long."""
    if stack.stopped:
        stack.stackgen("up", str(stack.folder), "--timeout", "900")
        stack.stopped = False
    return stack


def test_scaling_down_and_up_loses_no_request(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    edit_model(running)
    first = container_id(running, FIRST)
    with load(running) as traffic:
        running.stackgen("scale", "tiny=1", str(running.folder))
        assert running_services(running) == {FIRST, "gateway"}
        traffic.wait_for_requests(20)
    assert_no_failures(capsys, traffic, "scale 2 → 1")
    _assert_downtime_needs_confirmation(running)
    # the only replica: without it, the model is gone
    _kill_while_draining(running)
    assert f"{FIRST} was still drained since" in running.run_stackgen("status", str(running.folder)).stderr
    running.stackgen("status", str(running.folder))
    update(running)
    assert (running.folder / "stack.yaml").read_text().startswith("# a comment\n")
    with load(running) as traffic:
        running.stackgen("scale", "tiny=2", str(running.folder), "--timeout", "900")
        traffic.wait_for_requests(40)
    assert_no_failures(capsys, traffic, "scale 1 → 2")
    assert traffic.servers.keys() == {FIRST, SECOND}
    assert container_id(running, FIRST) == first  # the other replica was not recreated


def _assert_downtime_needs_confirmation(running: LiveStack) -> None:
    """With a single replica, an update asks for confirmation and changes nothing without it."""
    edit_model(running, max_num_seqs=4)
    first = container_id(running, FIRST)
    done = running.run_stackgen("update", str(running.folder))
    assert done.returncode == 2
    assert "no other replica" in done.stderr
    assert f"the last start of {FIRST} took" in done.stderr
    assert container_id(running, FIRST) == first
    edit_model(running, max_num_seqs=None)


def test_up_enables_a_replica_that_a_killed_update_left_drained(running: LiveStack) -> None:
    _kill_while_draining(running)
    done = running.run_stackgen("up", str(running.folder), "--timeout", "900")
    assert done.returncode == 0, done.stderr
    assert f"{FIRST} was still drained since" in done.stderr
    running.stackgen("status", str(running.folder))


def _kill_while_draining(running: LiveStack) -> None:
    """Kills an update that waits for a request in flight."""
    original = (running.folder / "stack.yaml").read_text()
    edit_model(running, max_num_seqs=4)
    body = {"model": "tiny", "prompt": "Hi", "max_tokens": 6000, "ignore_eos": True, "stream": True}
    command = [sys.executable, "-m", "stackgen", "update", str(running.folder), "--yes", "--progress", "plain"]
    streams = [http.client.HTTPConnection("127.0.0.1", PORT, timeout=60) for _ in range(6)]
    for stream in streams:
        stream.request("POST", "/v1/completions", json.dumps(body), {"Authorization": f"Bearer {running.key}"})
        assert stream.getresponse().status == 200
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr and any(f"{FIRST}" in line and "in flight" in line for line in process.stderr)
        process.kill()
    for stream in streams:
        stream.close()
    (running.folder / "stack.yaml").write_text(original)


def test_a_failed_update_is_rolled_back(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    rendered, second = (running.folder / "compose.yaml").read_text(), container_id(running, SECOND)
    original = (running.folder / "stack.yaml").read_text()
    # max_num_seqs changes the gateway's files too
    edit_model(running, extra_args=["--no-such-flag"], max_num_seqs=6)
    # now the files of the running stack exist only in the copy that stackgen kept of the last working state
    running.stackgen("render", str(running.folder))
    with load(running) as traffic:
        done = update(running, code=1)
        traffic.wait_for_requests(40)
    assert_no_failures(capsys, traffic, "update to a broken flag, rolled back")
    assert traffic.interrupted == 0
    assert "--no-such-flag" in done.stderr
    assert "rolled back" in done.stderr
    assert (running.folder / "compose.yaml").read_text() == rendered
    assert container_id(running, SECOND) == second  # the update stopped before it
    assert "--no-such-flag" in (running.folder / "stack.yaml").read_text()
    assert running.inspect(FIRST)["State"]["Health"]["Status"] == "healthy"
    (running.folder / "stack.yaml").write_text(original)
    assert "the running services match the rendered files" in update(running).stdout


def test_a_new_replica_that_does_not_start_in_time_is_removed(
    running: LiveStack, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (running.folder / name).read_text() for name in ("stack.yaml", "compose.yaml", "stackgen.lock")}
    with load(running) as traffic:
        done = running.run_stackgen("scale", "tiny=3", str(running.folder), "--timeout", "1")
        traffic.wait_for_requests(20)
    assert_no_failures(capsys, traffic, "scale to a third replica that does not come up in time")
    assert done.returncode == 1, done.stderr
    assert "start timed out" in done.stderr
    assert "stack.yaml is unchanged" in done.stderr
    assert {name: (running.folder / name).read_text() for name in before} == before
    assert running_services(running) == {FIRST, SECOND, "gateway"}


def test_a_removal_is_rolled_back_when_the_update_fails(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    original, second = (running.folder / "stack.yaml").read_text(), running.inspect(SECOND)
    edit_model(running, replicas=1, extra_args=["--no-such-flag"])
    done = update(running, "--yes", code=1)
    assert "rolled back" in done.stderr
    assert running_services(running) == {FIRST, SECOND, "gateway"}
    after = running.inspect(SECOND)
    assert (after["Id"], after["State"]["StartedAt"]) == (second["Id"], second["State"]["StartedAt"])
    (running.folder / "stack.yaml").write_text(original)
    assert "the running services match the rendered files" in update(running).stdout
    with load(running) as traffic:
        traffic.wait_for_requests(20)
    assert_no_failures(capsys, traffic, "after a rollback of a removal")
    assert traffic.servers.keys() == {FIRST, SECOND}


def test_a_gateway_that_cannot_start_is_rolled_back(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    """Its new port is in use, which only shows once the old container is gone."""
    original = (running.folder / "stack.yaml").read_text()
    with socket.create_server(("127.0.0.1", PORT + 1)):
        edit_stack(running, port=PORT + 1)
        done = update(running, "--yes", code=1)
    assert "the gateway itself is recreated" in done.stderr
    assert "rolled back: the previous services run again" in done.stderr
    (running.folder / "stack.yaml").write_text(original)
    with load(running) as traffic:
        traffic.wait_for_requests(20)
    assert_no_failures(capsys, traffic, "after a rollback of the gateway")
    assert "the running services match the rendered files" in update(running).stdout


def test_a_router_is_added_and_removed(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    """The router brings a network that the running gateway and replicas are not in."""
    built = subprocess.run(["scripts/build-image", "vllm-router"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    original = (running.folder / "stack.yaml").read_text()
    edit_model(running, cache_aware=True)
    done = update(running, "--yes")
    assert "no other replica" not in done.stderr
    assert running_services(running) == {FIRST, SECOND, "gateway", "router-tiny"}
    with load(running) as traffic:
        traffic.wait_for_requests(20)
    assert_no_failures(capsys, traffic, "add a router")
    assert traffic.servers.keys() == {"router-tiny"}
    (running.folder / "stack.yaml").write_text(original)
    update(running, "--yes")
    assert running_services(running) == {FIRST, SECOND, "gateway"}
    with load(running) as traffic:
        traffic.wait_for_requests(20)
    assert_no_failures(capsys, traffic, "remove the router")


def test_up_replaces_changed_replicas_without_losing_a_request(
    running: LiveStack, capsys: pytest.CaptureFixture[str]
) -> None:
    first = container_id(running, FIRST)
    edit_model(running, max_num_seqs=7)
    with load(running) as traffic:
        running.stackgen("up", str(running.folder), "--timeout", "900")
        traffic.wait_for_requests(20)
    assert_no_failures(capsys, traffic, "up after an edit")
    assert container_id(running, FIRST) != first


def test_up_reloads_a_gateway_whose_files_changed(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    path = running.folder / "stack.yaml"
    before, data = container_id(running, "gateway"), yaml.safe_load(path.read_text())
    data["gateway"]["keys"] = [{"name": "team", "requests_per_minute": 60}]
    path.write_text("# a comment\n" + yaml.safe_dump(data, sort_keys=False))
    with load(running) as traffic:
        running.stackgen("up", str(running.folder), "--timeout", "900")
        traffic.wait_for_requests(20)
    assert_no_failures(capsys, traffic, "reload by up")
    gateway = running_gateway("roll-test")
    assert gateway and not gateway.has_stale_config(running.folder)
    assert container_id(running, "gateway") == before
    assert "team 60" in running.execute("gateway", "cat", "/gateway/rates.map").stdout


def test_a_broken_gateway_configuration_is_rejected(running: LiveStack) -> None:
    path = running.folder / "gateway" / "haproxy.cfg"
    good = path.read_text()
    path.write_text(good + "nonsense\n")
    try:
        done = running.run_stackgen("up", str(running.folder))
        assert done.returncode == 1, done.stderr
        assert "rejected its new configuration" in done.stderr
        assert "nonsense" in done.stderr
        with load(running) as traffic:
            traffic.wait_for_requests(8)
        assert not traffic.failures
    finally:
        path.write_text(good)


def test_scaling_an_unknown_model_suggests_a_name(running: LiveStack) -> None:
    before = (running.folder / "stack.yaml").read_text()
    done = running.run_stackgen("scale", "tinny=2", str(running.folder))
    assert done.returncode == 2
    assert "did you mean tiny?" in done.stderr
    assert (running.folder / "stack.yaml").read_text() == before
