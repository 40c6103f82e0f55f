"""Replace HAProxy's worker in the gateway's container without losing a request, one command at a time.

Source: HAProxy 3.2's management guide, 4 "Stopping and restarting HAProxy": in master-worker mode SIGUSR2 reloads. The
new worker takes over the sockets; the old one finishes its requests first.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stackgen.errors import StartError
from stackgen.runtimes.compose.haproxy_api import LOGS_HINT, RUNTIME_API, RuntimeApi, execute

__all__ = ["LOCK_TIMEOUT", "Worker", "lock_gateway", "wait_for", "wait_or_raise"]

# the path of `server-state-file` in haproxy.cfg
SERVER_STATE_FILE = "/tmp/servers.state"
# the start script computes the real hash; a configuration check only needs the variable to exist
CHECK_CONFIG = (
    "sh", "-c", "export STACKGEN_KEY_HASH=0; cd /gateway; haproxy -c -f haproxy.cfg && haproxy -c -f large.cfg",
)  # fmt: skip
# the number of processes that a reload does not replace: two masters, and the worker for large bodies
OTHER_PROCESSES = 3
RELOAD_TIMEOUT = 30.0
LOCK_FILE = ".stackgen/gateway.lock"
# several commands may wait for their turn
LOCK_TIMEOUT = 4 * RELOAD_TIMEOUT


class Worker:
    """The process that serves the clients. The caller holds `lock_gateway` while it replaces the worker."""

    def __init__(self, container: Any, api: RuntimeApi) -> None:
        self._container, self._api = container, api

    def restart(self) -> None:
        """Restarts the container after in-flight requests have ended, which also renews its mounts."""
        # 10 s is Docker's default
        grace = int(self._container.attrs["Config"].get("StopTimeout") or 10)
        self._container.restart(timeout=grace)
        wait_or_raise(self._is_responding, RELOAD_TIMEOUT, "the gateway did not answer after its restart")

    def reload(self) -> None:
        """Starts a new worker. Raises StartError if HAProxy rejects the configuration, which changes nothing."""
        code, output = execute(self._container, CHECK_CONFIG)
        if code:
            lines = [line for line in output.splitlines() if "ALERT" in line or "error" in line.lower()][:6]
            raise StartError(
                "the gateway rejected its new configuration and keeps the old configuration\n"
                + "\n".join(f"  | {line[:300]}" for line in lines or output.splitlines()[-3:]),
                "fix the files in gateway/, or run `stackgen render --force`. Otherwise, the gateway can't start "
                "again",
            )
        worker_pid = self._api.info("Pid")
        # a new worker has no addresses until DNS answers: without this file, it would refuse requests until then
        execute(self._container, ("bash", "-c", f"{RUNTIME_API} >{SERVER_STATE_FILE}", "-", "show servers state"))
        # not `docker kill`, which marks the container as stopped by the user: Docker would not restart it after a crash
        execute(self._container, ("bash", "-c", "kill -USR2 1"))
        wait_or_raise(
            lambda: self._has_new_worker(worker_pid), RELOAD_TIMEOUT, "the gateway did not load its new configuration"
        )
        # a later reload by hand must not read outdated states
        execute(self._container, ("rm", "-f", SERVER_STATE_FILE))

    def wait_for_old(self, timeout: float, on_poll: Callable[[], None]) -> bool:
        """Waits until workers of earlier configurations have ended their requests; False after `timeout` seconds."""
        return wait_for(lambda: self._count_workers() <= 1, timeout, on_poll)

    def _has_new_worker(self, old_pid: str) -> bool:
        try:
            # while the old and the new worker listen, either may answer
            return all(self._api.info("Pid", patience=0) != old_pid for _ in range(3))
        # between the old and the new worker, nobody answers
        except StartError:
            return False

    def _is_responding(self) -> bool:
        try:
            return bool(self._api.info("Pid", patience=0))
        except StartError:
            return False

    def _count_workers(self) -> int:
        """The workers of the first process, which serves the clients."""
        # masters and workers all have the same name, so the number of other processes is subtracted
        _, output = execute(self._container, ("bash", "-c", "cat /proc/[0-9]*/comm 2>/dev/null"))
        return output.split().count("haproxy") - OTHER_PROCESSES


@contextmanager
def lock_gateway(folder: Path, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Waits until no other command changes the gateway of the stack in `folder`, and excludes others meanwhile.

    Two reloads at once would lose requests, and a state that is set during a reload. Raises StartError after
    `timeout` seconds.
    """
    path = folder / LOCK_FILE
    try:
        path.parent.mkdir(exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    # a stack on another machine, or a folder that this user can't write to
    except OSError:
        yield
        return
    try:
        wait_or_raise(lambda: _try_lock(handle), timeout, "another command has not finished its change of the gateway")
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for(condition: Callable[[], bool], timeout: float, on_poll: Callable[[], None] = lambda: None) -> bool:
    """Waits until `condition` holds; False after `timeout` seconds. Calls `on_poll` in between."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        on_poll()
        time.sleep(0.3)
    return True


def wait_or_raise(condition: Callable[[], bool], timeout: float, message: str) -> None:
    """Waits until `condition` holds. Raises StartError with `message` after `timeout` seconds."""
    if not wait_for(condition, timeout):
        raise StartError(f"{message} within {timeout:.0f} s", LOGS_HINT)
