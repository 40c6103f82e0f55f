"""Stacks as local processes, where no Docker engine can run: the same plan, supervised, started and stopped together.

One detached supervisor per stack (`stackgen.runtimes.process.supervisor`) outlives the command that started it. Its
state and logs, but no keys, are in `.stackgen/` next to the stack file.
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
from stackgen.providers.probe import check_plan
from stackgen.runtimes.compose.lifecycle import DOWNLOADED, FATAL, ServiceState
from stackgen.runtimes.process.local_plan import Local, differences, inherited, open_local
from stackgen.runtimes.process.procfs import lives, read_state, service_members, wait_for
from stackgen.runtimes.process.supervisor import AGAIN, BUSY
from stackgen.stack.envfile import create_env

__all__ = ["down_processes", "prepare_processes", "process_logs", "process_status", "start_processes"]

STATE = ".stackgen"
Progress = Callable[[str, str], None]


def prepare_processes(stack_path: Path, note: Callable[[str], None]) -> Local:
    """The stack as local processes, ready to start: not running yet, with a key, its programs found.

    `note` gets each line for the user. Raises StackgenError where the stack runs already, MachineError where a
    program is missing.
    """
    local = open_local(stack_path, STATE)
    _refuse_running(local)
    if create_env(local.folder):
        note(f"wrote {local.folder / '.env'} with a new key")
    local.prove_ready()
    for line in differences(local):
        note(line)
    return local


def start_processes(local: Local, progress: Progress, timeout: float | None) -> Report:
    """Starts the stack, waits until it is healthy, and checks it; the check's report.

    `timeout` (s) bounds the start; None is as long as the services may take. Raises StartError where a service doesn't
    start; nothing runs then.
    """
    with _started(local) as supervisor:
        _follow(local, supervisor, progress, timeout)
    return check_plan(local.plan, local.folder, progress, timeout or 120)


def down_processes(folder: Path) -> list[str]:
    """Stops the stack's processes; the names of those that ran. Nothing happens where none does.

    Where the supervisor was killed, its orphans are found by number and start time, so that no process is hit that
    merely got an old number.
    """
    state = read_state(folder / STATE)
    running = [entry["service"] for entry in state["services"] if service_members(entry)]
    supervisor = state["supervisor"]
    grace = max((entry["grace"] for entry in state["services"]), default=0.0)
    if lives(supervisor):
        os.kill(supervisor["pid"], signal.SIGTERM)
        # each waits for those that depend on it, so that the graces can add up
        wait_for(lambda: not lives(supervisor), len(state["services"]) * grace + 10)
    if lives(supervisor):
        os.kill(supervisor["pid"], signal.SIGKILL)
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        left = _signal(state, number)
        if left:
            wait_for(lambda: not any(map(service_members, state["services"])), patience)
    return running


def process_status(folder: Path) -> list[ServiceState]:
    """The state of every service, in the plan's order; all are `absent` where the stack was never started.

    Where the supervisor was killed, `health` of what still runs is `unsupervised`.
    """
    state = read_state(folder / STATE)
    if not state["services"] and (folder / "stack.yaml").exists():
        plan = open_local(folder / "stack.yaml", STATE).plan
        return [ServiceState(service.name, service.role, "absent") for service in plan.services]
    supervised = lives(state["supervisor"])
    found = []
    for entry in state["services"]:
        what, health = entry["state"], entry["health"]
        if not supervised:
            what, health = ("running", "unsupervised") if service_members(entry) else ("exited", "")
        code = entry["exit_code"] if what == "exited" else None
        ports = tuple(entry["ports"])
        found.append(ServiceState(entry["service"], entry["role"], what, health, entry["restarts"], code, ports=ports))
    return found


def process_logs(folder: Path, services: tuple[str, ...], follow: bool = False, tail: str = "all") -> int:
    """Prints the logs, each line after its service's name; `tail` is a number of lines or `all`.

    Raises StackgenError for a service that the stack doesn't have.
    """
    known = [entry["service"] for entry in read_state(folder / STATE)["services"]]
    if unknown := sorted(set(services) - set(known)):
        raise StackgenError(f"no service {', '.join(unknown)} was started", f"known: {', '.join(known) or 'none'}")
    wanted = [name for name in known if not services or name in services]
    width = max(map(len, wanted), default=0)
    places = {}
    for name in wanted:
        log = _log(folder, name)
        parts = sorted(log.parent.glob(f"{log.name}.*[0-9]"), key=lambda part: -int(part.suffix[1:]))
        places[name] = log.stat().st_size if log.exists() else 0
        texts = [part.read_text(errors="replace") for part in (*parts, log) if part.exists()]
        lines = "".join(texts).splitlines()
        for line in lines if tail == "all" else lines[max(0, len(lines) - int(tail)) :]:
            print(f"{name:{width}} | {line}")
    while follow:
        sys.stdout.flush()
        time.sleep(0.3)
        for name in wanted:
            places[name] = _more(name, width, _log(folder, name), places[name])
    return 0


def _more(name: str, width: int, log: Path, place: int) -> int:
    """Prints whole lines behind `place`; the place behind them. A file that shrank was rotated: from its start."""
    if not log.exists():
        return 0
    with log.open("rb") as file:
        file.seek(place if log.stat().st_size >= place else 0)
        text = file.read()
        whole = text.rpartition(b"\n")[0] + b"\n" if b"\n" in text else b""
        for line in whole.decode(errors="replace").splitlines():
            print(f"{name:{width}} | {line}")
        return file.tell() - len(text) + len(whole)


@contextmanager
def _started(local: Local) -> Iterator[subprocess.Popen[str]]:
    """The supervisor, detached. Whatever goes wrong inside, Ctrl-C among it, ends the whole stack."""
    folder = local.state_dir
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / ".gitignore").write_text("*\n")
    environment = inherited() | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    words = [sys.executable, "-m", "stackgen.runtimes.process.supervisor", str(folder)]
    with (folder / "logs" / "supervisor.log").open("w") as log:
        supervisor = subprocess.Popen(
            words, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True,
            start_new_session=True,
        )  # fmt: skip
    assert supervisor.stdin
    with suppress(BrokenPipeError), supervisor.stdin as pipe:
        # the keys are in there: through the pipe they show in no process list and no file
        pipe.write(json.dumps([asdict(task) for task in local.tasks()]))
    try:
        yield supervisor
    except BaseException:
        # one that is BUSY has started nothing, and what runs is another one's
        if supervisor.poll() != BUSY:
            supervisor.terminate()
            wait_for(lambda: supervisor.poll() is not None, 10)
            down_processes(local.folder)
        raise
    supervisor.returncode = 0  # it is to outlive this process, which Popen would warn of


def _follow(local: Local, supervisor: subprocess.Popen[str], progress: Progress, timeout: float | None) -> None:
    """Reports phases until all services are healthy or done. Raises StartError."""
    plan, phases = local.plan, dict[str, str]()
    limit = timeout or 120 + max((s.health.start_period for s in plan.services if s.health), default=0)
    end = time.monotonic() + limit
    while True:
        if supervisor.poll() is not None:
            if supervisor.returncode == BUSY:
                raise StackgenError("another `stackgen up` starts this stack right now", "wait for it")
            raise StartError("the supervisor ended", "".join(_tail(_log(local.folder, "supervisor"), 1)))
        begun = read_state(local.state_dir)["supervisor"]["pid"] == supervisor.pid
        states = {state.service: state for state in process_status(local.folder)} if begun else {}
        for service in plan.services:
            phase = _phase(service, states.get(service.name), local.folder)
            if phases.get(service.name) != phase:
                phases[service.name] = phase
                progress(service.name, phase)
        left = [service for service in plan.services if phases[service.name] not in ("ready", "complete")]
        if not left:
            return
        for service in left:
            if phases[service.name].startswith("failed"):
                raise StartError(*_reason(service, states[service.name], local.folder))
        if timeout is None and any(phases[s.name].startswith("download") for s in plan.services):
            end = time.monotonic() + limit  # a download takes as long as it takes; the start is timed from its end
        if time.monotonic() > end:
            message, _ = _reason(left[0], states.get(left[0].name), local.folder)
            raise StartError(f"no answer in time: {message}", "models[].start_timeout, or --timeout, gives it longer")
        time.sleep(0.3)


def _phase(service: Service, state: ServiceState | None, folder: Path) -> str:
    if state is None or state.state in ("absent", "waiting"):
        return "wait for " + (", ".join(dependency.service for dependency in service.depends_on) or "its start")
    if state.state == "exited":
        complete = state.exit_code == 0 and service.role == "download"
        return "complete" if complete else f"failed (exit code {state.exit_code})"
    if state.state == "running" and state.health in ("healthy", "") and service.role != "download":
        return "ready"
    if state.restarts or state.state == "restarting":
        return f"start failed, try {state.restarts + 1}"
    lines = _tail(_log(folder, service.name), 60)
    if service.role == "download":
        found = [match for match in map(DOWNLOADED.search, lines) if match]
        got = [f"{int(part) / 1e6:.1f} MB" for part in found[-1].groups()[1:]] if found else []
        return f"download {found[-1][1]}: {' of '.join(got)}" if found else "download"
    hits = [name for line in lines for pattern, name in engines.get(service.engine).phases if re.search(pattern, line)]
    return "load" if not hits else "warm up" if hits[-1] == "ready" else hits[-1]


def _reason(service: Service, state: ServiceState | None, folder: Path) -> tuple[str, str]:
    """What happened, with the lines of the log that say why, and where to look further."""
    lines = [line.rstrip() for line in _tail(_log(folder, service.name), 200) if line.strip()]
    starts = [number for number, line in enumerate(lines) if AGAIN in line and number < len(lines) - 1]
    lines = lines[starts[-1] + 1 :] if starts else lines
    telling = [line for line in lines if FATAL.search(line)][-8:] or lines[-8:]
    if state is None or state.state == "waiting":
        what = "still waits for " + ", ".join(dependency.service for dependency in service.depends_on)
    elif state.state == "running":
        what = f"runs, but its health check says {state.health}"
        telling = telling[-4:] + _tail(_log(folder, service.name).with_suffix(".health"), 4)
    else:
        tries = f" after {state.restarts + 1} tries" if state.restarts else ""
        killed = ": it was killed, perhaps as the machine's memory is used up" if state.exit_code == 137 else ""
        what = f"ended with code {state.exit_code}{tries}{killed}"
    shown = "\n".join(f"  | {line[:400]}" for line in telling)
    return f"{service.name} {what}\n{shown}", f"`stackgen logs --runtime process {service.name}` shows all of it"


def _refuse_running(local: Local) -> None:
    state = read_state(local.state_dir)
    if lives(state["supervisor"]):
        hint = "`stackgen status` and `stackgen down`, both with --runtime process"
        raise StackgenError(f"{local.plan.name} runs already", hint)
    if orphans := [entry["service"] for entry in state["services"] if service_members(entry)]:
        raise StackgenError(
            f"left over from an earlier start, whose supervisor was killed: {', '.join(orphans)}",
            "`stackgen down --runtime process` stops them",
        )


def _signal(state: dict[str, Any], number: int) -> bool:
    """Sends `number` to whatever is left, the last started first; whether there was anybody."""
    left = [pid for entry in reversed(state["services"]) for pid in service_members(entry)]
    for pid in left:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    return bool(left)


def _log(folder: Path, name: str) -> Path:
    return folder / STATE / "logs" / f"{name}.log"


def _tail(path: Path, count: int) -> list[str]:
    """The last lines of a file, of its last 64 KiB; none where it isn't there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - (64 << 10)))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


def _note(line: str) -> None:
    print(line, file=sys.stderr)
