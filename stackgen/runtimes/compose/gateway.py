"""Control the running gateway: load keys and configuration without losing a request, drain replicas."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stackgen.errors import StartError
from stackgen.plan import Bind, Plan
from stackgen.resolve.addons.gateway import FOLDER, SERVICE
from stackgen.runtimes.compose.drains import LEASES, Drain, forget_drains, read_drains, record_drain
from stackgen.runtimes.compose.haproxy_api import LOGS_HINT, PATIENCE, RuntimeApi, Server, execute
from stackgen.runtimes.compose.haproxy_worker import LOCK_TIMEOUT, Worker, lock_gateway, wait_for, wait_or_raise
from stackgen.runtimes.compose.lifecycle import connect
from stackgen.stack.keys import MAP, read_map

__all__ = [
    "Gateway", "has_gateway", "has_stale_certificate", "load_client_keys", "reload_if_changed", "running_gateway",
]  # fmt: skip

# the directory of the certificate in the container
TLS_DIR = "/tls/"
# keys.map in the container
KEYS_MAP = f"{FOLDER}/{Path(MAP).name}"
# what `stackgen keys` writes: other entries, from a map that was edited by hand, are loaded by a reload
MAP_ENTRY = re.compile(r"[\w-]+ [\w-]+")
# more changes than this are faster with a reload
MAX_MAP_CHANGES = 200
# the frontend `admin` in haproxy.cfg; HTTP/1.0, so that HAProxy closes the connection
KEY_METRICS = "exec 3<>/dev/tcp/127.0.0.1/8405 && printf 'GET /keys HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
PROJECT_FOLDER = "com.docker.compose.project.working_dir"


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

    If a certificate file was replaced instead of overwritten, the container still sees the old file. The gateway is
    then restarted, unless `restart` is false. Raises StartError if the gateway rejects the configuration.
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
        return gateway.has_stale_keys(folder) and gateway.load_keys(folder)
    return True


def load_client_keys(plan: Plan, folder: Path) -> bool:
    """Makes the running gateway accept exactly the keys in `folder`. Returns False if no gateway is running.

    Raises StartError if the gateway does not accept them.
    """
    gateway = running_gateway(plan.name) if has_gateway(plan) else None
    if gateway is not None:
        gateway.load_keys(folder)
    return gateway is not None


def has_stale_certificate(plan: Plan, folder: Path) -> bool:
    """Whether the running gateway still uses a certificate file that another file has replaced."""
    gateway = running_gateway(plan.name) if has_gateway(plan) else None
    return gateway is not None and gateway.has_stale_mounts(_certificates(plan, folder))


def _certificates(plan: Plan, folder: Path) -> dict[str, Path]:
    """Certificate and key: the path on this machine by the path in the container."""
    binds = [mount for mount in plan.service(SERVICE).mounts if isinstance(mount, Bind)]
    return {mount.target: folder / mount.source for mount in binds if mount.target.startswith(TLS_DIR)}


class Gateway:
    """The gateway's container. Every method raises StartError if HAProxy does not carry out a command.

    `patience`: how many seconds it waits for an answer of HAProxy, and for another command that changes the gateway.
    """

    def __init__(self, container: Any, patience: float | None = None) -> None:
        self._container = container
        self._lock_timeout = LOCK_TIMEOUT if patience is None else patience
        self._api = RuntimeApi(container, PATIENCE if patience is None else patience)
        self._worker = Worker(container, self._api)
        self._folder = Path(container.labels.get(PROJECT_FOLDER, ""))

    def servers(self, name: str = "") -> list[Server]:
        """Returns all replicas in all backends, or only the replica `name` in each backend that has it."""
        return self._api.servers(name)

    def drained(self) -> list[Drain]:
        """Returns the drained replicas, with the command that drained each of them."""
        drains = read_drains(self._folder)
        return [drains.get(name, Drain(name)) for name in dict.fromkeys(name for _, name in self._api.drained())]

    def has_stale_config(self, folder: Path, extra_files: Sequence[Path] = ()) -> bool:
        """Whether a file in `folder`/gateway except the keys, or one of `extra_files`, is newer than the worker."""
        started = float(self._api.info("Start_time_sec"))
        files = [path for path in (folder / "gateway").rglob("*") if path.is_file() and path != folder / MAP]
        # a copied file may keep an old mtime, but nobody can set the ctime
        return any(path.stat().st_mtime >= started for path in files) or any(
            path.stat().st_ctime >= started for path in extra_files if path.is_file()
        )

    def has_stale_keys(self, folder: Path) -> bool:
        """Whether the keys in `folder` are newer than the running worker, which may have loaded them since."""
        path = folder / MAP
        return path.is_file() and path.stat().st_mtime >= float(self._api.info("Start_time_sec"))

    def load_keys(self, folder: Path) -> bool:
        """Makes the gateway accept exactly the keys in `folder`, and verifies it. Returns whether anything changed.

        A few keys are changed in the running worker, so that they also count on connections that clients keep open.
        """
        with lock_gateway(self._folder):
            for attempt in range(3):
                # read again, because another command may have written it meanwhile
                wanted, loaded = read_map(folder), self._api.read_map(KEYS_MAP)
                # from `managed` on, only the keys in the map are valid, so it comes last
                added = sorted((one for one in wanted.items() if loaded.get(one[0]) != one[1]), key=_is_no_key)
                removed = sorted((key for key in loaded if key not in wanted), key=lambda key: len(key) == 64)
                if not added and not removed:
                    return attempt > 0
                is_small = len(added) + len(removed) <= MAX_MAP_CHANGES
                if is_small and all(key not in loaded and MAP_ENTRY.fullmatch(f"{key} {name}") for key, name in added):
                    self._api.change_map(KEYS_MAP, added, removed)
                else:
                    self._worker.reload()
        raise StartError(f"the gateway did not load {MAP}", LOGS_HINT)

    def has_stale_mounts(self, files: Mapping[str, Path]) -> bool:
        """Whether the container sees other contents than `files` (path on this machine by path in the container).

        Docker mounts the inode: a new file with the same name becomes visible only after a restart. Files that this
        user can't read are ignored.
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

    def fetch_key_metrics(self) -> str:
        """Returns the HTTP response with the metrics of all keys, "" if HAProxy does not answer."""
        code, output = execute(self._container, ("bash", "-c", KEY_METRICS))
        return "" if code else output

    def reload(self) -> None:
        """Loads new configuration and maps without losing a request. Keeps replicas drained or down.

        If HAProxy rejects the configuration, the old configuration stays active.
        """
        with lock_gateway(self._folder):
            self._worker.reload()

    def restart(self) -> None:
        """Restarts the container after in-flight requests have ended, which also renews its mounts."""
        with lock_gateway(self._folder):
            self._worker.restart()

    def wait_for_old_workers(self, timeout: float, on_progress: Callable[[str], None] = lambda _: None) -> bool:
        """Waits until workers of earlier configurations have ended their requests; False after `timeout` seconds."""
        return self._worker.wait_for_old(timeout, lambda: on_progress("waiting for earlier requests"))

    def drain(self, name: str, timeout: float, on_progress: Callable[[str], None] = lambda _: None) -> int:
        """Sends no new requests to the replica `name`, and waits up to `timeout` seconds for its requests in flight.

        Returns the number of requests that are still in flight.
        """
        # recorded first, because this process may be killed at any moment
        record_drain(self._folder, name)
        LEASES.hold(self._container, name)
        deadline = time.monotonic() + timeout
        drained = wait_for(
            lambda: self._drain_once(name) == 0,
            timeout,
            lambda: on_progress(f"draining: {self._in_flight(name)} in flight"),
        )
        # a worker of an earlier configuration does not know about the drain, so that worker must have exited too
        self.wait_for_old_workers(max(0.0, deadline - time.monotonic()), on_progress)
        return 0 if drained else self._in_flight(name)

    def enable(self, name: str, timeout: float = 60.0) -> None:
        """Sends requests to the replica `name` again, and waits until the gateway's own health check has passed."""
        self._enable([name])
        self.wait_until_up(name, timeout)

    def enable_all(self) -> list[Drain]:
        """Sends requests again to every drained replica, and returns these replicas. Does not wait."""
        # a server in MAINT was disabled by somebody else
        drains = self.drained()
        self._enable([drain.replica for drain in drains])
        forget_drains(self._folder)
        return drains

    def enable_left_over(self) -> list[Drain]:
        """As `enable_all`, but only for replicas whose stackgen command no longer runs."""
        drains = [drain for drain in self.drained() if drain.is_left_over]
        self._enable([drain.replica for drain in drains])
        return drains

    def _enable(self, names: Sequence[str]) -> None:
        with lock_gateway(self._folder, self._lock_timeout):
            for server in self.servers():
                if server.name in names:
                    self._api.set_state(server.backend, server.name, "ready")
        if names:
            LEASES.release(self._container, *names)
            forget_drains(self._folder, *names)

    def wait_until_up(self, name: str, timeout: float = 60.0) -> None:
        """Waits until the replica `name` is healthy in every backend that has it."""
        wait_or_raise(
            lambda: all(server.status.startswith("UP") for server in self.servers(name)),
            timeout, f"{name} did not become healthy in the gateway",
        )  # fmt: skip

    def is_last_up(self, name: str) -> bool:
        """Whether `name` is the only replica of a model that is up."""
        servers = self.servers()
        return any(
            not any(
                other.status.startswith("UP") and other.backend == own.backend and other.name != name
                for other in servers
            )
            for own in self.servers(name)
        )  # fmt: skip

    def _drain_once(self, name: str) -> int:
        """Drains `name` unless it is drained, and returns its requests in flight."""
        # again in each round: if this process was suspended, its lease may have expired
        drained = self._api.drained()
        servers = self.servers(name)
        if missing := [one for one in servers if (one.backend, one.name) not in drained]:
            # a state that is set during a reload would be lost
            with lock_gateway(self._folder):
                for server in missing:
                    self._api.set_state(server.backend, name, "drain")
            servers = self.servers(name)
        return sum(server.in_flight for server in servers)

    def _in_flight(self, name: str) -> int:
        return sum(server.in_flight for server in self.servers(name))


def _is_no_key(entry: tuple[str, str]) -> bool:
    return len(entry[0]) != 64
