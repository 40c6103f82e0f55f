"""HAProxy's runtime API in the gateway's container: states of replicas, and the entries of a map.

The API listens only inside the container, so commands go through `exec`. Source: HAProxy 3.2's management guide, 9.3
("show stat", "show servers state", "show map", "set server", "add map").
"""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stackgen.errors import StartError
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.docker_sdk import sdk

__all__ = ["LOGS_HINT", "PATIENCE", "RUNTIME_API", "RuntimeApi", "Server", "execute"]

# bash opens the connection, as in templates/gateway/health.sh, because the image has no curl
RUNTIME_API = "exec 3<>/dev/tcp/127.0.0.1/8406 && printf '%s\\n' \"$1\" >&3 && cat <&3"
LOGS_HINT = f"run `stackgen logs {SERVICE}` for details"
# seconds without an answer: during a reload, the old worker has closed its socket before the new one listens
PATIENCE = 10.0
# HAProxy reads a command line into one buffer of 16 KB
MAX_LINE = 8000
# SRV_ADMF_FDRAIN in HAProxy 3.2, include/haproxy/server-t.h
FORCED_DRAIN = 0x08
MAP_ENTRY = re.compile(r"(?m)^0x[0-9a-f]+ (\S+) (.*)$")


@dataclass(frozen=True, slots=True)
class Server:
    """A replica as one backend of the gateway sees it.

    `status` is HAProxy's: UP, DOWN, DRAIN, MAINT, …; `in_flight` counts active and queued requests.
    """

    backend: str
    name: str
    status: str
    in_flight: int


def execute(container: Any, args: tuple[str, ...]) -> tuple[int, str]:
    """Runs `args` inside a container. Returns the exit code and all output."""
    try:
        code, output = container.exec_run(list(args))
    # the container is gone, or not running
    except sdk().errors.APIError as error:
        return 1, str(error.explanation or error)
    return int(code or 0), output.decode(errors="replace")


class RuntimeApi:
    """The runtime API of one gateway's container. Every method raises StartError if HAProxy does not answer.

    `patience`: how many seconds a command is tried again, unless the method has an argument for it.
    """

    def __init__(self, container: Any, patience: float = PATIENCE) -> None:
        self._container, self._patience = container, patience

    def send(self, command: str, patience: float | None = None, start: str = "") -> str:
        """Sends a command and returns its answer, which begins with `start`. Tries again for `patience` seconds."""
        deadline = time.monotonic() + (self._patience if patience is None else patience)
        while True:
            code, output = execute(self._container, ("bash", "-c", RUNTIME_API, "-", command))
            # a worker that is about to end accepts the connection and closes it: every answer has at least a line end
            # on a busy machine, `docker exec` sometimes loses the first 4 KB of the output (Docker 28.5)
            if not code and output and output.startswith(start):
                return output
            if time.monotonic() >= deadline:
                reason = output.strip()[-300:] or "HAProxy closed the connection"
                raise StartError(f"the gateway's runtime API does not answer: {reason}", LOGS_HINT)
            time.sleep(0.2)

    def info(self, field: str, patience: float | None = None) -> str:
        """Returns a field of "show info"."""
        match = re.search(rf"(?m)^{field}: (\S+)$", self.send("show info", patience, start="Name: "))
        if not match:
            raise StartError(f"the gateway's runtime API does not report {field}", LOGS_HINT)
        return match[1]

    def servers(self, name: str = "") -> list[Server]:
        """Returns all replicas in all backends, or only the replica `name` in each backend that has it."""
        # the output is CSV with a `#` in front of the header
        rows = csv.DictReader(io.StringIO(self.send("show stat", start="# pxname,").removeprefix("# ")))
        return [
            Server(row["pxname"], row["svname"], row["status"], int(row["scur"] or 0) + int(row["qcur"] or 0))
            for row in rows
            if row["svname"] not in ("FRONTEND", "BACKEND") and name in ("", row["svname"])
        ]

    def drained(self) -> list[tuple[str, str]]:
        """Returns backend and name of every drained replica, also of those that are down.

        In "show stat", a drained replica that is down has the status DOWN.
        """
        # the second line is the header
        rows = [line.split() for line in self.send("show servers state", start="1\n").splitlines()[2:]]
        return [(row[1], row[3]) for row in rows if len(row) > 6 and int(row[6]) & FORCED_DRAIN]

    def set_state(self, backend: str, name: str, state: str) -> None:
        """Sets the administrative state of a replica: ready, drain or maint."""
        # the API answers a successful `set server` with an empty line
        if output := self.send(f"set server {backend}/{name} state {state}").strip():
            raise StartError(f"the gateway can't set {name} to {state}: {output}", LOGS_HINT)

    def read_map(self, path: str) -> dict[str, str]:
        """Returns the entries of the map that was loaded from the file `path` in the container."""
        return dict(MAP_ENTRY.findall(self.send(f"show map {path}")))

    def change_map(self, path: str, added: Sequence[tuple[str, str]], removed: Sequence[str]) -> None:
        """Adds entries to a map and removes keys from it, in this order, without a reload."""
        commands = [f"add map {path} {key} {value}" for key, value in added]
        line = ""
        for command in (*commands, *(f"del map {path} {key}" for key in removed)):
            if line and len(line) + len(command) > MAX_LINE:
                self.send(line)
                line = ""
            line += f"; {command}" if line else command
        if line:
            self.send(line)
