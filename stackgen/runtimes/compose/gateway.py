"""The running gateway: reload without a lost request, and draining of replicas, by HAProxy's runtime API.

The API listens inside the container only, so it is reached by an exec. Facts: HAProxy 3.2's management guide, 9.3
("set server", "show stat", "show info"), and 4 "Stopping and restarting HAProxy" (SIGUSR2 reloads in master-worker
mode: the new worker takes over the sockets, the old one ends its requests first).
"""

from __future__ import annotations

from stackgen.runtimes.compose.docker_sdk import sdk

import csv
import hashlib
import io
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen.resolve.addons.gateway import SERVICE
from stackgen.errors import StartError
from stackgen.plan import Bind, Plan
from stackgen.runtimes.compose.lifecycle import _client as connect

__all__ = [
    "Gateway", "Server", "certificate_replaced", "execute", "has_gateway", "reload_changed", "running_gateway",
]  # fmt: skip

# where the configuration's `server-state-file` is
STATE = "/tmp/servers.state"
# where its own certificate or a generated one is
TLS = "/tls/"
ADMIN = "exec 3<>/dev/tcp/127.0.0.1/8406 && printf '%s\\n' \"$1\" >&3 && cat <&3"
# the start script computes the real one; a check of the configuration only needs that it is there
CHECK = ("sh", "-c", "export STACKGEN_KEY_HASH=0; cd /gateway; haproxy -c -f haproxy.cfg && haproxy -c -f large.cfg")
# the masters of its two processes, and the worker for large bodies
OTHERS = 3
RELOAD_SECONDS = 30.0
LONGEST = 86400.0


@dataclass(frozen=True, slots=True)
class Server:
    """A replica as one backend of the gateway sees it: `status` (UP, DOWN, DRAIN, MAINT, …), requests at work."""

    backend: str
    name: str
    status: str
    busy: int


def execute(container: Any, words: tuple[str, ...]) -> tuple[int, str]:
    """Runs `words` inside a container; exit code and all it printed."""

    try:
        code, said = container.exec_run(list(words))
    except sdk().errors.APIError as error:  # it is gone, or not running
        return 1, str(error.explanation or error)
    return int(code or 0), said.decode(errors="replace")


def has_gateway(plan: Plan) -> bool:
    """Whether the plan has one."""
    return any(service.name == SERVICE for service in plan.services)


def running_gateway(name: str) -> Gateway | None:
    """The gateway of the stack `name`, where it runs. Raises MachineError where the Docker engine does not answer."""
    labels = [f"com.docker.compose.project={name}", f"com.docker.compose.service={SERVICE}"]
    found = connect().containers.list(filters={"label": labels, "status": "running"})
    return Gateway(found[0]) if found else None


def reload_changed(plan: Plan, folder: Path, restart: bool = True) -> bool:
    """Reloads a gateway that runs with older files than those on disk; whether it did. Raises StartError.

    One whose certificate was replaced, and not written in place, holds the old file: it is restarted, if it may be.
    """
    gateway = running_gateway(plan.name) if has_gateway(plan) else None
    if gateway is None:
        return False
    if restart and gateway.blind(_certificates(plan, folder)):
        gateway.restart()
    elif gateway.behind(folder, tuple(_certificates(plan, folder).values())):
        gateway.reload()
    else:
        return False
    return True


def certificate_replaced(plan: Plan, folder: Path) -> bool:
    """Whether the running gateway holds a certificate that another file has taken the place of."""
    gateway = running_gateway(plan.name) if has_gateway(plan) else None
    return gateway is not None and gateway.blind(_certificates(plan, folder))


def _certificates(plan: Plan, folder: Path) -> dict[str, Path]:
    """The files of certificate and key by where the gateway has them."""
    mounts = plan.service(SERVICE).mounts
    return {one.target: folder / one.source for one in mounts if isinstance(one, Bind) and one.target.startswith(TLS)}


class Gateway:
    """The gateway's container. Every method raises StartError where it does not do what it is told."""

    def __init__(self, container: Any) -> None:
        self._container = container

    def servers(self, name: str = "") -> list[Server]:
        """All replicas in all backends, or what the backends say of the replica `name`."""
        rows = csv.DictReader(io.StringIO(self._ask("show stat").removeprefix("# ")))
        return [
            Server(row["pxname"], row["svname"], row["status"], int(row["scur"] or 0) + int(row["qcur"] or 0))
            for row in rows
            if row["svname"] not in ("FRONTEND", "BACKEND") and name in ("", row["svname"])
        ]

    def behind(self, folder: Path, others: Sequence[Path] = ()) -> bool:
        """Whether a file of the gateway in `folder`, or one of `others`, is younger than what it runs with."""
        started = float(self._info("Start_time_sec"))
        files = [path for path in (folder / "gateway").rglob("*") if path.is_file()]
        # a copy may keep its time of writing; that of its change of state is the system's own
        return any(path.stat().st_mtime >= started for path in files) or any(
            path.stat().st_ctime >= started for path in others if path.is_file()
        )

    def blind(self, files: Mapping[str, Path]) -> bool:
        """Whether the container holds others than the `files`, by its own paths; those that can't be read don't count.

        Docker mounts a file itself: one of the same name that takes its place is seen by a restart only.
        """
        for target, path in files.items():
            try:
                wanted = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError:
                continue
            code, said = execute(self._container, ("sha256sum", target))
            if not code and said.split()[:1] != [wanted]:
                return True
        return False

    def restart(self) -> None:
        """Starts the container anew, after what it is at work on: its mounts are those of now then."""
        grace = int(self._container.attrs["Config"].get("StopTimeout") or 10)
        self._container.restart(timeout=grace)
        self._until(self._answers, RELOAD_SECONDS, "the gateway does not come back")

    def reload(self) -> None:
        """Loads configuration and maps anew, without losing a request; what was drained, or down, stays so.

        A configuration that HAProxy refuses is not loaded: the old one goes on.
        """
        code, said = execute(self._container, CHECK)
        if code:
            lines = [line for line in said.splitlines() if "ALERT" in line or "error" in line.lower()][:6]
            raise StartError(
                "the gateway refuses its new configuration, and keeps the old one\n"
                + "\n".join(f"  | {line[:300]}" for line in lines or said.splitlines()[-3:]),
                "it was not loaded; at its next start the gateway would fail: mend it, or `stackgen render --force`",
            )
        before = self._info("Pid")
        # a new worker would know no address until the name server has answered: it would have no replica till then
        execute(self._container, ("bash", "-c", f"{ADMIN} >{STATE}", "-", "show servers state"))
        # not Docker's own `kill`: that marks a container as stopped by its user, and no crash would restart it then
        execute(self._container, ("bash", "-c", "kill -USR2 1"))
        self._until(lambda: self._changed(before), RELOAD_SECONDS, "the gateway did not load its new configuration")
        execute(self._container, ("rm", "-f", STATE))

    def settle(self, limit: float, tell: Callable[[str], None] = lambda _: None) -> bool:
        """Waits until workers of earlier configurations have ended their requests; False after `limit` seconds."""
        return _wait(lambda: self._workers() <= 1, limit, lambda: tell("earlier requests end"))

    def drain(self, name: str, limit: float, tell: Callable[[str], None] = lambda _: None) -> int:
        """No new request for the replica `name`; waits at most `limit` s for those at work; how many are left.

        Workers of an earlier configuration can't be told, so they must have ended as well.
        """
        self._set(name, "drain")

        def told() -> None:
            tell(f"drain: {self._busy(name)} requests at work")

        end = time.monotonic() + limit
        done = _wait(lambda: self._busy(name) == 0, limit, told)
        self.settle(max(0.0, end - time.monotonic()), tell)
        return 0 if done else self._busy(name)

    def open(self, name: str, limit: float = 60.0) -> None:
        """Requests for the replica `name` again, and waits until the gateway's own health check has passed."""
        self._set(name, "ready")
        self.wait_up(name, limit)

    def open_all(self) -> None:
        """Requests again for every replica that was drained; does not wait."""
        for one in self.servers():
            if one.status.startswith("DRAIN"):
                self._set(one.name, "ready")

    def wait_up(self, name: str, limit: float = 60.0) -> None:
        """Waits until every backend that has the replica `name` finds it healthy."""
        self._until(
            lambda: all(one.status.startswith("UP") for one in self.servers(name)),
            limit, f"the gateway does not find {name} healthy",
        )  # fmt: skip

    def alone(self, name: str) -> bool:
        """Whether some model has no other replica that is up."""
        others = self.servers()
        return any(
            not any(
                one.status.startswith("UP") and one.backend == own.backend and one.name != name for one in others
            )
            for own in self.servers(name)
        )  # fmt: skip

    def _set(self, name: str, state: str) -> None:
        for one in self.servers(name):
            if said := self._ask(f"set server {one.backend}/{name} state {state}").strip():
                raise StartError(f"the gateway does not set {name} to {state}: {said}")

    def _busy(self, name: str) -> int:
        return sum(one.busy for one in self.servers(name))

    def _changed(self, before: str) -> bool:
        try:
            # as long as both listen, either may answer
            return all(self._info("Pid") != before for _ in range(3))
        except StartError:  # between two workers nobody answers
            return False

    def _answers(self) -> bool:
        try:
            return bool(self._info("Pid"))
        except StartError:
            return False

    def _info(self, field: str) -> str:
        match = re.search(rf"(?m)^{field}: (\S+)$", self._ask("show info"))
        if not match:
            raise StartError(f"the gateway's runtime API tells no {field}", f"`stackgen logs {SERVICE}` tells more")
        return match[1]

    def _ask(self, command: str) -> str:
        code, said = execute(self._container, ("bash", "-c", ADMIN, "-", command))
        if code:
            raise StartError(
                f"the gateway's runtime API does not answer: {said.strip()[-300:]}",
                f"`stackgen logs {SERVICE}` tells more",
            )
        return said

    def _workers(self) -> int:
        """How many workers there are, of all HAProxy's processes."""
        _, said = execute(self._container, ("bash", "-c", "cat /proc/[0-9]*/comm 2>/dev/null"))
        return said.split().count("haproxy") - OTHERS

    def _until(self, done: Callable[[], bool], limit: float, otherwise: str) -> None:
        if not _wait(done, limit):
            raise StartError(f"{otherwise} in {limit:.0f} s", f"`stackgen logs {SERVICE}` tells more")


def _wait(done: Callable[[], bool], limit: float, tell: Callable[[], None] = lambda: None) -> bool:
    end = time.monotonic() + limit
    while not done():
        if time.monotonic() > end:
            return False
        tell()
        time.sleep(0.3)
    return True
