"""Which replicas are drained, since when and by which command; and how a drain ends if its command is killed.

A killed command can't undo its drain. Therefore, each drain is written to `.stackgen/drained.json` before it begins,
and it is a lease: the command renews a file in the gateway's container, and the gateway's own health check
(templates/gateway/health.sh) enables the replica again once that file has expired.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from stackgen.errors import StackgenError
from stackgen.render.read import read_regular
from stackgen.render.write import write_atomically
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.haproxy_api import execute
from stackgen.runtimes.compose.lifecycle import connect

__all__ = ["DRAINS_FILE", "LEASES", "LEASE_SECONDS", "Drain", "forget_drains", "read_drains", "record_drain"]

DRAINS_FILE = ".stackgen/drained.json"
LEASE_SECONDS = 60
# several renewals may fail on a busy machine before a lease expires
RENEWAL_SECONDS = 10.0
# First line: when the lease expires. The clock of the container counts, because health.sh reads it too. Second line:
# since when the replica is drained, for the metrics (drains.lua). `mv`: both read the file at any moment
WRITE_LEASE = (
    'mkdir -p /tmp/drained && cd /tmp/drained && printf "%s\\n" $(($(date +%s) + $1)) "$3" >".$2" && mv ".$2" "$2"'
)
REMOVE_LEASES = 'cd /tmp/drained 2>/dev/null && rm -f "$@" || true'


@dataclass(frozen=True, slots=True)
class Drain:
    """A drained replica. `since`: seconds since 1970, 0 if unknown; `pid` is 0 if stackgen did not drain it."""

    replica: str
    since: float = 0.0
    command: str = ""
    pid: int = 0

    @property
    def is_left_over(self) -> bool:
        """Whether stackgen drained the replica, and the process that did it no longer exists."""
        if not self.pid or self.pid == os.getpid():
            # this process is running another command by now
            return bool(self.pid)
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        # a process of another user
        except OSError:
            return False
        return False

    def describe(self) -> str:
        """Returns `drained since 2026-11-28 17:05:21 by stackgen update (process 4711)`."""
        if not self.pid:
            return "drained, but not by stackgen"
        since = datetime.fromtimestamp(self.since).isoformat(" ", "seconds")
        return f"drained since {since} by {self.command} (process {self.pid})"


def read_drains(folder: Path) -> dict[str, Drain]:
    """Returns the recorded drains by replica. The record may be older than the gateway's state."""
    try:
        data = json.loads(read_regular(folder / DRAINS_FILE))
        drains = [Drain(str(name), float(one["since"]), str(one["command"]), int(one["pid"]))
                  for name, one in data.items()]  # fmt: skip
    # only information is lost with a broken file: the gateway knows what is drained, and its leases expire
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return {}
    return {drain.replica: drain for drain in drains}


def record_drain(folder: Path, replica: str) -> None:
    """Records that this process drains `replica`."""
    command = next((one for one in sys.argv[1:] if not one.startswith("-")), "")
    drain = Drain(replica, time.time(), f"stackgen {command}".rstrip(), os.getpid())
    _write(folder, read_drains(folder) | {replica: drain})


def forget_drains(folder: Path, *replicas: str) -> None:
    """Removes the record of `replicas`, or without arguments of all replicas."""
    drains = read_drains(folder)
    kept = {name: drain for name, drain in drains.items() if replicas and name not in replicas}
    if len(kept) < len(drains):
        _write(folder, kept)


def _write(folder: Path, drains: dict[str, Drain]) -> None:
    # a stack's folder that can't be written to, or that is on another machine: the lease is enough to end the drain
    with suppress(OSError):
        if drains and folder.is_dir():
            write_atomically(folder / DRAINS_FILE, json.dumps({one: asdict(drain) for one, drain in drains.items()}))
        elif not drains:
            (folder / DRAINS_FILE).unlink(missing_ok=True)


class _Leases:
    """The leases of this process. A thread renews them until they are released or the process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # by replica: the id of the gateway's container, and since when it is held (seconds since 1970)
        self._held: dict[str, tuple[str, int]] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, container: Any, replica: str) -> None:
        """Writes the lease of `replica` into the gateway's `container`, and renews it from now on."""
        with self._lock:
            self._held[replica] = (container.id, int(time.time()))
            execute(container, _lease_command(replica, self._held[replica][1]))
            if self._thread is None:
                # a daemon thread ends with the process, also with one that fails
                self._thread = threading.Thread(target=self._renew, daemon=True)
                self._thread.start()

    def release(self, container: Any, *replicas: str) -> None:
        """Removes the leases of `replicas` from the gateway's `container`."""
        with self._lock:
            for replica in replicas:
                self._held.pop(replica, None)
            if replicas:
                execute(container, ("bash", "-c", REMOVE_LEASES, "-", *replicas))

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL_SECONDS):
            with self._lock:
                if not self._held:
                    self._thread = None
                    return
                for replica, (container, since) in self._held.items():
                    # the next renewal may succeed: the gateway can be restarting
                    with suppress(StackgenError, OSError, sdk().errors.DockerException):
                        # a client of its own: two threads can't share a connection
                        execute(connect().containers.get(container), _lease_command(replica, since))


LEASES = _Leases()


def _lease_command(replica: str, since: int) -> tuple[str, ...]:
    return ("bash", "-c", WRITE_LEASE, "-", str(LEASE_SECONDS), replica, str(since))
