"""A replica that hangs is restarted, and one that is slow, busy or idle is not: supervise.sh with watch.py."""

from __future__ import annotations

import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.engines.replica import ROOT, SECONDS, is_running, running, wait_until, watch_command

# monitoring's tests compare its names with dashboards and alerts
RECORDING = ROOT / "tests/resolve/addons/recordings/watch-metrics.txt"


def names_of(metrics: str) -> set[str]:
    """The series, with their labels and without values."""
    return {line.rpartition(" ")[0] for line in metrics.splitlines() if not line.startswith("#")}


@pytest.mark.side_by_side
def test_a_stopped_engine_process_is_found_ended_and_restarted_with_evidence(tmp_path: Path) -> None:
    with running(tmp_path) as replica:
        stopped, web = replica.engine_pid(), replica.server_pid()
        os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda: replica.restarts() == 1)
        assert replica.quiet_seconds() <= 3 * SECONDS
        assert not is_running(stopped)
        assert not is_running(web)
        wait_until(lambda: replica.ready.exists() and replica.hang.with_suffix(".last").exists())
        assert replica.engine_pid() != stopped
        # the counters start again at 0, which is no hang
        time.sleep(2 * SECONDS)
        assert replica.restarts() == 1
    first = next(line for line in replica.log.splitlines() if line.startswith("stackgen: the service hangs: "))
    assert f"process {stopped} (" in first
    assert first.endswith("is stopped")
    assert f"stackgen: hang: process {stopped} (" in replica.log
    assert "stackgen: hang: vllm:num_requests_running" in replica.log
    assert first.removeprefix("stackgen: ") in replica.hang.with_suffix(".last").read_text()


@pytest.mark.side_by_side
def test_a_stopped_process_is_found_while_another_computes(tmp_path: Path) -> None:
    """As two ranks of vLLM do: one is stopped, and the other one uses the CPU while it waits."""
    with running(tmp_path) as replica:
        stopped = replica.engine_pid()
        replica.get("/spin")
        os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda: replica.restarts() == 1)
        assert replica.quiet_seconds() <= 3 * SECONDS
    assert re.search(rf"process {stopped} \(.*\) is stopped", replica.log)


@pytest.mark.side_by_side
def test_hangs_are_metrics_that_outlive_them(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def metrics() -> str:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
        return ""

    with running(tmp_path, STACKGEN_WATCH_PORT=str(port)) as replica:
        wait_until(metrics)
        recorded = RECORDING.read_text("utf-8")
        assert names_of(metrics()) == names_of(recorded)
        assert 'stackgen_replica_hangs_total{reason="stopped"} 0' in metrics()
        os.kill(replica.engine_pid(), signal.SIGSTOP)
        wait_until(lambda: replica.restarts() == 1)
        wait_until(lambda: 'stackgen_replica_hangs_total{reason="stopped"} 1' in metrics())
        assert 'stackgen_replica_hangs_total{reason="asleep"} 0' in metrics()


@pytest.mark.side_by_side
def test_a_deadlock_is_found_and_its_python_stack_is_logged(tmp_path: Path) -> None:
    with running(tmp_path) as replica:
        request = replica.start_request("hang 0")
        wait_until(lambda: replica.restarts() == 1)
        request.join()
    assert "1 requests running and 0 waiting, no answer to a request for one token, its processes are asleep" in (
        replica.log
    )
    assert "Fatal Python error: Aborted" in replica.log
    assert "in wait_forever" in replica.log


@pytest.mark.side_by_side
def test_a_deadlock_in_the_middle_of_a_long_computation_is_found(tmp_path: Path) -> None:
    with running(tmp_path) as replica:
        request = replica.start_request(f"hang {3 * SECONDS}")
        began = time.monotonic()
        wait_until(lambda: replica.restarts() == 1)
        # it computes, then sleeps long enough
        assert time.monotonic() - began > 3.5 * SECONDS
        request.join()
    assert "its processes are asleep" in replica.log
    # the computation does not count as waiting, and does not delay the verdict either
    assert replica.quiet_seconds() <= 3 * SECONDS


@pytest.mark.side_by_side
def test_a_stopped_web_server_is_found(tmp_path: Path) -> None:
    with running(tmp_path) as replica:
        os.kill(replica.server_pid(), signal.SIGSTOP)
        wait_until(lambda: replica.restarts() == 1)


# an answer with an error is an answer too
@pytest.mark.side_by_side
@pytest.mark.parametrize("environment", [{}, {"REFUSES": "1"}])
def test_an_idle_replica_is_left_alone(environment: dict[str, str], tmp_path: Path) -> None:
    with running(tmp_path, **environment) as replica:
        time.sleep(4 * SECONDS)
        assert "hang" not in replica.log


@pytest.mark.side_by_side
def test_a_long_computation_without_a_token_is_no_hang(tmp_path: Path) -> None:
    with running(tmp_path) as replica:
        pid = replica.engine_pid()
        request = replica.start_request(f"compute {4 * SECONDS}")
        request.join()
        assert replica.engine_pid() == pid
        assert "hang" not in replica.log


@pytest.mark.side_by_side
def test_a_computation_that_exceeds_all_patience_is_a_hang(tmp_path: Path) -> None:
    with running(tmp_path, STACKGEN_HANG_PATIENCE="2") as replica:
        request = replica.start_request("compute 60")
        wait_until(lambda: replica.restarts() == 1)
        request.join()
    assert "its processes compute without a result" in replica.log


@pytest.mark.side_by_side
def test_a_saturated_engine_that_answers_no_probe_is_no_hang(tmp_path: Path) -> None:
    with running(tmp_path) as replica:
        pid = replica.engine_pid()
        request = replica.start_request(f"tokens {round(4 * SECONDS / 0.2)}")
        request.join()
        assert replica.engine_pid() == pid
        assert "hang" not in replica.log


@pytest.mark.side_by_side
def test_a_container_that_was_paused_is_no_hang(tmp_path: Path) -> None:
    with running(tmp_path) as replica:
        os.killpg(replica.process.pid, signal.SIGSTOP)
        time.sleep(2 * SECONDS)
        os.killpg(replica.process.pid, signal.SIGCONT)
        time.sleep(2 * SECONDS)
        assert "hang" not in replica.log


@pytest.mark.side_by_side
def test_a_model_in_sleep_mode_is_no_hang(tmp_path: Path) -> None:
    with running(tmp_path, SLEEPS="1") as replica:
        replica.start_request("hang 0")
        time.sleep(3 * SECONDS)
        assert "hang" not in replica.log
        os.kill(replica.server_pid(), signal.SIGKILL)


@pytest.mark.side_by_side
def test_nothing_is_watched_before_the_service_is_healthy(tmp_path: Path) -> None:
    with running(tmp_path) as replica:
        # as in a start: the health check has not passed yet
        replica.ready.unlink()
        os.kill(replica.server_pid(), signal.SIGKILL)
        replica.process.wait(timeout=10)
        assert "was never healthy" in replica.log


@pytest.mark.parametrize("engine", ["vllm", "fastchat", "llamacpp"])
def test_a_service_that_ends_at_once_ends_the_container_also_if_the_signal_to_its_watch_is_lost(
    engine: str, tmp_path: Path
) -> None:
    watch = watch_command(tmp_path, engine, 1)
    files = {"STACKGEN_READY_FILE": str(tmp_path / "ready"), "STACKGEN_HANG_FILE": str(tmp_path / "hang")}
    # a shell drops a signal that arrives in the first moment of a child; an ignored signal has the same effect
    command = ["env", "--ignore-signal=TERM", "sh", str(ROOT / "templates/images/common/supervise.sh")]
    done = subprocess.run(
        [*command, "no-such-program"], env={**os.environ, **files, "STACKGEN_WATCH": watch},
        capture_output=True, text=True, timeout=15,
    )  # fmt: skip
    assert done.returncode == 127
    assert "the service ended with code 127 after" in done.stderr and "was never healthy" in done.stderr


@pytest.mark.side_by_side
def test_the_third_hang_within_an_hour_ends_the_container(tmp_path: Path) -> None:
    with running(tmp_path) as replica:
        for number in (1, 2, 3):
            os.kill(replica.engine_pid(), signal.SIGSTOP)
            wait_until(lambda: not replica.ready.exists() or replica.process.poll() is not None)
            assert replica.log.count("the service hangs: ") == number
            wait_until(lambda: replica.ready.exists() or replica.process.poll() is not None)
        assert replica.process.wait(timeout=20) == 1
    assert replica.log.splitlines()[-1] == (
        'stackgen: the service hung 3 times within an hour: giving up. "the service hangs" above shows why'
    )


@pytest.mark.side_by_side
def test_a_stop_ends_the_watch_first(tmp_path: Path) -> None:
    with running(tmp_path) as replica:
        os.kill(replica.process.pid, signal.SIGTERM)
        assert replica.process.wait(timeout=10) == 143
        assert "hang" not in replica.log


class Sleeper:
    """A process of 25 s in which only one thing changes per second; `state` is that of its one thread."""

    pid, title = 7, "VLLM::EngineCore"

    def __init__(self, second: int, cores: float = 0.0, faults: int = 0, state: str = "S") -> None:
        self.cpu_seconds, self.major_faults, self.state = 100 + cores * second, 9 + faults * second, state

    def threads(self) -> list[tuple[str, str, Path]]:
        return [("python3", self.state, Path())]


def is_asleep(monkeypatch: pytest.MonkeyPatch, gpu: bool | None = False, **process: Any) -> bool:
    """The verdict of the watch on 25 s of a process."""
    monkeypatch.syspath_prepend(str(ROOT / "templates/images/common"))
    activity = importlib.import_module("watch").Activity(25)
    for second in range(0, 30, 2):
        sleeper = Sleeper(second, **process)
        activity.add(float(second), [sleeper], [sleeper])
    activity.samples[-1]["gpu"] = gpu
    return bool(activity.is_asleep())


def test_what_uses_a_device_is_not_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_asleep(monkeypatch)
    # threads that wake up now and then
    assert is_asleep(monkeypatch, cores=0.02)
    assert not is_asleep(monkeypatch, cores=0.1)
    # memory that is swapped in: little CPU time, and threads that wait for the disk
    assert not is_asleep(monkeypatch, faults=20)
    assert not is_asleep(monkeypatch, state="D")
    # starved by other programs: it would run, but gets no CPU time
    assert not is_asleep(monkeypatch, state="R")
    # a long kernel on the GPU, for which the process waits asleep; and a GPU whose load nothing shows
    assert not is_asleep(monkeypatch, gpu=True)
    assert not is_asleep(monkeypatch, gpu=None)


@pytest.mark.parametrize("script", ["watch.py", "watch_metrics.py", "watch_processes.py"])
def test_the_watch_runs_with_the_standard_library_of_python_3_10(script: str) -> None:
    text = (ROOT / "templates/images/common" / script).read_text()
    compile(text, script, "exec")
    imported = {
        line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))
    }
    assert imported <= set(sys.stdlib_module_names) | {"watch_metrics", "watch_processes"}
