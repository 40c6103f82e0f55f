"""The log files of services that run as local processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.runtimes.process.procfs import STATE_DIR, read_state

__all__ = ["log_file", "log_parts", "process_logs", "read_tail"]


def process_logs(
    folder: Path, services: tuple[str, ...], follow: bool = False, tail: str = "all",
    on_line: Callable[[str, str], None] | None = None,
) -> int:  # fmt: skip
    """Prints the logs, each line with its service's name in front. `tail` is a number of lines or `all`.

    With `on_line`, passes it the service and the text of each line, instead of printing the line. Raises StackgenError
    for a service that was not started.
    """
    known = [entry["service"] for entry in read_state(folder / STATE_DIR)["services"]]
    if unknown := sorted(set(services) - set(known)):
        raise StackgenError(f"not started: {', '.join(unknown)}", f"started services: {', '.join(known) or 'none'}")
    wanted = [name for name in known if not services or name in services]
    width = max(map(len, wanted), default=0)
    show = on_line or (lambda name, line: print(f"{name:{width}} | {line}"))
    offsets = {}
    for name in wanted:
        log = log_file(folder, name)
        # measured before reading: with --follow, a line may be printed twice, but none is lost
        offsets[name] = log.stat().st_size if log.exists() else 0
        texts = [part.read_text(errors="replace") for part in log_parts(log) if part.exists()]
        lines = "".join(texts).splitlines()
        for line in lines if tail == "all" else lines[max(0, len(lines) - int(tail)) :]:
            show(name, line)
    while follow:
        # the output may be a pipe, which Python buffers
        sys.stdout.flush()
        time.sleep(0.3)
        for name in wanted:
            offsets[name] = _show_new_lines(name, log_file(folder, name), offsets[name], show)
    return 0


def _show_new_lines(name: str, log: Path, offset: int, show: Callable[[str, str], None]) -> int:
    """Passes the complete lines after `offset` (bytes) to `show`, and returns the offset after them."""
    if not log.exists():
        return 0
    with log.open("rb") as file:
        # a file that is shorter than before was rotated
        file.seek(offset if log.stat().st_size >= offset else 0)
        text = file.read()
        # the service may be in the middle of a line
        complete = text.rpartition(b"\n")[0] + b"\n" if b"\n" in text else b""
        for line in complete.decode(errors="replace").splitlines():
            show(name, line)
        return file.tell() - len(text) + len(complete)


def log_file(folder: Path, service: str) -> Path:
    """The current log file of a service; `folder` is that of the stack."""
    return folder / STATE_DIR / "logs" / f"{service}.log"


def log_parts(log: Path) -> list[Path]:
    """The rotated files of a log, oldest first, and the current file, which may not exist."""
    # the oldest has the highest number; compared as numbers, because .10 is older than .9
    rotated = sorted(log.parent.glob(f"{log.name}.*[0-9]"), key=lambda part: -int(part.suffix[1:]))
    return [*rotated, log]


def read_tail(path: Path, count: int) -> list[str]:
    """The last `count` lines of a file, within its last 64 KiB; [] if there is no file."""
    try:
        with path.open("rb") as file:
            # the log may be large, and `up` reads it three times a second
            file.seek(max(0, os.fstat(file.fileno()).st_size - (64 << 10)))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []
