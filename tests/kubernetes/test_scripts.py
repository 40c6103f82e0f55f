"""The scripts that run in pods, with real processes and connections."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stackgen.resources import templates_dir

HEALTH = templates_dir() / "engines/group_health.py"
WAIT = templates_dir() / "kubernetes/wait_for_weights.sh"
SUPERVISE = templates_dir() / "images/common/supervise.sh"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HEALTH), *arguments], capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"STACKGEN_READY_FILE": os.devnull},
    )  # fmt: skip


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_node_is_healthy_as_long_as_its_connection_to_the_first_one_is(family: int, address: str) -> None:
    with socket.socket(family) as server:
        try:
            server.bind((address, 0))
        except OSError:
            # the machine has no IPv6, and its pods would have none
            assert family == socket.AF_INET6
            return
        server.listen()
        port = str(server.getsockname()[1])
        assert check(address, port).returncode == 1
        with socket.create_connection((address, int(port))):
            accepted, _ = server.accept()
            assert check(address, port).returncode == 0
            accepted.close()
            # the other end waits for the program to close it, too: the connection is no longer established
            assert check(address, port).returncode == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may create a namespace of processes")
def test_a_connection_of_another_container_on_the_machine_does_not_count() -> None:
    """With the machine's network, the table of connections also has those of other containers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        with socket.create_connection(server.getsockname()):
            outside = ["unshare", "--pid", "--fork", "--mount-proc"]
            for command, healthy in (([], True), (outside, False)):
                done = subprocess.run(
                    [*command, sys.executable, str(HEALTH), "127.0.0.1", port], capture_output=True, text=True,
                    timeout=30, check=False, env=os.environ | {"STACKGEN_READY_FILE": os.devnull},
                )  # fmt: skip
                assert (done.returncode == 0) == healthy, done.stderr


def test_a_first_node_whose_name_does_not_resolve_is_a_failure_with_a_reason() -> None:
    done = check("leader.invalid", "29501")
    assert done.returncode == 1
    assert "leader.invalid" in done.stderr


def test_a_node_waits_until_the_first_one_listens() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
        # bound, but not listening yet
        with subprocess.Popen(
            [sys.executable, str(HEALTH), "--wait", "127.0.0.1", port], stdout=subprocess.PIPE
        ) as one:
            assert one.stdout
            assert b"waiting for 127.0.0.1" in one.stdout.readline()
            server.listen()
            assert one.wait(30) == 0


def test_a_pod_waits_for_all_markers(tmp_path: Path) -> None:
    markers = [tmp_path / "a.json", tmp_path / "b.json"]
    markers[0].touch()
    with subprocess.Popen(["sh", str(WAIT), *map(str, markers)], stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout
        assert str(markers[1]) in one.stdout.readline()
        assert one.poll() is None
        markers[1].touch()
        assert one.wait(30) == 0


def test_in_a_cluster_the_container_ends_with_its_service(tmp_path: Path) -> None:
    """The kubelet restarts it, with a start-up probe; supervise.sh would restart only the service."""
    ready, pid = tmp_path / "ready", tmp_path / "pid"
    environment = os.environ | {"STACKGEN_READY_FILE": str(ready), "STACKGEN_HANG_FILE": str(tmp_path / "hang")}
    program = f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60"
    command = ["sh", str(SUPERVISE), "sh", "-c", program]
    with subprocess.Popen(command, env=environment | {"STACKGEN_RESTART": "exit"}, stderr=subprocess.PIPE) as one:
        deadline = time.monotonic() + 30
        while not pid.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # the health check has passed
        ready.touch()
        os.kill(int(pid.read_text()), signal.SIGKILL)
        assert one.wait(30) == 1
        assert one.stderr
        assert b"was healthy and ended with code 137" in one.stderr.read()
