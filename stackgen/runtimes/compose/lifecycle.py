"""Stacks in containers: Compose by subprocess, state through the Docker SDK."""

from __future__ import annotations

from stackgen.runtimes.compose.docker_sdk import sdk

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen import engines
from stackgen.stack.envfile import read_env
from stackgen.errors import MachineError, StackgenError, StartError
from stackgen.plan import Plan, Service
from stackgen.runtimes.compose.command import compose_command, run

__all__ = ["ServiceState", "down", "logs", "status", "up"]

DOWNLOADED = re.compile(r"stackgen: download (\S+) (\d+)/(\d+) bytes")
FATAL = re.compile(r"(Error|Exception|error:|refused|cannot|never healthy)", re.IGNORECASE)

Progress = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class ServiceState:
    """A service as the engine sees it: `state` (running, exited, …, or absent), `health` ("" without a check).

    `restarts` counts what Docker did, `exit_code` is None while it runs, `finished` is when it last ended.
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
    """Starts the stack and returns when every service is healthy (the caller then asks the endpoint itself).

    `progress(service, phase)` is called whenever a phase changes. Raises StartError with the reason from the log
    as soon as a container is down for good.
    """
    client = _client()
    limit = timeout or 120 + max((s.health.start_period for s in plan.services if s.health), default=0)
    end = time.monotonic() + limit
    # what lies dead from an earlier start is no failure of this one
    before = {state.service: state.finished for state in status(plan, client)}
    for last in (False, False, True):
        with tempfile.TemporaryFile("w+") as said:
            words = [*compose_command(folder), "--progress", "plain", "up", "--detach", "--remove-orphans"]
            # in a process group of its own, so that Ctrl-C reaches us first and we end it in order
            started = subprocess.Popen(words, stdout=said, stderr=said, text=True, start_new_session=True)
            try:
                recovered = _follow(plan, client, started, progress, end, before)
            except BaseException:
                started.terminate()
                started.wait(timeout=30)
                raise
            said.seek(0)
            if started.returncode and (last or not recovered):
                raise _refused(said.read())
        if not started.returncode:
            return


def _follow(
    plan: Plan, client: Any, started: subprocess.Popen[str], progress: Progress, end: float, before: dict[str, str]
) -> bool:
    """Reports phases until all services are healthy (or done) and `started` has ended.

    True when Compose gave up on a service that failed its first try and then came up: it must be called again.
    """
    phases: dict[str, str] = {}
    troubled = False
    images = {tag for image in client.api.images() for tag in image["RepoTags"] or ()}
    while True:
        over = started.poll() is not None
        states = {state.service: state for state in status(plan, client)}
        for service in plan.services:
            phase = _phase(service, states[service.name], client, plan, images)
            if phases.get(service.name) != phase:
                phases[service.name] = phase
                progress(service.name, phase)
        for service in plan.services:
            if _failed(service, states[service.name]) and states[service.name].finished != before[service.name]:
                raise StartError(*_reason(service, states[service.name], client, plan))
        if over and all(_done(s, states[s.name]) for s in plan.services):
            return True
        if over and started.returncode:
            # Compose leaves at the first exit of a service that others wait for; Docker still tries it again
            trying = any(s.state == "restarting" or (s.restarts and s.health == "starting") for s in states.values())
            if not trying:
                return troubled
            troubled = True
        if time.monotonic() > end:
            slow = next((s for s in plan.services if not _done(s, states[s.name])), plan.services[-1])
            message, _ = _reason(slow, states[slow.name], client, plan)
            raise StartError(
                f"no answer in time: {message}", f"models[].start_timeout gives it longer; `stackgen logs {slow.name}`"
            )
        time.sleep(0.5)


def _done(service: Service, state: ServiceState) -> bool:
    if service.role == "download":
        return state.state == "exited" and state.exit_code == 0
    return state.state == "running" and state.health in ("healthy", "")


def _failed(service: Service, state: ServiceState) -> bool:
    return (state.state == "exited" and (state.exit_code != 0 or service.role != "download")) or state.state == "dead"


def _phase(service: Service, state: ServiceState, client: Any, plan: Plan, images: set[str]) -> str:
    if state.state == "absent":
        if service.image in images or not (service.build or service.pull):
            return "wait"
        return "build the image" if service.build else "pull the image"
    if state.state == "created":
        return "wait for " + (", ".join(dependency.service for dependency in service.depends_on) or "its start")
    if _failed(service, state):
        return f"failed (exit code {state.exit_code})"
    if state.state == "restarting" or (state.restarts and state.health != "healthy"):
        return f"start failed, try {state.restarts + 1}"
    if _done(service, state):
        return "complete" if service.role == "download" else "ready"
    lines = _log(client, plan, service.name, 60).splitlines()
    if service.role == "download":
        found = [match for match in map(DOWNLOADED.search, lines) if match]
        return (
            f"download {found[-1][1]}: {_bytes(int(found[-1][2]))} of {_bytes(int(found[-1][3]))}"
            if found
            else "download"
        )
    if not service.engine:
        return "start"
    phase = "load"
    for line in lines:
        for pattern, name in engines.get(service.engine).phases:
            if re.search(pattern, line):
                phase = name
    return "warm up" if phase == "ready" else phase


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _reason(service: Service, state: ServiceState, client: Any, plan: Plan) -> tuple[str, str]:
    """What happened, with the lines of the log that say why, and where to look further."""
    log = _log(client, plan, service.name, 200)
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    # each try says the same again
    telling = list(dict.fromkeys(line for line in lines if FATAL.search(line)))[-8:] or lines[-8:]
    tries = f" after {state.restarts + 1} tries" if state.restarts else ""
    if state.oom_killed:
        what = "was killed: the host's memory, or its memory limit, is used up"
    elif state.state == "running":
        what = f"runs, but its health check says {state.health}"
    else:
        what = f"ended with code {state.exit_code}{tries}"
    return f"{service.name} {what}\n" + "\n".join(
        f"  | {line[:400]}" for line in telling
    ), f"`stackgen logs {service.name}` shows all of it"


def _refused(said: str) -> StackgenError:
    lines = [line for line in said.strip().splitlines() if line.strip()]
    error = _refusal("\n".join(f"  | {line}" for line in lines[-6:]), said.lower())
    error.output = said
    return error


def _refusal(last: str, text: str) -> StackgenError:
    if "port is already allocated" in text or "address already in use" in text:
        return StartError(f"a port is taken\n{last}", "stop who holds it (`ss -ltnp`), or set another `port:`")
    if "could not select device driver" in text:
        return MachineError(
            f"Docker can't hand out GPUs\n{last}", "install the NVIDIA container toolkit, or use gpu_driver: cdi"
        )
    if "required variable" in text or "is missing a value" in text:
        return StackgenError(f"a key is missing\n{last}", "`stackgen init` writes .env with a new key")
    if "cannot connect to the docker daemon" in text:
        return MachineError("the Docker engine does not answer", "start it, or join the docker group")
    if (
        "pull access denied" in text
        or "manifest unknown" in text
        or "no such host" in text
        or "failed to resolve" in text
    ):
        return MachineError(
            f"an image can't be had\n{last}", "check the name and this machine's way to the registry, or set `image:`"
        )
    return StartError(
        f"docker compose could not start the stack\n{last}", "`stackgen logs` and `stackgen status` tell more"
    )


def status(plan: Plan, client: Any = None) -> list[ServiceState]:
    """The state of every service of the plan, in its order."""
    containers: dict[str, Any] = {}
    label = f"com.docker.compose.project={plan.name}"
    client = client or _client()
    for container in client.api.containers(all=True, filters={"label": label}):
        containers[container["Labels"].get("com.docker.compose.service", "")] = container["Id"]
    return [_state(service, client, containers.get(service.name)) for service in plan.services]


def _state(service: Service, client: Any, container: str | None) -> ServiceState:

    try:
        found = client.api.inspect_container(container) if container else None
    except sdk().errors.NotFound:  # compose replaced it between the two calls
        found = None
    if found is None:
        return ServiceState(service.name, service.role, "absent", image=service.image)
    state, ports = found["State"], found["NetworkSettings"]["Ports"] or {}
    return ServiceState(
        service=service.name,
        role=service.role,
        state=state["Status"],
        health=(state.get("Health") or {}).get("Status", ""),
        restarts=found["RestartCount"],
        exit_code=state["ExitCode"] if state["Status"] in ("exited", "dead") else None,
        oom_killed=state["OOMKilled"],
        ports=tuple(f"{b['HostIp']}:{b['HostPort']}" for bindings in ports.values() for b in bindings or ()),
        image=service.image,
        finished=state["FinishedAt"],
    )


def down(folder: Path, volumes: bool = False) -> None:
    """Stops and removes containers and networks; volumes (the weights!) only when told."""
    run([*compose_command(folder), "down", "--remove-orphans", *(["--volumes"] if volumes else [])], env=_env(folder))


def logs(folder: Path, services: tuple[str, ...], follow: bool, tail: str) -> int:
    """Hands the terminal to `docker compose logs`; its exit code."""
    words = [*compose_command(folder), "logs", "--tail", tail, *(["--follow"] if follow else []), *services]
    try:
        return subprocess.run(words, env=_env(folder)).returncode
    except OSError:
        raise MachineError("docker is not installed", "install Docker Engine with the compose plugin") from None


def _env(folder: Path) -> dict[str, str]:
    # Compose refuses to read a file whose ${KEY:?} is missing, but stopping a stack needs no key
    try:
        names = re.findall(r"\$\{([A-Za-z_]\w*):\?", (folder / "compose.yaml").read_text("utf-8"))
    except OSError:
        names = []
    return dict.fromkeys(names, "-") | read_env(folder) | dict(os.environ)


def _log(client: Any, plan: Plan, service: str, tail: int) -> str:
    label = [f"com.docker.compose.project={plan.name}", f"com.docker.compose.service={service}"]
    found = client.api.containers(all=True, filters={"label": label})
    return client.api.logs(found[0]["Id"], tail=tail).decode(errors="replace") if found else ""


def _client() -> Any:

    try:
        client = sdk().from_env(timeout=30)
        client.ping()
    except (sdk().errors.DockerException, OSError) as error:
        hint = "start it (`sudo systemctl start docker`), or join the docker group; `--runtime process` needs no engine"
        raise MachineError(f"the Docker engine does not answer: {error}", hint) from None
    return client
