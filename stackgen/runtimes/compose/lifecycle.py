"""Start, stop and inspect stacks in containers: commands through Compose, state through the Docker SDK."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen import engines
from stackgen.errors import MachineError, StartError
from stackgen.plan import Plan, Service
from stackgen.runtimes.compose.command import compose_command, compose_error, run
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.stack.envfile import read_env

__all__ = ["ServiceState", "connect", "down", "logs", "status", "up", "wait_until_healthy"]

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


def up(plan: Plan, folder: Path, progress: Progress, timeout: float | None = None) -> None:
    """Starts the stack, and returns when every service is healthy. The endpoints are checked by the caller.

    Calls `progress(service, phase)` on every change of phase. `timeout` is in seconds; by default it depends on the
    longest start period. Raises StartError with the reason from the log as soon as a container has failed permanently.
    """
    client = connect()
    timeout = timeout or 120 + max((s.health.start_period for s in plan.services if s.health), default=0)
    deadline = time.monotonic() + timeout
    before = {state.service: state for state in status(plan, client)}
    for is_last in (False, False, True):
        with tempfile.TemporaryFile("w+") as output:
            args = [*compose_command(folder), "--progress", "plain", "up", "--detach", "--remove-orphans"]
            # in its own process group: Ctrl-C must reach stackgen first, which then ends Compose
            process = subprocess.Popen(args, stdout=output, stderr=output, text=True, start_new_session=True)
            try:
                recovered = wait_until_healthy(plan, client, process, progress, deadline, before)
            except BaseException:
                process.terminate()
                process.wait(timeout=30)
                raise
            output.seek(0)
            if process.returncode and (is_last or not recovered):
                raise compose_error(output.read())
        if not process.returncode:
            return


def wait_until_healthy(
    plan: Plan, client: Any, process: subprocess.Popen[str], progress: Progress, deadline: float,
    before: Mapping[str, ServiceState],
) -> bool:  # fmt: skip
    """Reports phases until all services of `plan` are healthy (or complete) and `process`, `compose up`, has exited.

    `deadline` is a time.monotonic() value. `before` contains the known states of services before this start. Returns True
    if Compose may be called again, because Compose gave up on a service that then came up. Raises StartError.
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
        for service in failed:
            if service not in stale:
                raise StartError(*_describe_failure(service, states[service.name], client, plan))
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
        what = "was killed: memory ran out on the host, or reached the container's memory limit"
    elif state.state == "running":
        what = f"is running, but its health check reports {state.health}"
    else:
        what = f"exited with code {state.exit_code}{attempts}"
    text = "\n".join(f"  | {line[:400]}" for line in shown)
    return f"{service.name} {what}\n{text}", f"run `stackgen logs {service.name}` for the full log"


def status(plan: Plan, client: Any = None) -> list[ServiceState]:
    """Returns the state of every service of the plan, in its order. Raises MachineError if Docker does not answer."""
    containers: dict[str, Any] = {}
    label = f"com.docker.compose.project={plan.name}"
    client = client or connect()
    for container in client.api.containers(all=True, filters={"label": label}):
        containers[container["Labels"].get("com.docker.compose.service", "")] = container["Id"]
    return [_inspect_service(service, client, containers.get(service.name)) for service in plan.services]


def _inspect_service(service: Service, client: Any, container: str | None) -> ServiceState:
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
    )


def down(folder: Path, volumes: bool = False) -> None:
    """Stops and removes containers and networks; volumes, with the downloaded weights, only if `volumes` is set."""
    # orphans are services of an earlier stack.yaml, under the same project name
    args = [*compose_command(folder), "down", "--remove-orphans", *(["--volumes"] if volumes else [])]
    run(args, env=_compose_env(folder))


def logs(folder: Path, services: tuple[str, ...], follow: bool, tail: str) -> int:
    """Runs `docker compose logs` in this terminal and returns its exit code. Raises MachineError without Docker."""
    args = [*compose_command(folder), "logs", "--tail", tail, *(["--follow"] if follow else []), *services]
    try:
        return subprocess.run(args, env=_compose_env(folder)).returncode
    except OSError:
        raise MachineError("docker is not installed", "install Docker Engine with the compose plugin") from None


def _compose_env(folder: Path) -> dict[str, str]:
    # Compose refuses to read a file whose ${KEY:?} is missing, but stopping a stack needs no key
    try:
        names = re.findall(r"\$\{([A-Za-z_]\w*):\?", (folder / "compose.yaml").read_text("utf-8"))
    except OSError:
        names = []
    return dict.fromkeys(names, "-") | read_env(folder) | dict(os.environ)


def _read_log(client: Any, plan: Plan, service: str, tail: int) -> str:
    label = [f"com.docker.compose.project={plan.name}", f"com.docker.compose.service={service}"]
    containers = client.api.containers(all=True, filters={"label": label})
    return client.api.logs(containers[0]["Id"], tail=tail).decode(errors="replace") if containers else ""


def connect() -> Any:
    """Returns a client of the Docker SDK. Raises MachineError if the Docker engine does not answer."""
    try:
        client = sdk().from_env(timeout=30)
        client.ping()
    except (sdk().errors.DockerException, OSError) as error:
        hint = "start the engine (`sudo systemctl start docker`), or join the docker group; `--runtime process` needs no engine"
        raise MachineError(f"the Docker engine does not answer: {error}", hint) from None
    return client
