"""Collects what a diagnosis reads: states and logs from Docker or of local processes, metrics, and the GPUs' state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from stackgen import __version__
from stackgen.diagnose import Evidence, Finding, ServiceEvidence, diagnose
from stackgen.diagnose.evidence import HEAD_LINES, LOG_LINES, guess_engine
from stackgen.diagnose.gpus import GpuState
from stackgen.diagnose.log_lines import CUT, joined, shortened, split_services, window
from stackgen.diagnose.secrets import given_secrets, stack_secrets
from stackgen.errors import MachineError, StackgenError
from stackgen.plan import Plan, Service
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.lifecycle import ServiceState
from stackgen.runtimes.compose.lifecycle import _client as connect
from stackgen.runtimes.observation.gpu_tools import gpu_state
from stackgen.runtimes.process.lifecycle import STATE, process_status
from stackgen.runtimes.process.local_plan import open_local
from stackgen.spec import StackSpec
from stackgen.stack.envfile import read_env
from stackgen.stack.load import load_stack

__all__ = [
    "explain_failure", "of_container", "of_log", "of_processes", "of_stack", "ran_as_processes", "versions",
]  # fmt: skip

METRICS = "import sys,urllib.request as u;sys.stdout.write(u.urlopen(sys.argv[1],timeout=5).read().decode())"
LOG_BYTES = 4_000_000
HEAD_BYTES = 1_000_000


def explain_failure(
    plan: Plan, folder: Path, compose_output: str = "", processes: Path | None = None
) -> Finding | None:
    """THE cause of a start that failed, for `up`; None where nothing is found. Quick, and never raises.

    `processes` is the stack file where it was started as local processes.
    """
    try:
        spec = _spec(plan, folder)
        if processes:
            evidence = of_processes(processes, spec)
        else:
            evidence = of_stack(plan, folder, spec, compose_output, metrics=False, timeout=5)
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
    client = connect()
    client.api.timeout = timeout
    try:
        ids = {one["Labels"].get("com.docker.compose.service", ""): one["Id"] for one in _containers(client, plan)}
        with ThreadPoolExecutor(8) as pool:
            gpus = pool.submit(_gpus)
            services = tuple(pool.map(lambda one: _service(client, one, ids.get(one.name), metrics), plan.services))
    except (sdk().errors.DockerException, OSError) as error:
        raise MachineError(f"the Docker engine does not answer: {error}", "`docker info` tells more") from None
    secrets = (*_secrets(folder), *stack_secrets(spec, plan))
    return Evidence(services, compose_output, spec, plan, checks, secrets, gpus.result())


def of_processes(stack_path: Path, spec: StackSpec | None = None) -> Evidence:
    """The evidence of a stack as local processes. Raises StackgenError where stack.yaml holds a mistake."""
    local = open_local(stack_path, STATE)
    states = {one.service: one for one in process_status(local.folder)}
    with ThreadPoolExecutor(8) as pool:
        gpus = pool.submit(gpu_state)
        services = tuple(
            pool.map(lambda one: _process(one, states.get(one.name), local.state_dir / "logs"), local.plan.services)
        )
    secrets = (*_secrets(local.folder), *stack_secrets(spec, local.plan))
    return Evidence(services, spec=spec, plan=local.plan, secrets=secrets, gpus=gpus.result())


def ran_as_processes(plan: Plan, folder: Path) -> bool:
    """Whether the stack was last started by `up --runtime process`: its processes run, or no container is newer."""
    state = folder / STATE / "state.json"
    if not state.exists():
        return False
    if any(one.state in ("running", "waiting", "restarting") for one in process_status(folder)):
        return True
    try:
        newest = max((one["Created"] for one in _containers(connect(), plan)), default=0)
    except (StackgenError, sdk().errors.DockerException, OSError):
        return True
    return state.stat().st_mtime >= newest


def of_container(name: str) -> Evidence:
    """The evidence of one container, of whatever origin. Raises StackgenError where there is none of that name."""
    client = connect()
    try:
        found = client.api.inspect_container(name)
    except sdk().errors.NotFound:
        raise StackgenError(f"there is no container {name}", "`docker ps --all` lists them") from None
    except sdk().errors.DockerException as error:
        raise MachineError(f"the Docker engine does not answer: {error}", "`docker info` tells more") from None
    environment = [(name, value) for name, _, value in (w.partition("=") for w in found["Config"].get("Env") or ())]
    secret = given_secrets(environment, found["Config"].get("Cmd") or ())
    log = _log(client, found["Id"])
    service = (found["Config"].get("Labels") or {}).get("com.docker.compose.service") or name
    return Evidence((_read(found, service, guess_engine(log), "engine", log),), secrets=secret, gpus=_gpus())


def of_log(text: str) -> Evidence:
    """The evidence in a log that somebody saved or pasted; that of `docker compose logs` is taken apart."""
    text = shortened(text)
    if len(text) > LOG_BYTES:
        text = f"{text[:HEAD_BYTES]}\n{CUT}\n{text[HEAD_BYTES - LOG_BYTES :]}"
    parts = split_services(text)
    services = tuple(
        ServiceEvidence(name or "log", engine=guess_engine(part) or guess_engine(text),
                        log=window(part, HEAD_LINES, LOG_LINES))
        for name, part in parts.items()
    )  # fmt: skip
    # a paste of what `docker compose up` printed is a log as well
    return Evidence(services, compose_output=text if set(parts) == {""} else "")


def versions() -> dict[str, str]:
    """Versions for a report; what can't be asked is left out."""
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
    try:
        spec = load_stack(folder / "stack.yaml")
    # rendered elsewhere, or changed since: the cause is told without the change then
    except StackgenError:
        return None
    return spec if spec.name == plan.name else None


def _service(client: Any, service: Service, container: str | None, metrics: bool) -> ServiceEvidence:

    try:
        found = client.api.inspect_container(container) if container else None
    # Compose replaced it between the two calls
    except sdk().errors.NotFound:
        found = None
    if found is None:
        return ServiceEvidence(service.name, service.role, service.engine, "absent", image=service.image)
    read = _read(found, service.name, service.engine, service.role, _log(client, found["Id"]))
    port = service.ports[0].container if service.ports else service.listens
    if metrics and service.engine == "vllm" and service.role == "engine" and read.works and port:
        # from inside, where no port needs to be published
        return replace(read, metrics=_ask(["docker", "exec", found["Id"], "python3"], port))
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


def _containers(client: Any, plan: Plan) -> list[Any]:
    label = f"com.docker.compose.project={plan.name}"
    found: list[Any] = client.api.containers(all=True, filters={"label": label})
    return found


def _log(client: Any, container: str) -> str:
    """The last lines of the log, and its first ones where it is longer: how it was started stands only there."""
    tail = client.api.logs(container, tail=LOG_LINES).decode(errors="replace")[-LOG_BYTES:].splitlines()
    if len(tail) < LOG_LINES:
        return shortened("\n".join(tail))
    # the API has no way to ask for the first lines, and its library none to end a stream early without leaving a socket
    words = ["docker", "logs", container]
    try:
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as reading:
            assert reading.stdout
            lines = [line.decode(errors="replace").rstrip("\r\n") for line in islice(reading.stdout, HEAD_LINES)]
            reading.terminate()
    # an engine without the command: its last lines are known all the same
    except OSError:
        lines = []
    return shortened(joined(lines, tail))


def _process(service: Service, state: ServiceState | None, logs: Path) -> ServiceEvidence:
    """A local process in Docker's words: its supervisor does what Docker and supervise.sh do for a container."""
    if state is None or state.state == "absent":
        return ServiceEvidence(service.name, service.role, service.engine, "absent")
    place = logs / f"{service.name}.log"
    parts = sorted(logs.glob(f"{place.name}.*[0-9]"), key=lambda part: -int(part.suffix[1:]))
    said = place.with_suffix(".health")
    read = ServiceEvidence(
        service=service.name, role=service.role, engine=service.engine,
        state="created" if state.state == "waiting" else state.state, health=state.health, exit_code=state.exit_code,
        restarts=state.restarts, health_log=said.read_text(errors="replace")[-4000:] if said.exists() else "",
        log=_of_files([*parts, place]), command=service.command,
    )  # fmt: skip
    if service.engine == "vllm" and service.role == "engine" and read.works and service.ports:
        return replace(read, metrics=_ask([sys.executable], service.ports[0].host))
    return read


def _of_files(paths: Sequence[Path]) -> str:
    """A log in parts, the oldest first: its first and its last lines."""
    texts = [path.read_text(errors="replace") for path in paths if path.exists()]
    return shortened(window("".join(texts), HEAD_LINES, LOG_LINES))


def _gpus() -> GpuState:
    if os.environ.get("DOCKER_HOST", "").startswith(("tcp:", "ssh:", "http")):
        return GpuState(unknown="DOCKER_HOST names another machine, and its cards can't be asked from here")
    return gpu_state()


def _ask(python: Sequence[str], port: int) -> str:
    """The text of /metrics, asked by a Python on the server's side; "" where it can't be had."""
    words = [*python, "-c", METRICS, f"http://127.0.0.1:{port}/metrics"]
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
