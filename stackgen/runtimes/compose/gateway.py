"""Control the running gateway through HAProxy's runtime API: reload without losing a request, drain replicas.

The API listens only inside the container, so commands go through `exec`. Sources: HAProxy 3.2's management guide, 9.3
("set server", "show stat", "show info"), and 4 "Stopping and restarting HAProxy": in master-worker mode SIGUSR2
reloads. The new worker takes over the sockets; the old one finishes its requests first.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen.errors import StartError
from stackgen.plan import Bind, Plan
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.lifecycle import connect

__all__ = [
    "Gateway", "Server", "execute", "has_gateway", "has_stale_certificate", "reload_if_changed", "running_gateway",
]  # fmt: skip

# the path of `server-state-file` in haproxy.cfg
SERVER_STATE_FILE = "/tmp/servers.state"
# the directory of the certificate in the container
TLS_DIR = "/tls/"
# bash opens the connection, as in templates/gateway/health.sh, because the image has no curl
RUNTIME_API = "exec 3<>/dev/tcp/127.0.0.1/8406 && printf '%s\\n' \"$1\" >&3 && cat <&3"
# the start script computes the real hash; a configuration check only needs the variable to exist
CHECK_CONFIG = (
    "sh", "-c", "export STACKGEN_KEY_HASH=0; cd /gateway; haproxy -c -f haproxy.cfg && haproxy -c -f large.cfg",
)  # fmt: skip
# the number of processes that a reload does not replace: two masters, and the worker for large bodies
OTHER_PROCESSES = 3
RELOAD_TIMEOUT = 30.0
LOGS_HINT = f"run `stackgen logs {SERVICE}` for details"


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


def has_gateway(plan: Plan) -> bool:
    """Whether the plan has a gateway."""
    return any(service.name == SERVICE for service in plan.services)


def running_gateway(name: str) -> Gateway | None:
    """Returns the running gateway of the stack `name`, or None. Raises MachineError if Docker does not answer."""
    labels = [f"com.docker.compose.project={name}", f"com.docker.compose.service={SERVICE}"]
    containers = connect().containers.list(filters={"label": labels, "status": "running"})
    return Gateway(containers[0]) if containers else None


def reload_if_changed(plan: Plan, folder: Path, restart: bool = True) -> bool:
    """Reloads the running gateway if files in `folder` are newer than its configuration. Returns whether it did.

    If a certificate file was replaced instead of overwritten, the container still sees the old file. The gateway is then
    restarted, unless `restart` is false. Raises StartError if the gateway rejects the configuration.
    """
    gateway = running_gateway(plan.name) if has_gateway(plan) else None
    if gateway is None:
        return False
    # checked first, because a reload would load the old certificate again
    if restart and gateway.has_stale_mounts(_certificates(plan, folder)):
        gateway.restart()
    elif gateway.has_stale_config(folder, tuple(_certificates(plan, folder).values())):
        gateway.reload()
    else:
        return False
    return True


def has_stale_certificate(plan: Plan, folder: Path) -> bool:
    """Whether the running gateway still uses a certificate file that another file has replaced."""
    gateway = running_gateway(plan.name) if has_gateway(plan) else None
    return gateway is not None and gateway.has_stale_mounts(_certificates(plan, folder))


def _certificates(plan: Plan, folder: Path) -> dict[str, Path]:
    """Certificate and key: the path on this machine by the path in the container."""
    binds = [mount for mount in plan.service(SERVICE).mounts if isinstance(mount, Bind)]
    return {mount.target: folder / mount.source for mount in binds if mount.target.startswith(TLS_DIR)}


class Gateway:
    """The gateway's container. Every method raises StartError if HAProxy does not carry out a command."""

    def __init__(self, container: Any) -> None:
        self._container = container

    def servers(self, name: str = "") -> list[Server]:
        """Returns all replicas in all backends, or only the replica `name` in each backend that has it."""
        # the output is CSV with a `#` in front of the header
        rows = csv.DictReader(io.StringIO(self._send("show stat").removeprefix("# ")))
        return [
            Server(row["pxname"], row["svname"], row["status"], int(row["scur"] or 0) + int(row["qcur"] or 0))
            for row in rows
            if row["svname"] not in ("FRONTEND", "BACKEND") and name in ("", row["svname"])
        ]

    def has_stale_config(self, folder: Path, extra_files: Sequence[Path] = ()) -> bool:
        """Whether a file in `folder`/gateway, or one of `extra_files`, is newer than the running worker."""
        started = float(self._info("Start_time_sec"))
        files = [path for path in (folder / "gateway").rglob("*") if path.is_file()]
        # a copied file may keep an old mtime, but nobody can set the ctime
        return any(path.stat().st_mtime >= started for path in files) or any(
            path.stat().st_ctime >= started for path in extra_files if path.is_file()
        )

    def has_stale_mounts(self, files: Mapping[str, Path]) -> bool:
        """Whether the container sees other contents than `files` (path on this machine by path in the container).

        Docker mounts the inode: a new file with the same name becomes visible only after a restart. Files that this user
        can't read are ignored.
        """
        for target, path in files.items():
            try:
                wanted = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError:
                continue
            code, output = execute(self._container, ("sha256sum", target))
            if not code and output.split()[:1] != [wanted]:
                return True
        return False

    def restart(self) -> None:
        """Restarts the container after in-flight requests have ended, which also renews its mounts."""
        # 10 s is Docker's default
        grace = int(self._container.attrs["Config"].get("StopTimeout") or 10)
        self._container.restart(timeout=grace)
        self._wait_or_raise(self._is_responding, RELOAD_TIMEOUT, "the gateway did not answer after its restart")

    def reload(self) -> None:
        """Loads new configuration and maps without losing a request. Keeps replicas drained or down.

        If HAProxy rejects the configuration, the old configuration stays active.
        """
        code, output = execute(self._container, CHECK_CONFIG)
        if code:
            lines = [line for line in output.splitlines() if "ALERT" in line or "error" in line.lower()][:6]
            raise StartError(
                "the gateway rejected its new configuration and keeps the old configuration\n"
                + "\n".join(f"  | {line[:300]}" for line in lines or output.splitlines()[-3:]),
                "fix the files in gateway/, or run `stackgen render --force`; with these files, the gateway can't start again",
            )
        worker_pid = self._info("Pid")
        # a new worker has no addresses until DNS answers; without this file, the worker would refuse requests until then
        execute(self._container, ("bash", "-c", f"{RUNTIME_API} >{SERVER_STATE_FILE}", "-", "show servers state"))
        # not `docker kill`, which marks the container as stopped by the user: Docker would not restart it after a crash
        execute(self._container, ("bash", "-c", "kill -USR2 1"))
        self._wait_or_raise(
            lambda: self._has_new_worker(worker_pid), RELOAD_TIMEOUT, "the gateway did not load its new configuration"
        )
        # a later reload by hand must not read outdated states
        execute(self._container, ("rm", "-f", SERVER_STATE_FILE))

    def wait_for_old_workers(self, timeout: float, on_progress: Callable[[str], None] = lambda _: None) -> bool:
        """Waits until workers of earlier configurations have ended their requests; False after `timeout` seconds."""
        return _wait_for(
            lambda: self._count_workers() <= 1, timeout, lambda: on_progress("waiting for earlier requests")
        )

    def drain(self, name: str, timeout: float, on_progress: Callable[[str], None] = lambda _: None) -> int:
        """Sends no new requests to the replica `name`, and waits up to `timeout` seconds for its requests in flight.

        Returns the number of requests that are still in flight.
        """
        self._set_state(name, "drain")
        deadline = time.monotonic() + timeout
        drained = _wait_for(
            lambda: self._in_flight(name) == 0,
            timeout,
            lambda: on_progress(f"draining: {self._in_flight(name)} requests in flight"),
        )
        # a worker of an earlier configuration does not know about the drain, so that worker must have exited too
        self.wait_for_old_workers(max(0.0, deadline - time.monotonic()), on_progress)
        return 0 if drained else self._in_flight(name)

    def enable(self, name: str, timeout: float = 60.0) -> None:
        """Sends requests to the replica `name` again, and waits until the gateway's own health check has passed."""
        self._set_state(name, "ready")
        self.wait_until_up(name, timeout)

    def enable_all(self) -> None:
        """Sends requests again to every drained replica. Does not wait."""
        for server in self.servers():
            # a server in MAINT was disabled by somebody else
            if server.status.startswith("DRAIN"):
                self._set_state(server.name, "ready")

    def wait_until_up(self, name: str, timeout: float = 60.0) -> None:
        """Waits until the replica `name` is healthy in every backend that has it."""
        self._wait_or_raise(
            lambda: all(server.status.startswith("UP") for server in self.servers(name)),
            timeout, f"{name} did not become healthy in the gateway",
        )  # fmt: skip

    def is_last_up(self, name: str) -> bool:
        """Whether, without the replica `name`, no replica of one of its models is up."""
        servers = self.servers()
        return any(
            not any(
                other.status.startswith("UP") and other.backend == own.backend and other.name != name
                for other in servers
            )
            for own in self.servers(name)
        )  # fmt: skip

    def _set_state(self, name: str, state: str) -> None:
        for server in self.servers(name):
            # the API answers a successful `set server` with an empty line
            if output := self._send(f"set server {server.backend}/{name} state {state}").strip():
                raise StartError(f"the gateway can't set {name} to {state}: {output}", LOGS_HINT)

    def _in_flight(self, name: str) -> int:
        return sum(server.in_flight for server in self.servers(name))

    def _has_new_worker(self, old_pid: str) -> bool:
        try:
            # while the old and the new worker listen, either may answer
            return all(self._info("Pid") != old_pid for _ in range(3))
        # between the old and the new worker, nobody answers
        except StartError:
            return False

    def _is_responding(self) -> bool:
        try:
            return bool(self._info("Pid"))
        except StartError:
            return False

    def _info(self, field: str) -> str:
        match = re.search(rf"(?m)^{field}: (\S+)$", self._send("show info"))
        if not match:
            raise StartError(f"the gateway's runtime API does not report {field}", LOGS_HINT)
        return match[1]

    def _send(self, command: str) -> str:
        """Sends a command to the runtime API and returns its answer."""
        code, output = execute(self._container, ("bash", "-c", RUNTIME_API, "-", command))
        if code:
            raise StartError(f"the gateway's runtime API does not answer: {output.strip()[-300:]}", LOGS_HINT)
        return output

    def _count_workers(self) -> int:
        """The workers of the first process, which serves the clients."""
        # masters and workers all have the same name, so the number of other processes is subtracted
        _, output = execute(self._container, ("bash", "-c", "cat /proc/[0-9]*/comm 2>/dev/null"))
        return output.split().count("haproxy") - OTHER_PROCESSES

    def _wait_or_raise(self, condition: Callable[[], bool], timeout: float, message: str) -> None:
        if not _wait_for(condition, timeout):
            raise StartError(f"{message} within {timeout:.0f} s", LOGS_HINT)


def _wait_for(condition: Callable[[], bool], timeout: float, on_poll: Callable[[], None] = lambda: None) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        on_poll()
        time.sleep(0.3)
    return True
