"""Observers for the check. They report the states of the services behind an endpoint, and their health probes.

A probe runs the service's health check once more inside its container. There, the probe can reach workers by name, on
networks that this machine can't reach.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from stackgen.check.target import Target
from stackgen.check.topology import ProbeResult, ServiceView, Unobservable
from stackgen.errors import StackgenError
from stackgen.plan import Endpoint, GpuRequest, Plan, Service
from stackgen.resolve.addons.gateway import SERVICE as GATEWAY
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.gateway import running_gateway
from stackgen.runtimes.compose.published_ports import find_unreachable_ports
from stackgen.runtimes.process.lifecycle import process_status
from stackgen.runtimes.process.procfs import STATE_DIR

__all__ = ["ComposeObserver", "NoObserver", "ProcessObserver", "with_observer"]

# lines of a stopped service's log, for the check's report
LOG_LINES = 5
NO_ENGINE = "the Docker engine does not answer: "


def with_observer(target: Target, plan: Plan, endpoint: Endpoint, folder: Path) -> Target:
    """`target` with an observer of the stack's local processes if they run, else of its containers.

    If Docker Engine does not answer, the observer raises `Unobservable`, and the checks of services are skipped.
    """
    has_state = (folder / STATE_DIR / "state.json").exists()
    if has_state and any(one.state == "running" for one in process_status(folder)):
        return replace(target, observer=ProcessObserver(plan, endpoint, folder))
    try:
        compose.status(plan)
    except (StackgenError, OSError) as error:
        # the error may have the prefix already, and several lines
        return replace(target, observer=NoObserver(" ".join(str(error).split()).removeprefix(NO_ENGINE)))
    return replace(target, observer=ComposeObserver(plan, endpoint))


def services_behind(plan: Plan, endpoint: Endpoint) -> tuple[Service, ...]:
    """The services that an endpoint depends on: its own first, then replicas, a controller, and workers."""
    front = plan.service(endpoint.service)
    replicas = tuple(plan.service(name) for name in endpoint.replicas)
    engines = {one.engine for one in (front, *replicas)}
    controllers = [one for one in plan.services if one.role == "controller" and one.engine in engines]
    workers = (plan.service(name) for name in endpoint.workers)
    # FastChat: the API server finds its workers through the controller
    return (front, *replicas, *(controllers if endpoint.workers else ()), *workers)


class NoObserver:
    """For a Docker Engine that does not answer: both methods raise Unobservable with the reason."""

    def __init__(self, reason: str) -> None:
        self._reason = NO_ENGINE + reason

    def services(self) -> tuple[ServiceView, ...]:
        """See `Observer`."""
        raise Unobservable(self._reason)

    def run_probes(self, timeout: float) -> tuple[ProbeResult, ...]:
        """See `Observer`."""
        raise Unobservable(self._reason)


class ProcessObserver:
    """Observes local processes by the supervisor's state file."""

    def __init__(self, plan: Plan, endpoint: Endpoint, folder: Path) -> None:
        self._services = services_behind(plan, endpoint)
        self._folder = folder

    def services(self) -> tuple[ServiceView, ...]:
        """See `Observer`."""
        states = {one.service: one for one in process_status(self._folder)}
        return tuple(
            ServiceView(service.name, service.role, service is self._services[0], state.state, state.health,
                        state.restarts, state.exit_code)
            for service in self._services
            if (state := states.get(service.name))
        )  # fmt: skip

    def run_probes(self, timeout: float) -> tuple[ProbeResult, ...]:
        """Returns no results, because the states already include the supervisor's health checks."""
        return ()


class ComposeObserver:
    """Observes the containers of a Compose project through the Docker SDK."""

    def __init__(self, plan: Plan, endpoint: Endpoint) -> None:
        self._plan = plan
        self._services = services_behind(plan, endpoint)
        self._client: Any = None

    def services(self) -> tuple[ServiceView, ...]:
        """See `Observer`; raises OSError if Docker Engine does not answer."""
        views = (self._to_view(service, found) for service, found in self._inspect_containers())
        drained = self._drained()
        return tuple(replace(one, drained=drained[one.name]) if one.name in drained else one for one in views)

    def run_probes(self, timeout: float) -> tuple[ProbeResult, ...]:
        """See `Observer`. All probes run in parallel, because each may wait for a busy model."""
        results: dict[str, ProbeResult] = {}
        probed = [
            (service, found["Id"])
            # the front service is left out, because the other checks query it
            for service, found in self._inspect_containers()[1:]
            if found and found["State"]["Status"] == "running" and service.health
        ]

        def run(service: Service, container: str) -> None:
            results[service.name] = self._run_probe(service, container)

        # daemon threads, because a hanging exec can't be cancelled and must not keep the program from exiting
        threads = [threading.Thread(target=run, args=arguments, daemon=True) for arguments in probed]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return tuple(results.get(one.name, ProbeResult(one.name, False, timeout, "")) for one, _ in probed)

    def _drained(self) -> dict[str, str]:
        """Since when and by what the gateway in front of the endpoint has drained replicas, by their names."""
        if self._services[0].name != GATEWAY:
            return {}
        try:
            gateway = running_gateway(self._plan.name)
            return {drain.replica: drain.describe() for drain in gateway.drained()} if gateway else {}
        # a gateway that does not answer fails other checks
        except StackgenError:
            return {}

    def _inspect_containers(self) -> list[tuple[Service, Any]]:
        """Each service with the output of `docker inspect` for its container, or None if there is none."""
        api = self._api()
        label = f"com.docker.compose.project={self._plan.name}"
        listed = api.containers(all=True, filters={"label": label})
        ids = {one["Labels"].get("com.docker.compose.service", ""): one["Id"] for one in listed}
        found: list[tuple[Service, Any]] = []
        for service in self._services:
            try:
                found.append((service, api.inspect_container(ids[service.name]) if service.name in ids else None))
            # Compose replaced the container between the two calls
            except sdk().errors.NotFound:
                found.append((service, None))
        return found

    def _api(self) -> Any:
        if self._client is None:
            try:
                self._client = sdk().from_env(timeout=30).api
            except sdk().errors.DockerException as error:
                raise OSError(f"{NO_ENGINE}{error}") from None
        return self._client

    def _to_view(self, service: Service, found: Any) -> ServiceView:
        front = service is self._services[0]
        planned = _planned_gpus(service.gpus)
        if found is None:
            return ServiceView(service.name, service.role, front, "absent", image=service.image, gpus_planned=planned)
        state, ports = found["State"], found["NetworkSettings"]["Ports"] or {}
        running = state["Status"] == "running"
        reserved = _reserved_gpus(found["HostConfig"].get("DeviceRequests"))
        digest, changed = self._read_image(service, found["Image"])
        # Compose puts the project in front of the names of its networks
        connected = {name.removeprefix(f"{self._plan.name}_") for name in found["NetworkSettings"]["Networks"] or {}}
        return ServiceView(
            name=service.name, role=service.role, front=front, state=state["Status"],
            health=(state.get("Health") or {}).get("Status", ""), restarts=found["RestartCount"],
            exit_code=state["ExitCode"] if state["Status"] in ("exited", "dead") else None,
            oom_killed=state["OOMKilled"], image=service.image, digest=digest, image_changed=changed,
            # AMD GPUs are device files, not reservations
            gpus_planned=planned, gpus_reserved=reserved if planned or reserved else (),
            gpus_seen=self._count_gpus(found["Id"]) if reserved and running else None,
            missing_networks=tuple(name for name in _networks(service) if name not in connected),
            published=tuple(f"{b['HostIp']}:{b['HostPort']}" for bindings in ports.values() for b in bindings or ()),
            log="" if running else self._log(found["Id"]),
            unreachable_ports=find_unreachable_ports(found),
        )  # fmt: skip

    def _read_image(self, service: Service, used: str) -> tuple[str, bool]:
        """The registry digest of the image in use (else its id), and whether the tag points to another image now."""
        try:
            tagged = self._api().inspect_image(service.image)
        # the tag may have been removed since
        except sdk().errors.DockerException:
            return used, False
        digests = tagged.get("RepoDigests") or ()
        same = tagged["Id"] == used
        # a registry digest can be compared between machines, but the id of a built image can't
        return (digests[0].partition("@")[2] if digests and same else used), not same

    def _count_gpus(self, container: str) -> int | None:
        """The number of GPUs inside the container; 0 if it lost them, None if it has no nvidia-smi."""
        code, text = self._execute(container, ("nvidia-smi", "-L"))
        if code == 0:
            return sum(line.startswith("GPU ") for line in text.splitlines())
        # "Failed to initialize NVML" means that the tool exists, but the GPUs are gone
        return 0 if "NVML" in text else None

    def _run_probe(self, service: Service, container: str) -> ProbeResult:
        started = time.monotonic()
        try:
            code, output = self._execute(container, service.health.command if service.health else ())
        except OSError as error:
            code, output = 1, str(error)
        return ProbeResult(service.name, code == 0, round(time.monotonic() - started, 4), output.strip()[-400:])

    def _execute(self, container: str, command: tuple[str, ...]) -> tuple[int, str]:
        # a client for each call: waiting threads can't share a connection
        api = sdk().from_env(timeout=30).api
        try:
            created = api.exec_create(container, list(command))
            output = api.exec_start(created["Id"]).decode(errors="replace")
            return int(api.exec_inspect(created["Id"])["ExitCode"] or 0), output
        except sdk().errors.DockerException as error:
            return 1, str(error)
        finally:
            api.close()

    def _log(self, container: str) -> str:
        text: str = self._api().logs(container, tail=LOG_LINES).decode(errors="replace")
        # joined to one line for the evidence of a check result
        return " | ".join(line.strip()[:200] for line in text.splitlines() if line.strip())


def _networks(service: Service) -> tuple[str, ...]:
    # Docker's name of the machine's own network
    return ("host",) if service.host_address else service.networks or ("default",)


def _planned_gpus(gpus: GpuRequest | None) -> tuple[str, ...]:
    if gpus is None or gpus.driver == "amd":
        return ()
    return gpus.ids or (f"count={gpus.count}",)


def _reserved_gpus(requests: Any) -> tuple[str, ...]:
    found: list[str] = []
    for request in requests or ():
        found += request.get("DeviceIDs") or [f"count={request.get('Count', 0)}"]
    return tuple(found)
