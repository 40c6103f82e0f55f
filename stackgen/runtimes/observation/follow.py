"""The data of `status --watch`: each service's state, CPU, memory, requests in flight and newest log line.

Sources: Docker Engine API 1.41, "ContainerStats" (`one-shot`), "ContainerLogs"; HAProxy's "show stat" for requests.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen.diagnose.gpus import GpuDevice
from stackgen.errors import StackgenError, StartError
from stackgen.plan import Plan
from stackgen.render.read import stack_file_in
from stackgen.resolve.addons.gateway import SERVICE as GATEWAY
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.haproxy_api import RuntimeApi
from stackgen.runtimes.compose.lifecycle import ServiceState, connect, status
from stackgen.runtimes.observation.gpu_tools import read_gpu_state
from stackgen.runtimes.process.lifecycle import process_status
from stackgen.runtimes.process.logs import log_file, read_tail

__all__ = ["Follower", "Look", "ServiceLook"]

# colors and cursor movements in a log line would change the terminal
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
# bytes of a log line that are worth a row on the screen
MAX_LINE = 300


@dataclass(frozen=True, slots=True)
class ServiceLook:
    """A service now. `since` is Docker's text (`Up 3 minutes`). None is unknown, or does not apply.

    `cpu` is in percent of one core since the last look, `memory` is bytes without the page cache. `in_flight` counts
    active and queued requests at the gateway, `drained` is whether the gateway sends it none.
    """

    state: ServiceState
    since: str = ""
    cpu: float | None = None
    memory: int | None = None
    in_flight: int | None = None
    drained: bool = False
    line: str = ""
    # what a line for a change says in addition, for a stack in a cluster
    note: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """The whole stack at one moment. `gpus` are those of the machine; empty for a stack on the CPU."""

    services: tuple[ServiceLook, ...]
    gpus: tuple[GpuDevice, ...] = ()
    # why requests in flight are unknown
    gateway_error: str = ""


class Follower:
    """Looks at one stack again and again. Keeps what the next look compares with. Used by one thread."""

    # what an error is about
    source = "docker"

    def __init__(self, open_plan: Callable[[], Plan], folder: Path, processes: bool) -> None:
        self._open, self._folder, self._processes = open_plan, folder, processes
        # before the plan, so that an edit in between is noticed
        self._stamp = self._read_stamp()
        self.plan = open_plan()
        self._cpu: dict[str, tuple[float, int]] = {}
        self._client: Any = None

    def look(self) -> Look:
        """The stack now. Raises StackgenError if Docker does not answer, or stack.yaml or a state file is damaged."""
        # `scale` and `update` change the services
        if (stamp := self._read_stamp()) != self._stamp:
            self.plan, self._stamp = self._open(), stamp
        gpus: tuple[GpuDevice, ...] = ()
        if any(service.gpus for service in self.plan.services):
            gpus = read_gpu_state().devices or ()
        if self._processes:
            return Look(tuple(self._process(one) for one in process_status(self._folder)), gpus)
        try:
            return self._containers(gpus)
        except (sdk().errors.DockerException, OSError) as error:
            self._client = None
            raise StackgenError(f"the Docker engine does not answer: {error}") from None

    def _read_stamp(self) -> int:
        try:
            return stack_file_in(self._folder).stat().st_mtime_ns
        except OSError:
            return 0

    def _containers(self, gpus: Sequence[GpuDevice]) -> Look:
        self._client = self._client or connect()
        rows = {}
        labels = [f"com.docker.compose.project={self.plan.name}", "com.docker.compose.oneoff=False"]
        for row in self._client.api.containers(all=True, filters={"label": labels}):
            rows[row["Labels"].get("com.docker.compose.service", "")] = row
        servers, error = self._servers(rows.get(GATEWAY))
        found = []
        for state in status(self.plan, self._client):
            row, cpu, memory, line = rows.get(state.service), None, None, ""
            # the container may be replaced between two requests
            with suppress(sdk().errors.NotFound):
                if row:
                    line = _clean(self._client.api.logs(row["Id"], tail=5).decode(errors="replace"))
                if row and state.state == "running":
                    cpu, memory = self._load(row["Id"])
            in_flight, drained = servers.get(state.service, (None, False))
            since = re.sub(r" \(.*\)$", "", row["Status"]) if row else ""
            found.append(ServiceLook(state, since, cpu, memory, in_flight, drained, line))
        return Look(tuple(found), tuple(gpus), error)

    def _servers(self, row: dict[str, Any] | None) -> tuple[dict[str, tuple[int, bool]], str]:
        """Requests in flight and whether it is drained, by replica, and why this is unknown."""
        if row is None or row["State"] != "running":
            return {}, ""
        try:
            # one second: the view must go on while the gateway restarts
            servers = RuntimeApi(self._client.containers.get(row["Id"]), 1.0).servers()
        except (StartError, sdk().errors.NotFound) as error:
            return {}, str(error)
        found: dict[str, tuple[int, bool]] = {}
        for server in servers:
            before = found.get(server.name, (0, False))
            found[server.name] = (before[0] + server.in_flight, before[1] or server.status.startswith("DRAIN"))
        return found, ""

    def _load(self, container: str) -> tuple[float | None, int | None]:
        """CPU in percent since the last look, and memory in bytes, of a running container."""
        stats = self._client.api.stats(container, stream=False, one_shot=True)
        used = ((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage")
        memory, now, cpu = stats.get("memory_stats") or {}, time.monotonic(), None
        if used is not None:
            before = self._cpu.get(container)
            # nanoseconds of CPU time; a container that restarted begins at 0 again
            if before and used >= before[1] and now > before[0]:
                cpu = 100 * (used - before[1]) / 1e9 / (now - before[0])
            self._cpu[container] = (now, used)
        cache = (memory.get("stats") or {}).get("inactive_file", 0)
        # as `docker stats` counts
        return cpu, memory["usage"] - cache if "usage" in memory else None

    def _process(self, state: Any) -> ServiceLook:
        lines = read_tail(log_file(self._folder, state.service), 5)
        found = ServiceState(state.service, state.role, state.state, state.health, state.restarts, state.exit_code,
                             ports=state.ports)  # fmt: skip
        return ServiceLook(found, line=_clean("\n".join(lines)))


def _clean(text: str) -> str:
    # frames of dashes and empty lines say nothing
    lines = [line for line in CONTROL.sub("", text).splitlines() if re.search(r"\w", line)]
    return lines[-1].strip()[:MAX_LINE] if lines else ""
