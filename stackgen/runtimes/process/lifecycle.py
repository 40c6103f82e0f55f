"""Start, stop and inspect stacks as local processes, for machines where Docker Engine can't run.

Each stack has one detached supervisor (`stackgen.runtimes.process.supervisor`), which outlives the command that started
it. The supervisor's state and logs are in `.stackgen/` next to the stack file, and contain no keys.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stackgen import engines
from stackgen.check.report import Report
from stackgen.errors import StackgenError, StartError
from stackgen.plan import Service
from stackgen.plan.startup import lost_services, start_seconds, starts_without
from stackgen.providers.probe import check_plan
from stackgen.render.read import stack_file_in
from stackgen.runtimes.compose.lifecycle import DOWNLOAD_PROGRESS, ERROR_LINE, ServiceState
from stackgen.runtimes.process.local_plan import (
    ProcessStack,
    describe_differences,
    inherited_environment,
    open_process_stack,
)
from stackgen.runtimes.process.logs import log_file, read_tail
from stackgen.runtimes.process.procfs import STATE_DIR, is_alive, read_state, service_processes, wait_until
from stackgen.runtimes.process.supervisor import EXIT_BUSY, RESTART_MARKER
from stackgen.stack.envfile import create_env

__all__ = ["down_processes", "prepare_processes", "process_status", "start_processes"]

Progress = Callable[[str, str], None]


def prepare_processes(stack_path: Path, note: Callable[[str], None]) -> ProcessStack:
    """Returns the stack as local processes that can start: none runs yet, the key exists, and so do all programs.

    `note` is called with each line for the user. Raises StackgenError if the stack is already running, MachineError if
    a program is missing or a port is taken.
    """
    stack = open_process_stack(stack_path, STATE_DIR)
    _refuse_if_running(stack)
    if create_env(stack.folder):
        note(f"wrote {stack.folder / '.env'} with a new key")
    stack.check_ready()
    # printed at every start, because users must not forget how little isolation there is
    for line in describe_differences(stack):
        note(line)
    return stack


def start_processes(stack: ProcessStack, progress: Progress, timeout: float | None) -> Report:
    """Starts the stack, waits until it is healthy, checks it, and returns the report of the check.

    `timeout` limits the start, in seconds; by default it depends on the longest start period. Raises StartError if a
    service does not start. As with containers, the services that don't need it keep running. If no endpoint is left,
    and after any other error, nothing keeps running.
    """
    with _start_supervisor(stack) as supervisor:
        error = _wait_until_healthy(stack, supervisor, progress, timeout)
    # outside of the block, which would stop the services that work
    if error:
        raise error
    return check_plan(stack.plan, stack.folder, progress, timeout or 120)


def down_processes(folder: Path) -> list[str]:
    """Stops the stack's processes and returns the names of the services that ran. Does nothing if none runs.

    If the supervisor was killed, its orphans are found by PID and start time, so that a process
    which got an old PID by chance is not signalled.
    """
    state = read_state(folder / STATE_DIR)
    running = [entry["service"] for entry in state["services"] if service_processes(entry)]
    supervisor = state["supervisor"]
    # the plan of the last start, because stack.yaml may have changed since
    grace = max((entry["grace"] for entry in state["services"]), default=0.0)
    if is_alive(supervisor):
        os.kill(supervisor["pid"], signal.SIGTERM)
        # services stop one after another, dependents first, so the grace periods add up
        wait_until(lambda: not is_alive(supervisor), len(state["services"]) * grace + 10)
    if is_alive(supervisor):
        os.kill(supervisor["pid"], signal.SIGKILL)
    for number, timeout in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        if _signal_services(state, number):
            wait_until(lambda: not any(map(service_processes, state["services"])), timeout)
    return running


def process_status(folder: Path) -> list[ServiceState]:
    """The state of every service, in the plan's order; all are `absent` if the stack was never started.

    If the supervisor was killed, the `health` of services that still run is `unsupervised`.
    """
    state = read_state(folder / STATE_DIR)
    if not state["services"] and stack_file_in(folder).exists():
        plan = open_process_stack(stack_file_in(folder), STATE_DIR).plan
        return [ServiceState(service.name, service.role, "absent") for service in plan.services]
    supervised = is_alive(state["supervisor"])
    states = []
    for entry in state["services"]:
        status, health = entry["state"], entry["health"]
        # the file is outdated since the supervisor died, so /proc decides
        if not supervised:
            status, health = ("running", "unsupervised") if service_processes(entry) else ("exited", "")
        code = entry["exit_code"] if status == "exited" else None
        states.append(
            ServiceState(entry["service"], entry["role"], state=status, health=health, restarts=entry["restarts"],
                         exit_code=code, ports=tuple(entry["ports"])))  # fmt: skip
    return states


@contextmanager
def _start_supervisor(stack: ProcessStack) -> Iterator[subprocess.Popen[str]]:
    """Starts the detached supervisor. Any exception in the block, including Ctrl-C, stops the whole stack."""
    folder = stack.state_dir
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    # private, because the services write their logs and caches here
    folder.chmod(0o700)
    (folder / ".gitignore").write_text("*\n")
    # the supervisor must import this stackgen, whatever its current folder is
    environment = inherited_environment() | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-m", "stackgen.runtimes.process.supervisor", str(folder)]
    with (folder / "logs" / "supervisor.log").open("w") as log:
        supervisor = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True,
            start_new_session=True,
        )  # fmt: skip
    assert supervisor.stdin
    with suppress(BrokenPipeError), supervisor.stdin as pipe:
        # sent through a pipe, because the tasks contain keys, which must not appear in the process list or in a file
        pipe.write(json.dumps([asdict(task) for task in stack.tasks()]))
    try:
        yield supervisor
    except BaseException:
        # a supervisor that exits with EXIT_BUSY started nothing: the running services belong to another supervisor
        if supervisor.poll() != EXIT_BUSY:
            supervisor.terminate()
            wait_until(lambda: supervisor.poll() is not None, 10)
            down_processes(stack.folder)
        raise
    supervisor.returncode = 0  # the supervisor will outlive this process, and Popen would warn about that


def _wait_until_healthy(
    stack: ProcessStack, supervisor: subprocess.Popen[str], progress: Progress, timeout: float | None
) -> StartError | None:
    """Reports phases until all services are healthy or complete. Raises StartError if one fails or time runs out.

    Returns the error of a failed service if endpoints that don't need it are left.
    """
    plan, phases = stack.plan, dict[str, str]()
    limit = timeout or 120 + start_seconds(plan.services)
    deadline = time.monotonic() + limit
    while True:
        if supervisor.poll() is not None:
            if supervisor.returncode == EXIT_BUSY:
                raise StackgenError("another `stackgen up` is starting this stack", "wait until it is done")
            raise StartError("the supervisor exited", "".join(read_tail(log_file(stack.folder, "supervisor"), 1)))
        # until the new supervisor writes its first state, the file is that of the previous run
        has_state = read_state(stack.state_dir)["supervisor"]["pid"] == supervisor.pid
        states = {state.service: state for state in process_status(stack.folder)} if has_state else {}
        for service in plan.services:
            phase = _phase(service, states.get(service.name), stack.folder)
            if phases.get(service.name) != phase:
                phases[service.name] = phase
                progress(service.name, phase)
        left = [service for service in plan.services if phases[service.name] not in ("ready", "complete")]
        if not left:
            return None
        failed = [service for service in left if phases[service.name].startswith("failed")]
        # an API server that waits for several workers starts as soon as the broken one stays down
        waiting = [service for service in left if service not in failed]
        if failed and not (starts_without(waiting, failed) and time.monotonic() < deadline):
            message, hint = _describe_failure(failed[0], states[failed[0].name], stack.folder)
            lost = lost_services(plan.services, {service.name for service in failed})
            if all(service.name in lost for service in plan.services if service.ports):
                raise StartError(message, hint)
            rest = ", ".join(service.name for service in plan.services if service.name not in lost)
            return StartError(
                message,
                f"{hint}. Still running: {rest}. Before the next `up`, run `stackgen down --runtime process`",
            )
        if timeout is None and any(phases[s.name].startswith("download") for s in plan.services):
            deadline = time.monotonic() + limit  # downloads have no limit: the time limit counts from their end
        if time.monotonic() > deadline:
            message, _ = _describe_failure(left[0], states.get(left[0].name), stack.folder)
            raise StartError(f"start timed out: {message}", "increase models[].start_timeout or --timeout")
        time.sleep(0.3)


def _phase(service: Service, state: ServiceState | None, folder: Path) -> str:
    if state is None or state.state in ("absent", "waiting"):
        return "waiting for " + (", ".join(dependency.service for dependency in service.depends_on) or "its start")
    if state.state == "exited":
        complete = state.exit_code == 0 and service.role == "download"
        return "complete" if complete else f"failed (exit code {state.exit_code})"
    if state.state == "running" and state.health in ("healthy", "") and service.role != "download":
        return "ready"
    if state.restarts or state.state == "restarting":
        return f"start failed, attempt {state.restarts + 1}"
    lines = read_tail(log_file(folder, service.name), 60)
    if service.role == "download":
        matches = [match for match in map(DOWNLOAD_PROGRESS.search, lines) if match]
        sizes = [f"{int(part) / 1e6:.1f} MB" for part in matches[-1].groups()[1:]] if matches else []
        return f"downloading {matches[-1][1]}: {' of '.join(sizes)}" if matches else "downloading"
    hits = [name for line in lines for pattern, name in engines.get(service.engine).phases if re.search(pattern, line)]
    # the engine reports that it is ready before the health check has generated its first token
    return "loading" if not hits else "warming up" if hits[-1] == "ready" else hits[-1]


def _describe_failure(service: Service, state: ServiceState | None, folder: Path) -> tuple[str, str]:
    """A message, with the lines of the log that show the reason, and a hint."""
    lines = [line.rstrip() for line in read_tail(log_file(folder, service.name), 200) if line.strip()]
    # only the last attempt, because each attempt logs the same errors again
    starts = [number for number, line in enumerate(lines) if RESTART_MARKER in line and number < len(lines) - 1]
    lines = lines[starts[-1] + 1 :] if starts else lines
    shown = [line for line in lines if ERROR_LINE.search(line)][-8:] or lines[-8:]
    if state is None or state.state == "waiting":
        what = "is still waiting for " + ", ".join(dependency.service for dependency in service.depends_on)
    elif state.state == "running":
        what = f"is running, but its health check reports {state.health}"
        shown = shown[-4:] + read_tail(log_file(folder, service.name).with_suffix(".health"), 4)
    else:
        attempts = f" after {state.restarts + 1} attempts" if state.restarts else ""
        # 137 is SIGKILL, which the kernel's out-of-memory killer sends too
        killed = (
            ": the process was killed, possibly because the machine ran out of memory" if state.exit_code == 137 else ""
        )
        what = f"exited with code {state.exit_code}{attempts}{killed}"
    # a service that failed before its first line has no log
    log_lines = "".join(f"\n  | {line[:400]}" for line in shown)
    hint = f"run `stackgen logs --runtime process {service.name}` for the full log"
    return f"{service.name} {what}{log_lines}", hint


def _refuse_if_running(stack: ProcessStack) -> None:
    state = read_state(stack.state_dir)
    if is_alive(state["supervisor"]):
        hint = "use `stackgen status --runtime process` or `stackgen down --runtime process`"
        raise StackgenError(f"{stack.plan.name} is already running", hint)
    # orphans still hold ports and GPU memory
    if orphans := [entry["service"] for entry in state["services"] if service_processes(entry)]:
        raise StackgenError(
            f"these services still run although their supervisor was killed: {', '.join(orphans)}",
            "stop these services with `stackgen down --runtime process`",
        )


def _signal_services(state: dict[str, Any], number: int) -> bool:
    """Sends signal `number` to all processes that are left, the last started first. Returns False if none is left."""
    left = [pid for entry in reversed(state["services"]) for pid in service_processes(entry)]
    for pid in left:
        # the process may exit at any moment
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    return bool(left)
