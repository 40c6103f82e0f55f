"""Start, stop and inspect stacks in containers: commands through Compose, state through the Docker SDK."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen import engines
from stackgen.errors import MachineError, StartError
from stackgen.plan import Plan, Service
from stackgen.plan.startup import start_seconds, starts_without
from stackgen.runtimes.compose.child import create_containers, end_compose, start_compose
from stackgen.runtimes.compose.command import compose_error
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.published_ports import find_unreachable_ports

__all__ = ["ServiceState", "connect", "status", "up", "wait_until_healthy"]

# printed by templates/images/common/download.py
DOWNLOAD_PROGRESS = re.compile(r"stackgen: download (\S+) (\d+)/(\d+) bytes")
ERROR_LINE = re.compile(r"(Error|Exception|error:|refused|cannot|never healthy)", re.IGNORECASE)

Progress = Callable[[str, str], None]


# these names are the JSON of `stackgen status --json`
@dataclass(frozen=True, slots=True)
class ServiceState:
    """A service as the Docker engine sees it.

    `state` is Docker's (running, exited, …) or `absent`; `health` is "" without a health check. `restarts` counts
    restarts by Docker, `exit_code` is None while the service runs, `finished` is the time of its last exit.
    `unreachable_ports` are those of the `ports` that accept no connection, although the container is healthy.
    """

    service: str
    role: str
    state: str
    health: str = ""
    restarts: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    ports: tuple[str, ...] = ()
    image: str = ""
    finished: str = ""
    unreachable_ports: tuple[str, ...] = ()


def up(
    plan: Plan, folder: Path, progress: Progress, timeout: float | None = None, recreate: Sequence[str] | None = None
) -> None:
    """Starts the stack, and returns when every service is healthy. The endpoints are checked by the caller.

    Calls `progress(service, phase)` on every change of phase. `timeout` is in seconds; by default it depends on the
    longest start period. `recreate` are the services whose containers may be replaced, by default all.

    Raises StartError with the reason from the log as soon as a container has failed permanently.
    """
    client = connect()
    deadline = time.monotonic() + (timeout or 120 + start_seconds(plan.services))
    states = status(plan, client)
    is_new = all(state.state == "absent" for state in states)
    # replaced first, and started afterwards: the exit of a container that is being replaced is no failed start
    if not is_new and (recreate is None or recreate):
        args = ["--remove-orphans"] if recreate is None else ["--no-deps", *recreate]

        images = {tag for image in client.api.images() for tag in image["RepoTags"] or ()}
        missing = {one.name: one for one in plan.services if one.image not in images}

        def report() -> None:
            for state in status(plan, client) if missing else ():
                # without an image, Compose is still pulling or building it
                if state.state == "absent" and (service := missing.pop(state.service, None)):
                    progress(service.name, _phase(service, state, client, plan, images))

        create_containers(plan, folder, client, args, deadline, report, lambda: _has_started(plan, client))
        states = status(plan, client)
    before = {state.service: state for state in states}
    args = ["--detach", "--remove-orphans", *([] if is_new else ["--no-recreate"])]
    for is_last in (False, False, True):
        with tempfile.TemporaryFile("w+") as output:
            process = start_compose(folder, output, *args)
            try:
                recovered = wait_until_healthy(plan, client, process, progress, deadline, before)
            except BaseException:
                end_compose(process, plan, lambda: _has_started(plan, client))
                raise
            output.seek(0)
            if process.returncode and (is_last or not recovered):
                raise compose_error(output.read())
        if not process.returncode:
            return


def _has_started(plan: Plan, client: Any) -> bool:
    """Whether every container runs, has run, or waits for another service: then Compose only waits as well."""
    states = {state.service: state for state in status(plan, client)}
    ready = {service.name for service in plan.services if _is_up(service, states[service.name])}
    failed = {service.name for service in plan.services if _has_failed(service, states[service.name])}
    return all(
        states[service.name].state not in ("absent", "created")
        or any(one.service not in ready and (one.required or one.service not in failed) for one in service.depends_on)
        for service in plan.services
    )


def wait_until_healthy(
    plan: Plan, client: Any, process: subprocess.Popen[str], progress: Progress, deadline: float,
    before: Mapping[str, ServiceState],
) -> bool:  # fmt: skip
    """Reports phases until all services of `plan` are healthy (or complete) and `process`, `compose up`, has exited.

    `deadline` is a time.monotonic() value. `before` contains the known states of services before this start. Returns
    True if Compose may be called again, because Compose gave up on a service that then came up. Raises StartError.
    """
    phases: dict[str, str] = {}
    failed_once = False
    images = {tag for image in client.api.images() for tag in image["RepoTags"] or ()}
    while True:
        # polled before the states are read, so that they include Compose's last action
        has_exited = process.poll() is not None
        states = {state.service: state for state in status(plan, client)}
        failed = [service for service in plan.services if _has_failed(service, states[service.name])]
        # an exit in an earlier start, or of a container that Compose is replacing, must not fail this start
        stale = [s for s in failed if _is_stale(states[s.name], before.get(s.name), is_replacing=not has_exited)]
        for service in plan.services:
            phase = "waiting" if service in stale else _phase(service, states[service.name], client, plan, images)
            if phases.get(service.name) != phase:
                phases[service.name] = phase
                progress(service.name, phase)
        broken = [service for service in failed if service not in stale]
        left = [s for s in plan.services if s not in failed and not _is_up(s, states[s.name])]
        # Compose still starts the services that don't need a broken one
        goes_on = starts_without(left, broken) and not process.returncode and time.monotonic() < deadline
        if broken and not goes_on:
            raise StartError(*_describe_failure(broken[0], states[broken[0].name], client, plan))
        # also after a failed `up`: then a second call only confirms the running services
        if has_exited and all(_is_up(s, states[s.name]) for s in plan.services):
            return True
        if has_exited and process.returncode:
            # Compose exits as soon as a service that others wait for exits, but Docker still restarts that service
            is_retrying = any(
                s.state == "restarting" or (s.restarts and s.health == "starting") for s in states.values()
            )
            if not is_retrying:
                return failed_once
            failed_once = True
        if time.monotonic() > deadline:
            slow = next((s for s in plan.services if not _is_up(s, states[s.name])), plan.services[-1])
            message, _ = _describe_failure(slow, states[slow.name], client, plan)
            raise StartError(
                f"start timed out: {message}",
                f"increase models[].start_timeout, or look for the cause in `stackgen logs {slow.name}`",
            )
        time.sleep(0.5)


def _is_up(service: Service, state: ServiceState) -> bool:
    if service.role == "download":
        return state.state == "exited" and state.exit_code == 0
    return state.state == "running" and state.health in ("healthy", "")


def _has_failed(service: Service, state: ServiceState) -> bool:
    # only a download may exit: an engine that exits with 0 has failed too
    return (state.state == "exited" and (state.exit_code != 0 or service.role != "download")) or state.state == "dead"


def _is_stale(state: ServiceState, before: ServiceState | None, is_replacing: bool) -> bool:
    if before is None:
        return False
    was_running = before.state in ("running", "restarting", "paused")
    return state.finished == before.finished or (was_running and is_replacing)


def _phase(service: Service, state: ServiceState, client: Any, plan: Plan, images: set[str]) -> str:
    if state.state == "absent":
        # no container and no image: Compose is still pulling or building
        if service.image in images or not (service.build or service.pull):
            return "waiting"
        return "building the image" if service.build else "pulling the image"
    if state.state == "created":
        return "waiting for " + (", ".join(dependency.service for dependency in service.depends_on) or "its start")
    if _has_failed(service, state):
        return f"failed (exit code {state.exit_code})"
    if state.state == "restarting" or (state.restarts and state.health != "healthy"):
        return f"start failed, attempt {state.restarts + 1}"
    if _is_up(service, state):
        return "complete" if service.role == "download" else "ready"
    lines = _read_log(client, plan, service.name, 60).splitlines()
    if service.role == "download":
        matches = [match.groups() for match in map(DOWNLOAD_PROGRESS.search, lines) if match]
        if not matches:
            return "downloading"
        repository, done, total = matches[-1]
        return f"downloading {repository}: {_format_bytes(int(done))} of {_format_bytes(int(total))}"
    if not service.engine:
        return "starting"
    phase = "loading"
    for line in lines:
        for pattern, name in engines.get(service.engine).phases:
            # the last match counts, because an engine that restarted logs its phases again
            if re.search(pattern, line):
                phase = name
    # the engine reports that it is ready before the health check has generated its first token
    return "warming up" if phase == "ready" else phase


def _format_bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _describe_failure(service: Service, state: ServiceState, client: Any, plan: Plan) -> tuple[str, str]:
    """Returns a message, with the lines of the log that show the reason, and a hint."""
    log = _read_log(client, plan, service.name, 200)
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    # each attempt logs the same errors again, so they are shown once
    shown = list(dict.fromkeys(line for line in lines if ERROR_LINE.search(line)))[-8:] or lines[-8:]
    attempts = f" after {state.restarts + 1} attempts" if state.restarts else ""
    if state.oom_killed:
        what = "was killed, because the host ran out of memory or the container reached its memory limit"
    elif state.state == "running":
        what = f"is running, but its health check reports {state.health}"
    else:
        what = f"exited with code {state.exit_code}{attempts}"
    # a service that failed before its first line has no log
    text = "".join(f"\n  | {line[:400]}" for line in shown)
    return f"{service.name} {what}{text}", f"run `stackgen logs {service.name}` for the full log"


def status(plan: Plan, client: Any = None, *, with_ports: bool = False) -> list[ServiceState]:
    """Returns the state of every service of the plan, in its order. Raises MachineError if Docker does not answer.

    `with_ports` also tries to connect to the published ports.
    """
    containers: dict[str, Any] = {}
    # a one-off container (`docker compose run`) is not the service's container
    labels = [f"com.docker.compose.project={plan.name}", "com.docker.compose.oneoff=False"]
    client = client or connect()
    for container in client.api.containers(all=True, filters={"label": labels}):
        containers[container["Labels"].get("com.docker.compose.service", "")] = container["Id"]
    return [_inspect_service(one, client, containers.get(one.name), with_ports) for one in plan.services]


def _inspect_service(service: Service, client: Any, container: str | None, with_ports: bool) -> ServiceState:
    try:
        data = client.api.inspect_container(container) if container else None
    # Compose replaced the container between the two calls
    except sdk().errors.NotFound:
        data = None
    if data is None:
        return ServiceState(service.name, service.role, "absent", image=service.image)
    state, ports = data["State"], data["NetworkSettings"]["Ports"] or {}
    return ServiceState(
        service=service.name,
        role=service.role,
        state=state["Status"],
        health=(state.get("Health") or {}).get("Status", ""),
        restarts=data["RestartCount"],
        # Docker reports 0 for a container that has not exited yet
        exit_code=state["ExitCode"] if state["Status"] in ("exited", "dead") else None,
        oom_killed=state["OOMKilled"],
        ports=tuple(f"{b['HostIp']}:{b['HostPort']}" for bindings in ports.values() for b in bindings or ()),
        image=service.image,
        finished=state["FinishedAt"],
        unreachable_ports=find_unreachable_ports(data) if with_ports else (),
    )


def _read_log(client: Any, plan: Plan, service: str, tail: int) -> str:
    label = [f"com.docker.compose.project={plan.name}", f"com.docker.compose.service={service}"]
    containers = client.api.containers(all=True, filters={"label": label})
    return client.api.logs(containers[0]["Id"], tail=tail).decode(errors="replace") if containers else ""


def connect(timeout: float = 30.0) -> Any:
    """Returns a client of the Docker SDK. Raises MachineError if the Docker engine does not answer.

    `timeout` limits each request to the engine, in seconds.
    """
    client = None
    try:
        client = sdk().from_env(timeout=timeout)
        client.ping()
    except (sdk().errors.DockerException, OSError) as error:
        if client is not None:
            client.close()
        hint = (
            "start the Docker engine (`sudo systemctl start docker`), or add your user to the group `docker`;"
            " `--runtime process` needs no Docker engine"
        )
        raise MachineError(f"the Docker engine does not answer: {error}", hint) from None
    return client
