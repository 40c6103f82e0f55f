"""Collects what a diagnosis reads: states and logs from Docker, a log from a file, metrics from inside a container."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from stackgen.diagnose import Evidence, Finding, ServiceEvidence, diagnose
from stackgen.diagnose.evidence import LOG_LINES, guess_engine
from stackgen.diagnose.lines import split_services
from stackgen.envfile import read_env
from stackgen.errors import MachineError, StackgenError
from stackgen.plan import Plan, Service
from stackgen.runtimes.compose import _client as connect
from stackgen.spec import StackSpec

__all__ = ["explain_failure", "of_container", "of_log", "of_stack", "versions"]

METRICS = "import sys,urllib.request as u;sys.stdout.write(u.urlopen(sys.argv[1],timeout=5).read().decode())"
LOG_BYTES = 4_000_000


def explain_failure(plan: Plan, folder: Path, compose_output: str = "") -> Finding | None:
    """THE cause of a start that failed, for `up`; None where nothing is found. Quick, and never raises."""
    try:
        evidence = of_stack(plan, folder, _spec(plan, folder), compose_output, metrics=False, timeout=5)
        return next(iter(diagnose(evidence)), None)
    # a diagnosis that fails must not hide the failure itself
    except Exception:
        return None


def of_stack(
    plan: Plan,
    folder: Path,
    spec: StackSpec | None = None,
    compose_output: str = "",
    checks: tuple[tuple[str, str], ...] = (),
    metrics: bool = True,
    timeout: float = 30,
) -> Evidence:
    """The evidence of a stack in containers. Raises MachineError where the Docker engine does not answer."""
    import docker.errors

    client = connect()
    client.api.timeout = timeout
    label = f"com.docker.compose.project={plan.name}"
    try:
        listed = client.api.containers(all=True, filters={"label": label})
        ids = {one["Labels"].get("com.docker.compose.service", ""): one["Id"] for one in listed}
        with ThreadPoolExecutor(8) as pool:
            services = tuple(pool.map(lambda one: _service(client, one, ids.get(one.name), metrics), plan.services))
    except (docker.errors.DockerException, OSError) as error:
        raise MachineError(f"the Docker engine does not answer: {error}", "`docker info` tells more") from None
    return Evidence(services, compose_output, spec, plan, checks, _secrets(folder))


def of_container(name: str) -> Evidence:
    """The evidence of one container, of whatever origin. Raises StackgenError where there is none of that name."""
    import docker.errors

    client = connect()
    try:
        found = client.api.inspect_container(name)
    except docker.errors.NotFound:
        raise StackgenError(f"there is no container {name}", "`docker ps --all` lists them") from None
    except docker.errors.DockerException as error:
        raise MachineError(f"the Docker engine does not answer: {error}", "`docker info` tells more") from None
    environment = [word.partition("=") for word in found["Config"].get("Env") or ()]
    secret = tuple(value for key, _, value in environment if any(mark in key for mark in ("KEY", "TOKEN", "SECRET")))
    log = _log(client, found["Id"])
    service = (found["Config"].get("Labels") or {}).get("com.docker.compose.service") or name
    return Evidence((_read(found, service, guess_engine(log), "engine", log),), secrets=secret)


def of_log(text: str) -> Evidence:
    """The evidence in a log that somebody saved or pasted; that of `docker compose logs` is taken apart."""
    text = text[-LOG_BYTES:]
    parts = split_services(text)
    services = tuple(
        ServiceEvidence(name or "log", engine=guess_engine(part) or guess_engine(text), log=_tail(part))
        for name, part in parts.items()
    )
    # a paste of what `docker compose up` printed is a log as well
    return Evidence(services, compose_output=text if set(parts) == {""} else "")


def versions() -> dict[str, str]:
    """Versions for a report; what can't be asked is left out."""
    from stackgen import __version__

    found = {"stackgen": __version__}
    for name, words in (("docker", ("docker", "version", "--format", "{{json .}}")),
                        ("compose", ("docker", "compose", "version", "--short"))):  # fmt: skip
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            continue
        said = done.stdout.strip()
        if name == "docker" and said:
            parsed = json.loads(said)
            said = str((parsed.get("Server") or parsed.get("Client") or {}).get("Version", ""))
        if said:
            found[name] = said
    return found


def _spec(plan: Plan, folder: Path) -> StackSpec | None:
    """What stands in stack.yaml beside the rendered files, if that is what the plan was made from."""
    from stackgen.load import load_stack

    try:
        spec = load_stack(folder / "stack.yaml")
    # rendered elsewhere, or changed since: the cause is told without the change then
    except StackgenError:
        return None
    return spec if spec.name == plan.name else None


def _service(client: Any, service: Service, container: str | None, metrics: bool) -> ServiceEvidence:
    import docker.errors

    try:
        found = client.api.inspect_container(container) if container else None
    # Compose replaced it between the two calls
    except docker.errors.NotFound:
        found = None
    if found is None:
        return ServiceEvidence(service.name, service.role, service.engine, "absent", image=service.image)
    read = _read(found, service.name, service.engine, service.role, _log(client, found["Id"]))
    if metrics and service.engine == "vllm" and service.role == "engine" and read.works and service.ports:
        return replace(read, metrics=_metrics(found["Id"], service.ports[0].container))
    return read


def _read(found: Mapping[str, Any], name: str, engine: str, role: str, log: str) -> ServiceEvidence:
    state = found["State"]
    health = state.get("Health") or {}
    said = [str(one.get("Output", "")).strip() for one in health.get("Log") or ()]
    status = state["Status"]
    return ServiceEvidence(
        service=name, role=role, engine=engine, state=status,
        # Docker calls what was stopped before it was healthy `unhealthy`: the exit says more
        health=health.get("Status", "") if status == "running" else "",
        exit_code=state["ExitCode"] if status in ("exited", "dead") else None,
        oom_killed=bool(state["OOMKilled"]), restarts=found["RestartCount"], error=state.get("Error", ""),
        health_log="\n".join(said[-3:])[-4000:], log=log, image=found["Config"].get("Image", ""),
        command=tuple(found["Config"].get("Cmd") or ()),
    )  # fmt: skip


def _log(client: Any, container: str) -> str:
    text: str = client.api.logs(container, tail=LOG_LINES).decode(errors="replace")
    return text[-LOG_BYTES:]


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-LOG_LINES:])


def _metrics(container: str, port: int) -> str:
    """The text of /metrics, asked from inside, where no port needs to be published; "" where it can't be had."""
    words = ["docker", "exec", container, "python3", "-c", METRICS, f"http://127.0.0.1:{port}/metrics"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=15)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _secrets(folder: Path) -> tuple[str, ...]:
    try:
        values = read_env(folder)
    except (OSError, UnicodeDecodeError):
        return ()
    found = [value for value in values.values() if value]
    for name, value in values.items():
        # the token itself, where the variable names its file
        if name.endswith("_FILE") and Path(value).is_file():
            found.append(Path(value).read_text("utf-8", "replace").strip())
    return tuple(found)
