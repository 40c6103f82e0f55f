"""Runs a stack's services as local processes: starts them in order, probes, restarts and stops them.

    python -m stackgen.runtimes.process.supervisor STATE_DIR      reads its tasks as JSON from standard input

The supervisor does what Docker, Compose and `supervise.sh` do for containers. The tasks contain keys, so they come
through a pipe and are never written to disk. This module uses only the standard library, because it runs as long as the
stack.
STATE_DIR has state.json (always replaced as a whole), lock (held while this runs), logs/SERVICE.log, ready/SERVICE.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stackgen.runtimes.process.procfs import signal_group, start_time
from stackgen.runtimes.process.task import Probe, Task

__all__ = ["EXIT_BUSY", "RESTART_MARKER"]

# exit code: another supervisor already runs this stack
EXIT_BUSY = 4
# separates one start from the next in a service's log; `up` and diagnose search for it
RESTART_MARKER = "starting it again in"
TICK = 0.1


class ServiceRunner:
    """Runs one service. `state` is waiting, running, restarting or exited; `health` is "" without a probe."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.folder = task, folder
        self.log = folder / "logs" / f"{task.name}.log"
        self.ready_file = folder / "ready" / task.name
        self.state, self.health = "waiting", ""
        self.process: subprocess.Popen[bytes] | None = None
        self.probe_process: subprocess.Popen[bytes] | None = None
        self.exit_code: int | None = None
        # time.monotonic(), seconds
        self.started_at = self.restart_at = self.next_probe = self.probe_deadline = 0.0
        self.start_ticks = self.restarts = self.failed_starts = self.failed_probes = 0
        self.was_healthy, self.backoff = False, 1.0

    def satisfies(self, condition: str) -> bool:
        """Whether a service that depends on this one with Compose's `condition` may start."""
        if condition == "service_completed_successfully":
            return self.state == "exited" and self.exit_code == 0
        return self.state == "running" and (condition == "service_started" or self.health in ("healthy", ""))

    def tick(self, runners: dict[str, ServiceRunner]) -> None:
        """Carries out all actions that are due, without blocking. `runners` are all services of the stack by name."""
        now = time.monotonic()
        may_start = self.state == "waiting" and all(
            # `exited`: the service stays down, because a service that is tried again is `restarting`
            runners[name].satisfies(condition) or (name in self.task.optional and runners[name].state == "exited")
            for name, condition in self.task.depends_on.items()
        )
        if may_start or (self.state == "restarting" and now >= self.restart_at):
            self._start(now)
        elif self.process is not None and (code := self.process.poll()) is not None:
            # a shell reports a signal as 128 + its number, and so does Docker
            self._handle_exit(code if code >= 0 else 128 - code, now)
        elif self.state == "running" and self.task.probe:
            self._run_probe(self.task.probe, now)

    def _start(self, now: float) -> None:
        self.ready_file.unlink(missing_ok=True)
        self.state, self.health, self.exit_code = "running", "starting" if self.task.probe else "", None
        self.was_healthy, self.failed_probes, self.started_at, self.next_probe = False, 0, now, now + 1
        try:
            self.process = self._spawn(self.task.argv, self.log, "ab")
        except OSError as error:
            self._log(f"cannot start {self.task.argv[0]}: {error.strerror}")
            # a shell uses 127 for "command not found"
            self._handle_exit(127, now)
            return
        self.start_ticks = start_time(self.process.pid) or 0
        if self.task.cpus:  # set at once, so that threads inherit it
            with suppress(OSError):
                os.sched_setaffinity(self.process.pid, self.task.cpus)

    def _spawn(self, argv: list[str], output: Path, mode: str) -> subprocess.Popen[bytes]:
        home = self.folder / "home"
        with output.open(mode) as log:  # append mode, so that the file can be truncated while it is written to
            # a session of its own: Ctrl-C in the terminal must not reach it, and its children can be found
            return subprocess.Popen(
                argv, env=self.task.environment, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _handle_exit(self, code: int, now: float) -> None:
        """Retries a start that never became healthy a few times. Always restarts a service that was healthy."""
        self._kill_leftovers()
        uptime, self.health = now - self.started_at, ""
        if self.task.one_shot and code == 0:
            self.state, self.exit_code = "exited", 0
            return
        code = code or 1  # vLLM exits with 0 when its engine dies, which is a failure of the service
        self.exit_code = code
        if self.was_healthy:
            # double the pause after each exit, up to a minute; an uptime of 5 minutes resets the pause
            pause = self.backoff = 1.0 if uptime > 300 else self.backoff
            self.backoff = min(60.0, 2 * pause)
            why = "was healthy and"
        else:
            self.failed_starts += 1
            if 0 <= self.task.max_retries < self.failed_starts:
                self._log(f"ended with code {code} after {uptime:.0f} s, start {self.failed_starts}: it stays down")
                self.state = "exited"
                return
            pause, why = min(2.0 ** (self.failed_starts - 1), 60.0), "was never healthy and"
        self._log(f"the service {why} ended with code {code} after {uptime:.0f} s: {RESTART_MARKER} {pause:.0f} s")
        self.state, self.restart_at = "restarting", now + pause
        self.restarts += 1

    def _kill_leftovers(self) -> None:
        if self.process:
            signal_group(self.process.pid, signal.SIGKILL)  # an engine's workers may outlive the engine
        if self.probe_process:
            signal_group(self.probe_process.pid, signal.SIGKILL)
            self.probe_process.wait()
        self.process = self.probe_process = None

    def _run_probe(self, probe: Probe, now: float) -> None:
        if self.probe_process is None:
            if now >= self.next_probe:
                try:
                    # overwritten by each probe, because the log of the last probe is enough to explain a failure
                    self.probe_process = self._spawn(probe.command, self.log.with_suffix(".health"), "wb")
                except OSError:
                    self._handle_probe_result(probe, False, now)
                self.probe_deadline = now + probe.timeout
            return
        code = self.probe_process.poll()
        if code is None and now > self.probe_deadline:
            signal_group(self.probe_process.pid, signal.SIGKILL)
            code = self.probe_process.wait()
        if code is not None:
            self.probe_process = None
            self._handle_probe_result(probe, code == 0, now)

    def _handle_probe_result(self, probe: Probe, passed: bool, now: float) -> None:
        # as in Docker: failures within the start period don't count
        starting = not self.was_healthy and now - self.started_at < probe.start_period
        if passed:
            self.health, self.failed_probes, self.failed_starts, self.was_healthy = "healthy", 0, 0, True
        elif not starting:
            self.failed_probes += 1
            if self.failed_probes >= probe.retries:
                self.health = "unhealthy"
        self.next_probe = now + (probe.start_interval if starting and not passed else probe.interval)

    def send_signal(self, number: int) -> None:
        """Sends signal `number` to all processes of the service."""
        if self.process:
            signal_group(self.process.pid, number)

    def reap(self) -> bool:
        """Whether no process of the service runs any more. Records the exit code if the service has just exited."""
        if self.process is not None and (code := self.process.poll()) is not None:
            self._kill_leftovers()
            self.exit_code = code if code >= 0 else 128 - code
        # a service that still waits, or waits for a restart, must not start any more
        if self.process is None and self.state != "exited":
            self.state, self.health = "exited", ""
        return self.process is None

    def grace_period(self) -> float:
        """Seconds from SIGTERM to SIGKILL. At most 5 during a start: vLLM ignores SIGTERM then and serves nobody."""
        return self.task.stop_grace_period if self.was_healthy else min(self.task.stop_grace_period, 5.0)

    def rotate_log(self) -> None:
        """Rotates a log that is too large. Lines between copy and truncation are lost (as with `copytruncate`)."""
        with suppress(FileNotFoundError):
            if self.log.stat().st_size <= self.task.log_bytes:
                return
            names = [self.log, *(Path(f"{self.log}.{number}") for number in range(1, self.task.log_files))]
            for older, newer in zip(names[:1:-1], names[-2:0:-1], strict=True):
                with suppress(FileNotFoundError):
                    newer.replace(older)
            # copied, not renamed: the service keeps the file open and would continue to write to the renamed file
            if len(names) > 1:
                shutil.copyfile(self.log, names[1])
            os.truncate(self.log, 0)

    def snapshot(self) -> dict[str, Any]:
        """The service's entry in state.json; without environment and command line, which may contain secrets."""
        return {
            "service": self.task.name, "role": self.task.role, "state": self.state, "health": self.health,
            "restarts": self.restarts, "exit_code": self.exit_code, "ports": self.task.ports,
            "grace": self.task.stop_grace_period, "pid": self.process.pid if self.process else None,
            "start": self.start_ticks, "ready": str(self.ready_file),
        }  # fmt: skip

    def _log(self, text: str) -> None:
        with self.log.open("a") as log:
            log.write(f"stackgen: {text}\n")


def run_services(tasks: Iterable[Task], folder: Path) -> None:
    """Runs `tasks` until SIGTERM or SIGINT, then stops them all, dependents first."""
    runners = {task.name: ServiceRunner(task, folder) for task in tasks}
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    # a handler instead of SIG_IGN, which the services would inherit
    signal.signal(signal.SIGHUP, lambda number, frame: None)
    supervisor = {"pid": os.getpid(), "start": start_time(os.getpid())}
    written: list[dict[str, Any]] = []
    ticks = 0

    def save() -> None:
        nonlocal written
        services = [runner.snapshot() for runner in runners.values()]
        if services != written:
            draft = folder / f".state.{os.getpid()}"
            draft.write_text(json.dumps({"version": 1, "supervisor": supervisor, "services": services}, indent=2))
            draft.replace(folder / "state.json")
            written = services

    try:
        while not stopping:
            for runner in runners.values():
                runner.tick(runners)
                save()  # after each service: if this process is killed, `down` finds its children by this file
            ticks += 1
            # once a second only, because it calls stat() for each log
            if ticks % 10 == 0:
                for runner in runners.values():
                    runner.rotate_log()
            time.sleep(TICK)
    finally:
        _stop_all(runners)
        save()


def _stop_all(runners: dict[str, ServiceRunner]) -> None:
    deadlines: dict[str, float] = {}
    while left := {name for name, runner in runners.items() if not runner.reap()}:
        for name in left:
            if name in deadlines:
                if time.monotonic() > deadlines[name]:
                    runners[name].send_signal(signal.SIGKILL)
            # a service is stopped after all services that depend on it have ended
            elif not any(name in runners[other].task.depends_on for other in left):
                runners[name].send_signal(signal.SIGTERM)
                deadlines[name] = time.monotonic() + runners[name].grace_period()
        time.sleep(TICK / 2)


def main(arguments: list[str]) -> int:
    """Runs the tasks from standard input; returns EXIT_BUSY if another supervisor holds the folder's lock."""
    folder = Path(arguments[0])
    # the kernel releases the lock when this process dies, however it dies
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return EXIT_BUSY
        for name in ("logs", "ready", "home"):
            (folder / name).mkdir(exist_ok=True)
        # state and logs of the previous run must not be mistaken for those of this run
        for old in (folder / "state.json", *(folder / "logs").iterdir()):
            if old.name != "supervisor.log":
                old.unlink(missing_ok=True)
        run_services([Task.from_json(data) for data in json.load(sys.stdin)], folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
