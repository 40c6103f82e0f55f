"""Collects the evidence for a diagnosis: states and logs of containers or local processes, metrics, GPU state."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from stackgen.diagnose import Evidence, Finding, ServiceEvidence, diagnose
from stackgen.diagnose.evidence import HEAD_LINES, LOG_LINES, detect_engine
from stackgen.diagnose.gpus import GpuState
from stackgen.diagnose.log_text import (
    OMITTED,
    join_head_and_tail,
    keep_head_and_tail,
    shorten_long_lines,
    split_services,
)
from stackgen.diagnose.unwrap import choose_reading
from stackgen.errors import MachineError, StackgenError
from stackgen.plan import Plan, Service
from stackgen.render.read import stack_file_in
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.lifecycle import ServiceState, connect
from stackgen.runtimes.observation.gpu_tools import read_gpu_state
from stackgen.runtimes.observation.host_kind import read_machine
from stackgen.runtimes.process.lifecycle import process_status
from stackgen.runtimes.process.local_plan import open_process_stack
from stackgen.runtimes.process.logs import log_parts
from stackgen.runtimes.process.procfs import STATE_DIR
from stackgen.spec import StackSpec
from stackgen.stack.load import load_stack
from stackgen.stack.secrets import collect_secrets, find_secrets, find_stack_secrets

__all__ = [
    "collect_from_container", "collect_from_log", "collect_from_processes", "collect_from_stack", "explain_failure",
    "last_ran_as_processes",
]  # fmt: skip

# run by a Python inside the container, where the port is reachable without being published
METRICS = "import sys,urllib.request as u;sys.stdout.write(u.urlopen(sys.argv[1],timeout=5).read().decode())"
# the maximum size of a log: of a longer log, the first HEAD_BYTES and the end are kept
LOG_BYTES = 4_000_000
HEAD_BYTES = 1_000_000


def explain_failure(
    plan: Plan, folder: Path, compose_output: str = "", processes: Path | None = None
) -> Finding | None:
    """The most likely cause of a failed start, for `up`; None if no rule matches. Takes little time and never raises.

    `processes` is the path of the stack file if the stack was started as local processes.
    """
    try:
        spec = _spec(plan, folder)
        if processes:
            evidence = collect_from_processes(processes, spec)
        else:
            # without metrics and with a short timeout, because the user waits for the error message
            evidence = collect_from_stack(plan, folder, spec, compose_output, metrics=False, timeout=5)
        return next(iter(diagnose(evidence)), None)
    # a failing diagnosis must not hide the error of the start
    except Exception:
        return None


def collect_from_stack(
    plan: Plan,
    folder: Path,
    spec: StackSpec | None = None,
    compose_output: str = "",
    checks: tuple[tuple[str, str], ...] = (),
    metrics: bool = True,
    timeout: float = 30,
) -> Evidence:
    """The evidence about a stack in containers. Raises MachineError if Docker Engine does not answer.

    `timeout` limits each request to the engine, in seconds.
    """
    client = connect()
    client.api.timeout = timeout
    try:
        ids = {one["Labels"].get("com.docker.compose.service", ""): one["Id"] for one in _list_containers(client, plan)}
        with ThreadPoolExecutor(8) as pool:
            gpus = pool.submit(_local_gpu_state)
            services = tuple(
                pool.map(lambda one: _container_evidence(client, one, ids.get(one.name), metrics), plan.services)
            )
    except (sdk().errors.DockerException, OSError) as error:
        raise MachineError(f"the Docker engine does not answer: {error}", "`docker info` shows more") from None
    secrets = (*collect_secrets(folder), *find_stack_secrets(spec, plan))
    return _with_machine(Evidence(services, compose_output, spec, plan, checks, secrets, gpus.result()))


def collect_from_processes(stack_path: Path, spec: StackSpec | None = None) -> Evidence:
    """The evidence about a stack that runs as local processes. Raises StackgenError if stack.yaml has errors."""
    stack = open_process_stack(stack_path, STATE_DIR)
    states = {one.service: one for one in process_status(stack.folder)}
    with ThreadPoolExecutor(8) as pool:
        gpus = pool.submit(read_gpu_state)
        services = tuple(
            pool.map(
                lambda one: _process_evidence(one, states.get(one.name), stack.state_dir / "logs"), stack.plan.services
            )
        )
    secrets = (*collect_secrets(stack.folder), *find_stack_secrets(spec, stack.plan))
    return _with_machine(Evidence(services, spec=spec, plan=stack.plan, secrets=secrets, gpus=gpus.result()))


def last_ran_as_processes(plan: Plan, folder: Path) -> bool:
    """Whether the stack last ran with `up --runtime process`: its processes run, or its containers are all older."""
    state = folder / STATE_DIR / "state.json"
    if not state.exists():
        return False
    if any(one.state in ("running", "waiting", "restarting") for one in process_status(folder)):
        return True
    try:
        newest = max((one["Created"] for one in _list_containers(connect(), plan)), default=0)
    # without an engine, no container can be newer
    except (StackgenError, sdk().errors.DockerException, OSError):
        return True
    return state.stat().st_mtime >= newest


def collect_from_container(name: str) -> Evidence:
    """The evidence about any container. Raises StackgenError if no container has this name."""
    client = connect()
    try:
        found = client.api.inspect_container(name)
    except sdk().errors.NotFound:
        raise StackgenError(f"container {name} does not exist", "`docker ps --all` lists all containers") from None
    except sdk().errors.DockerException as error:
        raise MachineError(f"the Docker engine does not answer: {error}", "`docker info` shows more") from None
    pairs = (entry.partition("=") for entry in found["Config"].get("Env") or ())
    secrets = find_secrets([(name, value) for name, _, value in pairs], found["Config"].get("Cmd") or ())
    log = _read_container_log(client, found["Id"])
    # the name of the service in stack.yaml, if Compose started the container
    service = (found["Config"].get("Labels") or {}).get("com.docker.compose.service") or name
    evidence = _parse_container(found, service, detect_engine(log), "engine", log)
    return _with_machine(Evidence((evidence,), secrets=secrets, gpus=_local_gpu_state()))


def collect_from_log(text: str) -> Evidence:
    """The evidence in a saved or pasted log; the output of `docker compose logs` is split by service.

    Lines that a terminal has broken are joined. If the log may have such lines, and only joining them shows a known
    cause, they are joined as well.
    """
    return choose_reading(text, _read_log)


def _read_log(text: str) -> Evidence:
    text = shorten_long_lines(text)
    if len(text) > LOG_BYTES:
        text = f"{text[:HEAD_BYTES]}\n{OMITTED}\n{text[HEAD_BYTES - LOG_BYTES :]}"
    parts = split_services(text)
    # without any service prefix, it may be the output of `docker compose up`
    own = parts.pop("", "") if len(parts) > 1 else text if set(parts) == {""} else ""
    services = tuple(
        ServiceEvidence(name or "log", engine=detect_engine(part) or detect_engine(text),
                        log=keep_head_and_tail(part, HEAD_LINES, LOG_LINES))
        for name, part in parts.items()
    )  # fmt: skip
    return Evidence(services, compose_output=own)


def _spec(plan: Plan, folder: Path) -> StackSpec | None:
    """The stack.yaml next to the rendered files, if the plan was made from it; else None."""
    try:
        spec = load_stack(stack_file_in(folder))
    # stack.yaml is elsewhere or has become invalid: the cause is reported without a change to stack.yaml
    except StackgenError:
        return None
    return spec if spec.name == plan.name else None


def _container_evidence(client: Any, service: Service, container: str | None, metrics: bool) -> ServiceEvidence:
    try:
        found = client.api.inspect_container(container) if container else None
    # Compose replaced the container between the two calls
    except sdk().errors.NotFound:
        found = None
    if found is None:
        return ServiceEvidence(service.name, service.role, service.engine, "absent", image=service.image)
    log = _read_container_log(client, found["Id"])
    evidence = _parse_container(found, service.name, service.engine, service.role, log)
    port = service.ports[0].container if service.ports else service.internal_port
    # rules for slow answers read the metrics of vLLM only
    is_asked = metrics and service.engine == "vllm" and service.role == "engine" and not service.follows
    if is_asked and evidence.is_working and port:
        python = ["docker", "exec", found["Id"], "python3"]
        return replace(evidence, metrics=_read_metrics(python, port, service.host_address or "127.0.0.1"))
    return evidence


def _parse_container(found: Mapping[str, Any], name: str, engine: str, role: str, log: str) -> ServiceEvidence:
    """The evidence in the output of `docker inspect`."""
    state = found["State"]
    health = state.get("Health") or {}
    outputs = [str(one.get("Output", "")).strip() for one in health.get("Log") or ()]
    status = state["Status"]
    return ServiceEvidence(
        service=name, role=role, engine=engine, state=status,
        # Docker reports a container as unhealthy if it stopped before it was healthy: the exit code is more useful
        health=health.get("Status", "") if status == "running" else "",
        exit_code=state["ExitCode"] if status in ("exited", "dead") else None,
        oom_killed=bool(state["OOMKilled"]), restarts=found["RestartCount"], error=state.get("Error", ""),
        health_log="\n".join(outputs[-3:])[-4000:], log=log, image=found["Config"].get("Image", ""),
        command=tuple(found["Config"].get("Cmd") or ()),
    )  # fmt: skip


def _list_containers(client: Any, plan: Plan) -> list[Any]:
    # the label finds all containers of a project, also those that have stopped
    label = f"com.docker.compose.project={plan.name}"
    found: list[Any] = client.api.containers(all=True, filters={"label": label})
    return found


def _read_container_log(client: Any, container: str) -> str:
    """The last lines of a log and, if it is longer, its first lines, which show the arguments of the start."""
    tail = client.api.logs(container, tail=LOG_LINES).decode(errors="replace")[-LOG_BYTES:].splitlines()
    if len(tail) < LOG_LINES:
        return shorten_long_lines("\n".join(tail))
    # the API can't return the first lines, and the SDK can't end a stream early without leaking a socket
    command = ["docker", "logs", container]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout
            lines = [line.decode(errors="replace").rstrip("\r\n") for line in islice(process.stdout, HEAD_LINES)]
            process.terminate()
    # there is no `docker` command, only the engine: the last lines must be enough
    except OSError:
        lines = []
    return shorten_long_lines(join_head_and_tail(lines, tail))


def _process_evidence(service: Service, state: ServiceState | None, logs: Path) -> ServiceEvidence:
    """The evidence about a local process, with Docker's names for its state, so that the same rules apply."""
    if state is None or state.state == "absent":
        return ServiceEvidence(service.name, service.role, service.engine, "absent")
    log = logs / f"{service.name}.log"
    health_file = log.with_suffix(".health")
    health_log = health_file.read_text(errors="replace")[-4000:] if health_file.exists() else ""
    evidence = ServiceEvidence(
        service=service.name, role=service.role, engine=service.engine,
        state="created" if state.state == "waiting" else state.state, health=state.health, exit_code=state.exit_code,
        restarts=state.restarts, health_log=health_log,
        log=_read_log_files(log_parts(log)), command=service.command,
    )  # fmt: skip
    if service.engine == "vllm" and service.role == "engine" and evidence.is_working and service.ports:
        return replace(evidence, metrics=_read_metrics([sys.executable], service.ports[0].host))
    return evidence


def _read_log_files(paths: Sequence[Path]) -> str:
    """The first and last lines of a log in several files, oldest first."""
    texts = [path.read_text(errors="replace") for path in paths if path.exists()]
    return shorten_long_lines(keep_head_and_tail("".join(texts), HEAD_LINES, LOG_LINES))


def _local_gpu_state() -> GpuState:
    # nvidia-smi runs on this machine, and the containers run on another machine
    if _is_remote():
        return GpuState(
            unknown="DOCKER_HOST points to another machine, and stackgen can query only the GPUs of this machine"
        )
    return read_gpu_state()


def _read_metrics(python: Sequence[str], port: int, host: str = "127.0.0.1") -> str:
    """The text of /metrics, requested by a Python process next to the server; "" if there is no answer."""
    command = [*python, "-c", METRICS, f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _with_machine(evidence: Evidence) -> Evidence:
    return evidence if _is_remote() else replace(evidence, machine=read_machine())


def _is_remote() -> bool:
    return os.environ.get("DOCKER_HOST", "").startswith(("tcp:", "ssh:", "http"))
