"""Keeps a stack's services running as local processes: started in order, probed, brought back, stopped together.

    python -m stackgen.runtimes.process.supervisor STATE_DIR      reads its tasks as JSON from standard input

It does what Docker, Compose and `supervise.sh` do for containers. The tasks hold keys, so they come through a pipe
and are written nowhere. Only the standard library is used: this process lives as long as the stack does.
In STATE_DIR: state.json (replaced as a whole), lock (held while this runs), logs/SERVICE.log, ready/SERVICE.
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

from stackgen.runtimes.process.procfs import kill_group, start_time
from stackgen.runtimes.process.task import Probe, Task

__all__ = ["AGAIN", "BUSY"]

BUSY = 4
# The line of a log that parts one start from the next
AGAIN = "starting it again in"
TICK = 0.1


class Keeper:
    """One service's life. `state` is waiting, running, restarting or exited; `health` is "" without a probe."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.folder = task, folder
        self.log = folder / "logs" / f"{task.name}.log"
        self.ready_file = folder / "ready" / task.name
        self.state, self.health, self.said = "waiting", "", ""
        self.process: subprocess.Popen[bytes] | None = None
        self.probing: subprocess.Popen[bytes] | None = None
        self.exit_code: int | None = None
        self.born = self.resume = self.next_probe = self.probe_end = 0.0
        self.start = self.restarts = self.failed_starts = self.failures = 0
        self.was_healthy, self.pause = False, 1.0

    def reached(self, condition: str) -> bool:
        """Whether a service that waits for `condition` of this one may start."""
        if condition == "service_completed_successfully":
            return self.state == "exited" and self.exit_code == 0
        return self.state == "running" and (condition == "service_started" or self.health in ("healthy", ""))

    def tick(self, others: dict[str, Keeper]) -> None:
        """Does what is due now; never waits."""
        now = time.monotonic()
        cleared = self.state == "waiting" and all(others[name].reached(c) for name, c in self.task.after.items())
        if cleared or (self.state == "restarting" and now >= self.resume):
            self._begin(now)
        elif self.process is not None and (code := self.process.poll()) is not None:
            self._ended(code if code >= 0 else 128 - code, now)
        elif self.state == "running" and self.task.probe:
            self._check(self.task.probe, now)

    def _begin(self, now: float) -> None:
        self.ready_file.unlink(missing_ok=True)
        self.state, self.health, self.exit_code = "running", "starting" if self.task.probe else "", None
        self.was_healthy, self.failures, self.born, self.next_probe = False, 0, now, now + 1
        try:
            self.process = self._spawn(self.task.argv, self.log, "ab")
        except OSError as error:
            self._say(f"cannot start {self.task.argv[0]}: {error.strerror}")
            self._ended(127, now)
            return
        self.start = start_time(self.process.pid) or 0
        if self.task.cpus:  # at once, so that the threads to come inherit it
            with suppress(OSError):
                os.sched_setaffinity(self.process.pid, self.task.cpus)

    def _spawn(self, argv: list[str], output: Path, mode: str) -> subprocess.Popen[bytes]:
        home = self.folder / "home"
        with output.open(mode) as log:  # appending, so that the file may be cut while it is written to
            return subprocess.Popen(
                argv, env=self.task.environment, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _ended(self, code: int, now: float) -> None:
        """A start that never got healthy is tried a few times; a service that was healthy always comes back."""
        self._clear()
        lived, self.health = now - self.born, ""
        if self.task.once and code == 0:
            self.state, self.exit_code = "exited", 0
            return
        code = code or 1  # vLLM ends with 0 when its engine dies: for a service that is a failure too
        self.exit_code = code
        if self.was_healthy:
            # one that dies again and again is started less and less often, up to once a minute
            pause = self.pause = 1.0 if lived > 300 else self.pause
            self.pause = min(60.0, 2 * pause)
            why = "was healthy and"
        else:
            self.failed_starts += 1
            if 0 <= self.task.tries < self.failed_starts:
                self._say(f"ended with code {code} after {lived:.0f} s, start {self.failed_starts}: it stays down")
                self.state = "exited"
                return
            pause, why = min(2.0 ** (self.failed_starts - 1), 60.0), "was never healthy and"
        self._say(f"the service {why} ended with code {code} after {lived:.0f} s: {AGAIN} {pause:.0f} s")
        self.state, self.resume = "restarting", now + pause
        self.restarts += 1

    def _clear(self) -> None:
        if self.process:
            kill_group(self.process.pid, signal.SIGKILL)  # an engine's workers may outlive it, and hold its memory
        if self.probing:
            kill_group(self.probing.pid, signal.SIGKILL)
            self.probing.wait()
        self.process = self.probing = None

    def _check(self, probe: Probe, now: float) -> None:
        if self.probing is None:
            if now >= self.next_probe:
                try:
                    self.probing = self._spawn(probe.command, self.log.with_suffix(".health"), "wb")
                except OSError:
                    self._probed(probe, False, now)
                self.probe_end = now + probe.timeout
            return
        code = self.probing.poll()
        if code is None and now > self.probe_end:
            kill_group(self.probing.pid, signal.SIGKILL)
            code = self.probing.wait()
        if code is not None:
            self.probing = None
            self._probed(probe, code == 0, now)

    def _probed(self, probe: Probe, passed: bool, now: float) -> None:
        starting = not self.was_healthy and now - self.born < probe.start_period
        if passed:
            self.health, self.failures, self.failed_starts, self.was_healthy = "healthy", 0, 0, True
        elif not starting:
            self.failures += 1
            if self.failures >= probe.retries:
                self.health = "unhealthy"
        self.next_probe = now + (probe.start_interval if starting and not passed else probe.interval)

    def signal(self, number: int) -> None:
        """Sends `number` to all processes of the service."""
        if self.process:
            kill_group(self.process.pid, number)

    def stopped(self) -> bool:
        """Whether nothing of the service runs; takes its exit code where it has just ended."""
        if self.process is not None and (code := self.process.poll()) is not None:
            self._clear()
            self.exit_code = code if code >= 0 else 128 - code
        if self.process is None and self.state != "exited":
            self.state, self.health = "exited", ""
        return self.process is None

    def grace(self) -> float:
        """Seconds from SIGTERM to SIGKILL: few while it starts, as vLLM hears nothing then and answers nobody."""
        return self.task.grace if self.was_healthy else min(self.task.grace, 5.0)

    def rotate(self) -> None:
        """Moves a full log aside; what is written between copying and cutting is lost, as with `copytruncate`."""
        with suppress(FileNotFoundError):
            if self.log.stat().st_size <= self.task.log_bytes:
                return
            names = [self.log, *(Path(f"{self.log}.{number}") for number in range(1, self.task.log_files))]
            for older, newer in zip(names[:1:-1], names[-2:0:-1], strict=True):
                with suppress(FileNotFoundError):
                    newer.replace(older)
            if len(names) > 1:
                shutil.copyfile(self.log, names[1])
            os.truncate(self.log, 0)

    def snapshot(self) -> dict[str, Any]:
        """What others may know of the service: no environment, and no command line."""
        return {
            "service": self.task.name, "role": self.task.role, "state": self.state, "health": self.health,
            "restarts": self.restarts, "exit_code": self.exit_code, "ports": self.task.ports, "grace": self.task.grace,
            "pid": self.process.pid if self.process else None, "start": self.start, "ready": str(self.ready_file),
        }  # fmt: skip

    def _say(self, text: str) -> None:
        with self.log.open("a") as log:
            log.write(f"stackgen: {text}\n")


def keep(tasks: Iterable[Task], folder: Path) -> None:
    """Runs `tasks` until SIGTERM or SIGINT, then stops them all, the dependent ones first."""
    keepers = {task.name: Keeper(task, folder) for task in tasks}
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, lambda number, frame: None)  # ignoring it would be inherited by the services
    me = {"pid": os.getpid(), "start": start_time(os.getpid())}
    written: list[dict[str, Any]] = []
    turn = 0

    def save() -> None:
        nonlocal written
        now = [keeper.snapshot() for keeper in keepers.values()]
        if now != written:
            draft = folder / f".state.{os.getpid()}"
            draft.write_text(json.dumps({"version": 1, "supervisor": me, "services": now}, indent=2))
            draft.replace(folder / "state.json")
            written = now

    try:
        while not stopping:
            for keeper in keepers.values():
                keeper.tick(keepers)
                save()  # at once: whoever finds this process dead must find its children
            turn += 1
            if turn % 10 == 0:
                for keeper in keepers.values():
                    keeper.rotate()
            time.sleep(TICK)
    finally:
        _stop_all(keepers)
        save()


def _stop_all(keepers: dict[str, Keeper]) -> None:
    ends: dict[str, float] = {}
    while left := {name for name, keeper in keepers.items() if not keeper.stopped()}:
        for name in left:
            if name in ends:
                if time.monotonic() > ends[name]:
                    keepers[name].signal(signal.SIGKILL)
            elif not any(name in keepers[other].task.after for other in left):
                keepers[name].signal(signal.SIGTERM)
                ends[name] = time.monotonic() + keepers[name].grace()
        time.sleep(TICK / 2)


def main(words: list[str]) -> int:
    """Runs the tasks from standard input; BUSY where another supervisor holds the folder."""
    folder = Path(words[0])
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return BUSY
        for name in ("logs", "ready", "home"):
            (folder / name).mkdir(exist_ok=True)
        # what the last start said must not be taken for this one's words
        for old in (folder / "state.json", *(folder / "logs").iterdir()):
            if old.name != "supervisor.log":
                old.unlink(missing_ok=True)
        keep([Task.from_json(data) for data in json.load(sys.stdin)], folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
