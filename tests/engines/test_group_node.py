"""The script of machines that compute one model together, with real processes, connections and interfaces."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackgen.resources import templates_dir

SUPERVISE = templates_dir() / "images/common/supervise.sh"
# connects to the first machine and keeps the connection, as a rank does
RANK = "import socket,sys,time; c = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); time.sleep(600)"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script, next to the one that it imports."""
    for name in ("group_node.py", "group_health.py"):
        shutil.copy(templates_dir() / "engines" / name, tmp_path)
    return tmp_path / "group_node.py"


@pytest.fixture
def leader() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        yield server


def setup(script: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if "SOCKET_IFNAME" not in name} | variables
    command = [sys.executable, str(script), "setup", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


def test_setup_selects_the_interface_of_the_address(script: Path) -> None:
    done = setup(script, "127.0.0.1", "echo", "MORE=1")
    assert done.stdout.splitlines() == ["GLOO_SOCKET_IFNAME=lo", "NCCL_SOCKET_IFNAME==lo", "MORE=1"]


def test_setup_keeps_the_variables_of_the_user(script: Path) -> None:
    assert setup(script, "127.0.0.1", GLOO_SOCKET_IFNAME="eth7").stdout.splitlines() == ["NCCL_SOCKET_IFNAME==lo"]


def test_setup_names_an_address_that_the_machine_does_not_have(script: Path) -> None:
    done = setup(script, "192.0.2.77", "echo", "MORE=1")
    assert done.stdout.splitlines() == ["MORE=1"]
    assert "192.0.2.77" in done.stderr and "hosts" in done.stderr


def test_setup_passes_on_the_code_of_the_other_command(script: Path) -> None:
    assert setup(script, "127.0.0.1", "false").returncode == 1


def test_rank_is_ended_if_the_first_machine_is_lost_before_a_health_check(
    script: Path, leader: socket.socket, tmp_path: Path
) -> None:
    port = str(leader.getsockname()[1])
    leader.listen()
    leader.settimeout(30)
    with subprocess.Popen([sys.executable, "-c", RANK, port]) as rank:
        try:
            connection = leader.accept()[0]
            env = os.environ | {"STACKGEN_READY_FILE": str(tmp_path / "ready")}
            watch = [sys.executable, str(script), "watch", "127.0.0.1", port, "2", str(rank.pid)]
            with subprocess.Popen(watch, env=env, stderr=subprocess.PIPE, text=True) as process:
                time.sleep(5)
                assert process.poll() is None
                connection.close()
                assert process.communicate(timeout=30)[1].count("no connection to the first machine") == 1
            assert rank.wait(timeout=30) == -15
        finally:
            rank.kill()


def test_rank_starts_when_the_first_machine_listens_and_is_ended_when_it_is_lost(
    script: Path, leader: socket.socket, tmp_path: Path
) -> None:
    port = str(leader.getsockname()[1])
    ready, log = tmp_path / "ready", tmp_path / "log"
    python = f"{sys.executable} {script}"
    env = os.environ | {"STACKGEN_READY_FILE": str(ready), "STACKGEN_HANG_FILE": str(tmp_path / "hang"),
                        "STACKGEN_WATCH": f"{python} watch 127.0.0.1 {port} 2"}  # fmt: skip
    command = ["/bin/sh", str(SUPERVISE), sys.executable, str(script), "run", "127.0.0.1", port, sys.executable, "-c",
               RANK, port]  # fmt: skip
    with log.open("w") as file, subprocess.Popen(command, env=env, stdout=file, stderr=file) as process:
        try:
            time.sleep(1)
            assert process.poll() is None
            leader.listen()
            leader.settimeout(30)
            # of `run`, which closes it, and of the rank
            leader.accept()[0].close()
            connection = leader.accept()[0]
            check = [sys.executable, str(script.with_name("group_health.py")), "127.0.0.1", port]
            assert subprocess.run(check, env=env, timeout=30, check=False).returncode == 0
            assert ready.exists()
            time.sleep(3)
            assert "no connection" not in log.read_text()
            # the first machine ends: the rank doesn't notice, and waits forever
            connection.close()
            leader.accept()[0].close()
            text = log.read_text()
            assert f"no connection to the first machine (127.0.0.1 port {port})" in text
            assert "was healthy and ended" in text and "starting it again" in text
            leader.accept()[0].close()
        finally:
            process.terminate()
    assert process.returncode == 143
