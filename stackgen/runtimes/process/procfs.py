"""Processes in /proc (proc(5)): identity, sessions, and who listens on a port; and the supervisor's state file."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from stackgen.errors import StackgenError
from stackgen.render.read import read_state_file

__all__ = [
    "STATE_DIR", "find_port_holder", "is_alive", "read_state", "service_processes", "session_processes",
    "signal_group", "start_time", "wait_until",
]  # fmt: skip

# next to stack.yaml
STATE_DIR = ".stackgen"


def start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None if it is gone or a zombie.

    PID and start time together identify a process. A PID alone does not: the kernel reuses it.
    """
    fields = _read_stat(pid)
    return int(fields[19]) if fields and fields[0] not in ("Z", "X") else None


def session_processes(pid: int, start: int, marker: str) -> list[int]:
    """The living processes of the session that process `pid` created at `start`.

    If that process is gone, or its PID belongs to another one now, only processes with `marker` in their environment
    count.
    """
    found = []
    leader_alive = start_time(pid) == start
    for candidate in _all_pids():
        fields = _read_stat(candidate)
        # field 6 of stat is the session; the list of fields starts at field 3
        if fields and fields[0] not in ("Z", "X") and fields[3] == str(pid):
            # a process may end, or belong to another user
            with suppress(OSError):
                if leader_alive or marker.encode() in Path(f"/proc/{candidate}/environ").read_bytes().split(b"\0"):
                    found.append(candidate)
    return found


def signal_group(pid: int, number: int) -> None:
    """Sends signal `number` to the process group of `pid`, which may be gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def read_state(state_dir: Path) -> dict[str, Any]:
    """The supervisor's last state.json; no services and no supervisor if there is none.

    Raises StackgenError if the file is damaged: then nobody knows which processes run, so "none" would be a guess.
    """
    path = state_dir / "state.json"
    recovery = (
        f"if `ps -ef` shows `stackgen.runtimes.process.supervisor {state_dir.resolve()}`, stop that process with "
        "`kill`, which also stops the engines. Then move the file away. For a stack in containers, add --runtime "
        "compose"
    )
    text = read_state_file(path, recovery)
    if text is None:
        return {"supervisor": {"pid": 0, "start": None}, "services": []}
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):
        state = None
    if not _is_state(state):
        raise StackgenError(f"{path} is damaged, so stackgen can't tell which processes run", recovery)
    found: dict[str, Any] = state
    return found


def _is_state(state: Any) -> bool:
    """Whether `state` has every field that is read later, with its type (see `ServiceRunner.snapshot`)."""
    if not isinstance(state, dict) or not isinstance(state.get("services"), list):
        return False
    for entry in (state.get("supervisor"), *state["services"]):
        if not isinstance(entry, dict):
            return False
        if not all(isinstance(entry.get(key, 0), int | None) for key in ("pid", "start")):
            return False
    texts, rest = ("service", "role", "state", "health", "ready"), ("exit_code", "pid", "start")
    return {"pid", "start"} <= state["supervisor"].keys() and all(
        all(isinstance(entry.get(key), str) for key in texts)
        and all(isinstance(entry.get(key), int | float) for key in ("restarts", "grace"))
        and isinstance(entry.get("ports"), list)
        and all(key in entry for key in rest)
        for entry in state["services"]
    )


def is_alive(process: dict[str, Any]) -> bool:
    """Whether the recorded process (`pid`, `start`) still runs."""
    return process["start"] is not None and start_time(process["pid"]) == process["start"]


def service_processes(entry: dict[str, Any]) -> list[int]:
    """The living processes of a service, from its entry in state.json."""
    # the ready file's path is in the environment of every process of the service, and of no other
    marker = f"STACKGEN_READY_FILE={entry['ready']}"
    return session_processes(entry["pid"], entry["start"], marker) if entry["pid"] else []


def wait_until(condition: Callable[[], bool], timeout: float) -> None:
    """Returns when `condition()` is true, or after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def find_port_holder(port: int) -> str:
    """Who listens on TCP `port`: `python3 (pid 12)`; "" if /proc doesn't show it (another user's process)."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                cells = line.split()
                if cells[3] == "0A" and int(cells[1].rpartition(":")[2], 16) == port:  # 0A is the state "listening"
                    sockets.add(f"socket:[{cells[9]}]")
    for pid in _all_pids():
        with suppress(OSError):
            if any(os.readlink(link) in sockets for link in Path(f"/proc/{pid}/fd").iterdir()):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                # a process sets its own name, and control characters in it must not reach the terminal
                return f"{re.sub(r'[^ -~]', '?', name)} (pid {pid})"
    return ""


def _all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _read_stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state (field 3) on; [] if the process is gone."""
    # proc(5): the program's name, in parentheses, may contain spaces and parentheses itself
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return []
