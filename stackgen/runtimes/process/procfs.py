"""Processes as Linux shows them in /proc: who is who, who belongs together, who holds a port. Source: proc(5)."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["holder", "kill_group", "lives", "members", "read_state", "service_members", "start_time", "wait_for"]


def start_time(pid: int) -> int | None:
    """When process `pid` began (clock ticks since boot), None where it is gone or a zombie.

    Number and time together name one process for good: numbers alone are given again.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in ("Z", "X") else None


def members(pid: int, start: int, mark: str) -> list[int]:
    """The living processes of the session that was begun by process `pid` at `start`.

    Where that one is gone, or its number is another's now, only those count whose environment holds `mark`.
    """
    found = []
    leads = start_time(pid) == start
    for one in _pids():
        fields = _stat(one)
        if fields and fields[0] not in ("Z", "X") and fields[3] == str(pid):
            with suppress(OSError):
                if leads or mark.encode() in Path(f"/proc/{one}/environ").read_bytes().split(b"\0"):
                    found.append(one)
    return found


def kill_group(pid: int, number: int) -> None:
    """Sends signal `number` to the process group of `pid`, which may be gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def read_state(state_dir: Path) -> dict[str, Any]:
    """What the supervisor wrote into its state.json last; no service and no supervisor where it wrote nothing."""
    try:
        state: dict[str, Any] = json.loads((state_dir / "state.json").read_text())
    except (FileNotFoundError, ValueError):
        return {"supervisor": {"pid": 0, "start": None}, "services": []}
    return state


def lives(process: dict[str, Any]) -> bool:
    """Whether the recorded process (`pid`, `start`) still runs."""
    return process["start"] is not None and start_time(process["pid"]) == process["start"]


def service_members(entry: dict[str, Any]) -> list[int]:
    """The living processes of a service as state.json records it."""
    return members(entry["pid"], entry["start"], f"STACKGEN_READY_FILE={entry['ready']}") if entry["pid"] else []


def wait_for(done: Callable[[], bool], seconds: float) -> None:
    """Returns when `done()` is true, or after `seconds`."""
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.05)


def holder(port: int) -> str:
    """Who listens on TCP `port`: `python3 (pid 12)`, or "" where /proc doesn't tell (another user's process)."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:  # 0A: listening
                    sockets.add(f"socket:[{words[9]}]")
    for pid in _pids():
        with suppress(OSError):
            if any(os.readlink(link) in sockets for link in Path(f"/proc/{pid}/fd").iterdir()):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                return f"{re.sub(r'[^ -~]', '?', name)} (pid {pid})"
    return ""


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _stat(pid: int) -> list[str]:
    # proc(5): the program's name, in parentheses, may hold blanks and parentheses; the state (field 3) follows it
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return []
