"""What stands behind an endpoint, told to the check: states from the engine, and each service's own probe.

The probe is the service's health check, run once more inside its container: that reaches workers on a network that
this machine does not see, under their own names.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from stackgen.check.target import Target
from stackgen.check.topology import Exercise, ServiceView, Unobservable
from stackgen.errors import StackgenError
from stackgen.plan import Endpoint, GpuRequest, Plan, Service
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.process.lifecycle import process_status

__all__ = ["ComposeObserver", "NoObserver", "ProcessObserver", "observed"]

# telling lines of a dead service's log
LOG_LINES = 5
AWAY = "the Docker engine does not answer: "


def observed(target: Target, plan: Plan, endpoint: Endpoint, folder: Path) -> Target:
    """`target` with eyes on the services behind it: of local processes where those run, else of containers.

    Without a Docker engine that answers nothing is seen, and the checks of services say so.
    """
    if (folder / ".stackgen").exists() and any(one.state == "running" for one in process_status(folder)):
        return replace(target, observer=ProcessObserver(plan, endpoint, folder))
    try:
        compose.status(plan)
    except (StackgenError, OSError) as error:
        # some errors begin with the same words, and an engine's own may be several lines
        return replace(target, observer=NoObserver(" ".join(str(error).split()).removeprefix(AWAY)))
    return replace(target, observer=ComposeObserver(plan, endpoint))


def behind(plan: Plan, endpoint: Endpoint) -> tuple[Service, ...]:
    """The services that an endpoint depends on: its own first, then replicas, a controller, and the workers."""
    front = plan.service(endpoint.service)
    replicas = tuple(plan.service(name) for name in endpoint.replicas)
    engines = {one.engine for one in (front, *replicas)}
    controllers = [one for one in plan.services if one.role == "controller" and one.engine in engines]
    workers = (plan.service(name) for name in endpoint.workers)
    return (front, *replicas, *(controllers if endpoint.workers else ()), *workers)


class NoObserver:
    """Sees nothing, for want of a Docker engine; both raise Unobservable with the reason."""

    def __init__(self, reason: str) -> None:
        self._reason = AWAY + reason

    def services(self) -> tuple[ServiceView, ...]:
        """See `Observer`."""
        raise Unobservable(self._reason)

    def exercise(self, timeout: float) -> tuple[Exercise, ...]:
        """See `Observer`."""
        raise Unobservable(self._reason)


class ProcessObserver:
    """Local processes: their states are known, and no probe is run inside of them."""

    def __init__(self, plan: Plan, endpoint: Endpoint, folder: Path) -> None:
        self._services = behind(plan, endpoint)
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

    def exercise(self, timeout: float) -> tuple[Exercise, ...]:
        """None: the supervisor's own health checks are in the states."""
        return ()


class ComposeObserver:
    """Containers of a Compose project, through the Docker SDK."""

    def __init__(self, plan: Plan, endpoint: Endpoint) -> None:
        self._plan = plan
        self._services = behind(plan, endpoint)
        self._client: Any = None

    def services(self) -> tuple[ServiceView, ...]:
        """See `Observer`; raises OSError where the engine does not answer."""
        return tuple(self._view(service, found) for service, found in self._found())

    def exercise(self, timeout: float) -> tuple[Exercise, ...]:
        """See `Observer`: all at the same time, as each may wait for a busy model."""
        done: dict[str, Exercise] = {}
        asked = [
            (service, found["Id"])
            for service, found in self._found()[1:]
            if found and found["State"]["Status"] == "running" and service.health
        ]

        def ask(service: Service, container: str) -> None:
            done[service.name] = self._exercise(service, container)

        # daemon threads: an exec that hangs can't be ended from here, and must not hold the program up
        threads = [threading.Thread(target=ask, args=words, daemon=True) for words in asked]
        for thread in threads:
            thread.start()
        end = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return tuple(done.get(one.name, Exercise(one.name, False, timeout, "")) for one, _ in asked)

    def _found(self) -> list[tuple[Service, Any]]:
        """Each service and what `docker inspect` says of its container, None where there is none."""
        api = self._api()
        label = f"com.docker.compose.project={self._plan.name}"
        listed = api.containers(all=True, filters={"label": label})
        ids = {one["Labels"].get("com.docker.compose.service", ""): one["Id"] for one in listed}
        found: list[tuple[Service, Any]] = []
        for service in self._services:
            try:
                found.append((service, api.inspect_container(ids[service.name]) if service.name in ids else None))
            # Compose replaced it between the two calls
            except sdk().errors.NotFound:
                found.append((service, None))
        return found

    def _api(self) -> Any:

        if self._client is None:
            try:
                self._client = sdk().from_env(timeout=30).api
            except sdk().errors.DockerException as error:
                raise OSError(f"{AWAY}{error}") from None
        return self._client

    def _view(self, service: Service, found: Any) -> ServiceView:
        front = service is self._services[0]
        planned = _planned(service.gpus)
        if found is None:
            return ServiceView(service.name, service.role, front, "absent", image=service.image, gpus_planned=planned)
        state, ports = found["State"], found["NetworkSettings"]["Ports"] or {}
        running = state["Status"] == "running"
        reserved = _reserved(found["HostConfig"].get("DeviceRequests"))
        digest, changed = self._image(service, found["Image"])
        joined = {name.removeprefix(f"{self._plan.name}_") for name in found["NetworkSettings"]["Networks"] or {}}
        return ServiceView(
            name=service.name, role=service.role, front=front, state=state["Status"],
            health=(state.get("Health") or {}).get("Status", ""), restarts=found["RestartCount"],
            exit_code=state["ExitCode"] if state["Status"] in ("exited", "dead") else None,
            oom_killed=state["OOMKilled"], image=service.image, digest=digest, image_changed=changed,
            # AMD cards are device files and no reservation
            gpus_planned=planned, gpus_reserved=reserved if planned or reserved else (),
            gpus_seen=self._seen(found["Id"]) if reserved and running else None,
            missing_networks=tuple(name for name in service.networks or ("default",) if name not in joined),
            published=tuple(f"{b['HostIp']}:{b['HostPort']}" for bindings in ports.values() for b in bindings or ()),
            log="" if running else self._log(found["Id"]),
        )  # fmt: skip

    def _image(self, service: Service, used: str) -> tuple[str, bool]:
        """The id of the image in use, by its registry digest where it has one, and whether the tag moved on."""
        try:
            now = self._api().inspect_image(service.image)
        except sdk().errors.DockerException:
            return used, False
        digests = now.get("RepoDigests") or ()
        same = now["Id"] == used
        return (digests[0].partition("@")[2] if digests and same else used), not same

    def _seen(self, container: str) -> int | None:
        """How many GPUs the driver shows inside; 0 where it lost them, None where there is no tool to ask."""
        code, text = self._execute(container, ("nvidia-smi", "-L"))
        if code == 0:
            return sum(line.startswith("GPU ") for line in text.splitlines())
        return 0 if "NVML" in text else None

    def _exercise(self, service: Service, container: str) -> Exercise:
        started = time.monotonic()
        try:
            code, said = self._execute(container, service.health.command if service.health else ())
        except OSError as error:
            code, said = 1, str(error)
        return Exercise(service.name, code == 0, round(time.monotonic() - started, 4), said.strip()[-400:])

    def _execute(self, container: str, words: tuple[str, ...]) -> tuple[int, str]:

        # a client of its own: one connection can't be shared by threads that wait
        api = sdk().from_env(timeout=30).api
        try:
            made = api.exec_create(container, list(words))
            said = api.exec_start(made["Id"]).decode(errors="replace")
            return int(api.exec_inspect(made["Id"])["ExitCode"] or 0), said
        except sdk().errors.DockerException as error:
            return 1, str(error)
        finally:
            api.close()

    def _log(self, container: str) -> str:
        text: str = self._api().logs(container, tail=LOG_LINES).decode(errors="replace")
        return " | ".join(line.strip()[:200] for line in text.splitlines() if line.strip())


def _planned(gpus: GpuRequest | None) -> tuple[str, ...]:
    if gpus is None or gpus.driver == "amd":
        return ()
    return gpus.ids or (f"count={gpus.count}",)


def _reserved(requests: Any) -> tuple[str, ...]:
    found: list[str] = []
    for request in requests or ():
        found += request.get("DeviceIDs") or [f"count={request.get('Count', 0)}"]
    return tuple(found)
